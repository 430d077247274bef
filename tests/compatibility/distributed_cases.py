"""What `test_distributed.py` has its two processes do. Here and there torch's own modules do the same."""

from __future__ import annotations

import copy
import os
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.distributed.algorithms.join import Join
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel
from typer.testing import CliRunner

import fastmlp
from fastmlp import backends, cli, data
from fastmlp.cli import runs
from fastmlp.training import distributed
from tests.commands import synthetic

#: Ours, torch's in the same dtype, and torch's in float64 in one process: the parameters, on the CPU.
Result = tuple[list[Tensor], list[Tensor], list[Tensor]]
STEPS, BATCH, FEATURES, CLASSES = 2, 8, 6, 3


def mlp() -> nn.Sequential:
    """Narrow, of one activation: runs whole in one kernel."""
    return fastmlp.MLP(FEATURES, [9, 7, CLASSES])


def mixed() -> nn.Sequential:
    """Different activations: a kernel a layer."""
    return fastmlp.Sequential(
        nn.Flatten(), nn.Linear(FEATURES, 9), nn.GELU(), nn.Linear(9, 7), nn.PReLU(), nn.Linear(7, CLASSES)
    )


def normed() -> nn.Sequential:
    """Its buffers change in every forward."""
    return fastmlp.Sequential(
        nn.Linear(FEATURES, 8),
        nn.BatchNorm1d(8),
        nn.ReLU(),
        nn.Linear(8, 7),
        nn.ReLU(),
        nn.Linear(7, CLASSES),
    )


def torchs(net: nn.Sequential) -> nn.Sequential:
    """A copy that is torch's own class."""
    twin = copy.deepcopy(net)
    twin.__class__ = nn.Sequential
    return twin


def part(tensor: Tensor, rank: int) -> Tensor:
    """This rank's half of a batch."""
    return tensor[rank * len(tensor) // 2 : (rank + 1) * len(tensor) // 2]


def batches(device: str, count: int = STEPS, size: int = BATCH) -> list[tuple[Tensor, Tensor]]:
    """The same in both processes."""
    generator = torch.Generator().manual_seed(1)
    return [
        (
            torch.randn(size, FEATURES, generator=generator).to(device),
            torch.randint(CLASSES, (size,), generator=generator).to(device),
        )
        for _ in range(count)
    ]


def train(
    model: nn.Module,
    loss: nn.Module,
    data: list[tuple[Tensor, Tensor]],
    autocast: torch.dtype | None = None,
    accumulate: Callable[[], AbstractContextManager[object]] | None = None,
) -> None:
    """Plain SGD; with ``accumulate`` all gradients into one step, all but the last under it."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=0.5, foreach=False)
    for step, (x, y) in enumerate(data):
        last = step == len(data) - 1
        context = nullcontext() if accumulate is None or last else accumulate()
        with context:
            x = x if autocast else x.to(parameters[0].dtype)
            with torch.autocast(x.device.type, autocast, enabled=autocast is not None):
                value = loss(model(x), y)
            value.backward()
        if accumulate is None or last:
            optimizer.step()
            optimizer.zero_grad()


def tensors(model: nn.Module) -> list[Tensor]:
    """Parameters and floating buffers, whole and on the CPU."""
    state = [*model.parameters(), *(b for b in model.buffers() if b.is_floating_point())]
    whole = [t.full_tensor() if hasattr(t, "full_tensor") else t for t in state]
    return [t.detach().cpu().clone() for t in whole]


def ddp(
    rank: int,
    device: str,
    backend: str,
    make: Callable[[], nn.Sequential],
    dtype: torch.dtype = torch.float32,
    autocast: torch.dtype | None = None,
    frozen: tuple[int, ...] = (),
    hook: bool = False,
    accumulate: bool = False,
    steps: int = STEPS,
    **options: Any,
) -> Result:
    """Both kinds of net in DDP on a half of each batch; and torch's, whole, in float64."""
    net = make().to(device, dtype)
    for layer in frozen:
        net[layer].requires_grad_(False)
    exact, data = torchs(net).double(), batches(device, steps)
    mine = [(part(x, rank), part(y, rank)) for x, y in data]
    found = []
    for model, loss, by in (
        (torchs(net), nn.CrossEntropyLoss(label_smoothing=0.1), "torch"),
        (net, fastmlp.CrossEntropyLoss(label_smoothing=0.1), backend),
    ):
        with backends.use(by):
            wrapped = DistributedDataParallel(model, **options)
            if hook:
                wrapped.register_comm_hook(None, bf16_compress_hook)
            train(wrapped, loss, mine, autocast, wrapped.no_sync if accumulate else None)
        found.append(tensors(model))
    train(
        exact, nn.CrossEntropyLoss(label_smoothing=0.1), data, accumulate=nullcontext if accumulate else None
    )
    return found[1], found[0], tensors(exact)


def buckets(rank: int, device: str, backend: str, options: dict[str, Any]) -> list[list[int]]:
    """Which parameters DDP hands to its communication hook, a step after another: the number of each."""
    net = mixed().to(device)
    numbers = {id(p): i for i, p in enumerate(net.parameters())}
    wrapped, seen = DistributedDataParallel(net, bucket_cap_mb=1e-4, **options), []

    def hook(state, bucket):  # DDP wants to see types where there are annotations, and none in strings
        seen[-1].extend(numbers[id(p)] for p in bucket.parameters())
        return dist.all_reduce(bucket.buffer(), async_op=True).get_future().then(lambda f: f.value()[0] / 2)

    wrapped.register_comm_hook(None, hook)
    with backends.use(backend):
        for x, y in batches(device):
            seen.append([])
            fastmlp.CrossEntropyLoss()(wrapped(part(x, rank)), part(y, rank)).backward()
    return seen


def joined(rank: int, device: str, backend: str) -> Result:
    """The first process has two batches more; as torch's DDP does under Join, so does ours."""
    net = mixed().to(device)
    exact, data = torchs(net).double(), batches(device, 4)
    found = []
    for model, by in ((torchs(net), "torch"), (net, backend)):
        with backends.use(by):
            wrapped = DistributedDataParallel(model)
            with Join([wrapped]):
                train(wrapped, fastmlp.CrossEntropyLoss(), data[: 4 - 2 * rank])
        found.append(tensors(model))
    # Both have the first two batches; the other two only count for the half of the group that has them.
    optimizer = torch.optim.SGD(exact.parameters(), lr=0.5)
    for i, (x, y) in enumerate(data):
        optimizer.zero_grad()
        (nn.CrossEntropyLoss()(exact(x.double()), y) * (1 if i < 2 else 0.5)).backward()
        optimizer.step()
    return found[1], found[0], tensors(exact)


def bare(rank: int, device: str, backend: str) -> tuple[list[Tensor], list[Tensor], str]:
    """A step of the net inside of a DDP: torch averages no gradient then, and neither do we."""
    net = mixed().to(device)
    twin, (x, y) = torchs(net), batches(device, 1)[0]
    x, y = part(x, rank), part(y, rank)
    keep = DistributedDataParallel(net), DistributedDataParallel(twin)
    with backends.use(backend):
        step = fastmlp.TrainStep(net, fastmlp.CrossEntropyLoss(), torch.optim.SGD(net.parameters(), lr=0.5))
        step(x, y)
    train(twin, nn.CrossEntropyLoss(), [(x, y)])
    del keep
    return tensors(net), tensors(twin), step.engine


def shard(net: nn.Sequential, where: str, device: str, **options: Any) -> nn.Sequential:
    """``net`` in pieces: as a whole, every linear layer of it, or both."""
    mesh = init_device_mesh(torch.device(device).type, (2,))
    if where != "root":
        for child in net:
            if isinstance(child, nn.Linear):
                fully_shard(child, mesh=mesh, **options)
    if where != "layers":
        fully_shard(net, mesh=mesh, **options)
    return net


def fsdp(
    rank: int,
    device: str,
    backend: str,
    make: Callable[[], nn.Sequential],
    where: str,
    policy: torch.dtype | None = None,
    dtype: torch.dtype = torch.float32,
    **options: Any,
) -> tuple[Result, dict[str, Tensor]]:
    """As `ddp`; and the whole state of ours, by the names of an nn.Sequential."""
    net = make().to(device, dtype)
    exact, data = torchs(net).double(), batches(device)
    if policy is not None:
        options["mp_policy"] = MixedPrecisionPolicy(param_dtype=policy, reduce_dtype=torch.float32)
    found = []
    for model, by in ((torchs(net), "torch"), (net, backend)):
        with backends.use(by):
            shard(model, where, device, **options)
            mine = [(part(x, rank), part(y, rank)) for x, y in data]
            train(model, fastmlp.CrossEntropyLoss(), mine)
        found.append(tensors(model))
    train(exact, nn.CrossEntropyLoss(), data)
    state = {name: t.full_tensor().cpu() for name, t in net.state_dict().items()}
    return (found[1], found[0], tensors(exact)), state


def tensor_parallel(rank: int, device: str, backend: str) -> Result:
    """The first layer by columns, the second by rows: every process sees the whole batch."""
    net = fastmlp.Sequential(nn.Linear(FEATURES, 8), nn.GELU(), nn.Linear(8, 7), nn.ReLU(), nn.Linear(7, 3))
    net = net.to(device)
    exact, data = torchs(net).double(), batches(device)
    found = []
    for model, by in ((torchs(net), "torch"), (net, backend)):
        with backends.use(by):
            mesh = init_device_mesh(torch.device(device).type, (2,))
            parallelize_module(model, mesh, {"0": ColwiseParallel(), "2": RowwiseParallel()})
            train(model, fastmlp.CrossEntropyLoss(), data)
        found.append(tensors(model))
    train(exact, nn.CrossEntropyLoss(), data)
    return found[1], found[0], tensors(exact)


def train_step(rank: int, device: str, backend: str, how: str) -> tuple[Result, str]:
    """`TrainStep` of a wrapped net, beside torch's loop over torch's wrapped net."""
    net = mixed().to(device)
    exact, data = torchs(net).double(), batches(device)
    mine, found, engine = [(part(x, rank), part(y, rank)) for x, y in data], [], ""
    for model, by in ((torchs(net), "torch"), (net, backend)):
        wrapped = DistributedDataParallel(model) if how == "ddp" else shard(model, how, device)
        with backends.use(by):
            if model is not net:
                train(wrapped, nn.CrossEntropyLoss(), mine)
            else:
                optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.5)
                step = fastmlp.TrainStep(wrapped, fastmlp.CrossEntropyLoss(), optimizer)
                for x, y in mine:
                    step(x, y)
                engine = step.engine
        found.append(tensors(model))
    train(exact, nn.CrossEntropyLoss(), data)
    return (found[1], found[0], tensors(exact)), engine


def fit(
    rank: int,
    device: str,
    backend: str,
    how: str,
    data: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    loss: nn.Module,
    **options: Any,
) -> tuple[list[Tensor], list[tuple[float, float, float | None]], str]:
    """`fastmlp.fit` in both processes; the parameters, and each epoch's numbers."""
    net = mixed().to(device)
    wrapped = DistributedDataParallel(net) if how == "ddp" else shard(net, how, device)
    with backends.use(backend):
        history = fastmlp.fit(wrapped, data, test, loss=loss, device=device, **options)
    epochs = [(e.train_loss, e.train_accuracy, e.test_accuracy) for e in history.epochs]
    return tensors(net), epochs, history.engine


def refused_fit(rank: int, device: str, change: str) -> str:
    """What `fastmlp.fit` says in each process."""
    net, data = mixed().to(device), batches(device, 1)[0]
    wrapped: nn.Module = DistributedDataParallel(net)
    options: dict[str, Any] = {"epochs": 1, "batch_size": 4}
    if change == "engine":
        options["engine"] = "fused"
    elif change == "checkpoint":
        options["checkpoint"] = "/nowhere/run"
    elif change == "batch_size":
        options["batch_size"] = 4 + rank
    elif change == "labels":
        data = data[0], data[1].flip(0) if rank else data[1]
    elif change == "outside":
        wrapped = shard(net, "layers", device)
    elif change == "mesh":
        wrapped = mixed().to(device)
        fully_shard(
            wrapped, mesh=init_device_mesh(torch.device(device).type, (1, 2), mesh_dim_names=("r", "s"))
        )
    try:
        fastmlp.fit(wrapped, data, **options)
    except ValueError as error:
        return str(error)
    return "nothing"


def snippet(rank: int, device: str, code: str) -> list[str]:
    """Run ``code``; the names of the state that it leaves."""
    names: dict[str, Any] = {}
    with mock.patch.object(dist, "init_process_group"), mock.patch.object(dist, "destroy_process_group"):
        exec(code, names)
    return [*names["state"]]


def failing(rank: int, device: str) -> None:
    """One process raises, the other waits for it."""
    if rank == 1:
        raise ZeroDivisionError("on purpose")
    dist.all_reduce(torch.zeros(1, device=device))


def where_am_i(rank: int, device: str) -> int:
    """For the pair itself."""
    total = torch.tensor([float(rank + 1)], device=device)
    dist.all_reduce(total)
    return int(total)


def command(rank: int, device: str, arguments: list[str]) -> tuple[int, str, int]:
    """``fastmlp`` as torchrun starts it, on a small set: exit status, what it prints, how often it saves."""
    launched = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": 2,
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": 0,
    }
    with (
        mock.patch.dict(os.environ, {name: str(value) for name, value in launched.items()}),
        mock.patch.object(distributed, "start"),  # the group is there
        mock.patch.object(distributed, "stop"),
        mock.patch.object(distributed, "leave", sys.exit),
        mock.patch.object(data, "named", synthetic(601, 101)),
        mock.patch.object(runs, "save", wraps=runs.save) as save,
    ):
        result = CliRunner().invoke(cli.app, arguments)
    return result.exit_code, result.output, save.call_count
