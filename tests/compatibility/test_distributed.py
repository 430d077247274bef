"""DDP, FSDP2, tensor parallelism and the engine in two processes, beside torch's own modules in the same."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

import fastmlp
from fastmlp import backends, cli, data
from fastmlp.kernels import launch
from fastmlp.training import load
from tests.commands import synthetic
from tests.compatibility import distributed_cases as cases
from tests.compatibility.pair import Pair
from tests.numerics import assert_as_good_as_torch

GROUP = "More than one process"
pytestmark = pytest.mark.few(1)
DEVICE = "cuda" if torch.cuda.device_count() > 1 else "cpu"  # of the command
needs_gpus = pytest.mark.skipif(torch.cuda.device_count() == 1, reason="NCCL wants a GPU a process")
Run = Callable[..., list[Any]]


def feature(name: str, dtype: str = "any") -> pytest.MarkDecorator:
    return pytest.mark.feature(GROUP, name, dtype=dtype)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    made = Pair(tmp_path_factory.mktemp("pair"))
    yield made
    made.stop()


@pytest.fixture
def run(pair: Pair, request: pytest.FixtureRequest) -> Run:
    """Runs a case in both processes; the test's cell on the page learns whether kernels ran."""

    def runs(function: Callable[..., Any], *args: Any, **kwargs: Any) -> list[Any]:
        values, launched = pair.run(function, *args, **kwargs)
        request.node.kernels = getattr(request.node, "kernels", False) or launched
        return values

    return runs


def check(results: list[cases.Result], backend: str, whole: bool = False) -> None:
    """The same in both processes; on torch's own ops torch's bits, else within twice torch's error.

    That is for each tensor, or with ``whole`` for all together.
    """
    for ours, *_ in results[1:]:
        assert all(map(torch.equal, ours, results[0][0])), "the processes differ"
    kinds: list[list[Tensor]] = list(results[0])
    if whole:
        kinds = [[torch.cat([t.flatten() for t in kind])] for kind in kinds]
    for i, (ours, theirs, exact) in enumerate(zip(*kinds)):
        if backend == "torch":
            torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
        assert_as_good_as_torch(ours, theirs, exact, f"tensor {i}")


@pytest.mark.few(2)
@feature("DDP: parameters as by one process with the whole batch")
def test_ddp(run: Run, backend: str, dtype: torch.dtype) -> None:
    check(run(cases.ddp, backend, cases.mixed, dtype), backend)


@feature("DDP: parameters as by one process with the whole batch", "float32")
def test_ddp_of_a_whole_net(run: Run, backend: str) -> None:
    check(run(cases.ddp, backend, cases.mlp), backend)


@feature("DDP under autocast")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_ddp_under_autocast(run: Run, backend: str, dtype: torch.dtype) -> None:
    check(run(cases.ddp, backend, cases.mlp, autocast=dtype), backend)


def _option(name: str, **options: Any) -> Any:
    return pytest.param(options, marks=feature(f"DDP: {name}", "float32"))


@pytest.mark.parametrize(
    "options",
    [
        _option("find_unused_parameters", find_unused_parameters=True),
        _option("static_graph", static_graph=True, steps=3),
        _option("gradient_as_bucket_view", gradient_as_bucket_view=True),
        _option("frozen layers", frozen=(1,)),
        _option("frozen layers", frozen=(5,), find_unused_parameters=True),
        _option("gradient accumulation with no_sync", accumulate=True),
        _option("a communication hook (bf16_compress)", hook=True),
    ],
    ids=str,
)
def test_options_of_ddp(run: Run, backend: str, options: dict[str, Any]) -> None:
    check(run(cases.ddp, backend, cases.mixed, **options), backend)


@feature("DDP: buffers of the first process for all", "float32")
@pytest.mark.parametrize("broadcast", [True, False])
def test_buffers_of_ddp(run: Run, backend: str, broadcast: bool) -> None:
    """With broadcast_buffers the first process' batch statistics are everybody's at the next forward.

    float64 sees the whole batch, and so other statistics: torch's DDP is what there is to compare with.
    """
    results = run(cases.ddp, backend, cases.normed, steps=3, broadcast_buffers=broadcast)
    tolerance = {"rtol": 0.0, "atol": 0.0} if backend == "torch" else {"rtol": 1e-5, "atol": 1e-6}
    for ours, theirs, _ in results:
        for a, b in zip(ours, theirs):
            torch.testing.assert_close(a, b, **tolerance)
    parameters = len(list(cases.normed().parameters()))
    assert all(map(torch.equal, results[0][0][:parameters], results[1][0][:parameters]))


@feature("DDP: uneven batches under Join", "float32")
def test_join(run: Run, backend: str) -> None:
    check(run(cases.joined, backend), backend)


@feature("DDP: each parameter is averaged once a step", "float32")
@pytest.mark.parametrize("options", [{}, {"find_unused_parameters": True}], ids=str)
def test_every_parameter_is_averaged_once(run: Run, backend: str, options: dict[str, Any]) -> None:
    for seen in run(cases.buckets, backend, options):
        assert [sorted(step) for step in seen] == [list(range(7))] * cases.STEPS


def _overlap(net: nn.Module, device: str) -> list[int]:
    """How many launches of the backward were made when the gradient of each parameter was ready."""
    with launch.record_launches() as launches:
        y = net(torch.randn(8, 6, device=device)).sum()
        before, seen = len(launches), []
        for parameter in net.parameters():
            parameter.register_post_accumulate_grad_hook(lambda _: seen.append(len(launches) - before))
        y.backward()
    return seen


def test_what_overlaps(device: str) -> None:
    """A chain's gradients come all at once, so that DDP cannot average one while the next is computed.

    Modules of their own give them one after another, as torch's do.
    """
    with backends.use("triton"):
        chain = _overlap(cases.mixed().to(device), device)
        apart = nn.Sequential(fastmlp.LinearAct(6, 9), fastmlp.LinearAct(9, 7), fastmlp.LinearAct(7, 3))
        layers = _overlap(apart.to(device), device)
    assert len(chain) == 7
    assert len(set(chain)) == 1
    assert len(layers) == 6
    assert len(set(layers)) == 3


def _shards(name: str, where: str, dtype: str = "float32", **options: Any) -> Any:
    return pytest.param(where, options, marks=feature(f"FSDP2{name}", dtype))


@pytest.mark.few(3)
@pytest.mark.parametrize(
    ("where", "options"),
    [
        _shards(" of a net", "root"),
        _shards(" of every layer, and of the net", "layers"),
        _shards(" of every layer, and of the net", "both"),
        _shards(": reshard_after_forward", "root", reshard_after_forward=True),
        _shards(": reshard_after_forward", "both", reshard_after_forward=False),
        _shards(": MixedPrecisionPolicy", "root", "bfloat16", policy=torch.bfloat16),
        _shards(": MixedPrecisionPolicy", "both", "bfloat16", policy=torch.bfloat16),
    ],
    ids=str,
)
@needs_gpus
def test_fsdp(run: Run, backend: str, where: str, options: dict[str, Any]) -> None:
    make = cases.mlp if where == "layers" else cases.mixed  # whose PReLU has parameters too
    check(
        [result for result, _ in run(cases.fsdp, backend, make, where, **options)],
        backend,
        whole="policy" in options,  # of a few elements rounded to bf16, torch's error may be small by luck
    )


@feature("FSDP2: the whole state goes into an nn.Sequential", "float32")
@needs_gpus
def test_state_of_fsdp(run: Run, backend: str) -> None:
    (result, state), _ = run(cases.fsdp, backend, cases.mlp, "root")
    plain = cases.torchs(cases.mlp())
    plain.load_state_dict(state)
    assert all(map(torch.equal, plain.parameters(), result[0]))
    x = torch.randn(4, cases.FEATURES)
    again = cases.mlp()
    again.load_state_dict(plain.state_dict())
    with backends.use("torch"):
        assert torch.equal(again(x), plain(x))


@feature("tensor parallelism (ColwiseParallel, RowwiseParallel)", "float32")
@needs_gpus
def test_tensor_parallelism(run: Run, backend: str) -> None:
    check(run(cases.tensor_parallel, backend), backend)


@feature("TrainStep of a net in DDP or FSDP2", "float32")
@pytest.mark.parametrize(
    "how", ["ddp", pytest.param("root", marks=needs_gpus), pytest.param("both", marks=needs_gpus)]
)
def test_train_step(run: Run, backend: str, how: str) -> None:
    results = run(cases.train_step, backend, how)
    check([result for result, _ in results], backend)
    assert all(engine.startswith("eager") for _, engine in results)


@feature("TrainStep of the net inside of a DDP: averages nothing, as torch", "float32")
def test_the_bare_net(run: Run, backend: str) -> None:
    results = run(cases.bare, backend)
    for ours, theirs, _ in results:
        for a, b in zip(ours, theirs):
            torch.testing.assert_close(a, b)
    assert not torch.equal(results[0][0][0], results[1][0][0])


def fits(
    run: Run,
    backend: str,
    device: str,
    how: str,
    loss: nn.Module,
    count: int,
    mix: bool = False,
    **options: Any,
) -> None:
    """`fit` on ``count`` examples in both processes, and in this one alone; of ``mix``ed labels."""
    (x, y), (test_x, test_y) = cases.batches("cpu", 2, size=count)
    if mix:
        hot = nn.functional.one_hot(y, cases.CLASSES)
        y = 0.7 * hot + 0.3 * hot.roll(1, 0)
    if isinstance(loss, nn.CrossEntropyLoss) and loss.ignore_index >= 0:
        y[y == loss.ignore_index] += 1  # but for one: a batch of nothing else has no mean
        y[0] = loss.ignore_index
    if isinstance(loss, nn.MSELoss):
        y, test_y = (nn.functional.one_hot(labels, cases.CLASSES).float() for labels in (y, test_y))
    options |= {"epochs": 2, "seed": 3, "schedule": "linear"}
    data, test = (x, y), (test_x[:5], test_y[:5])
    results = run(cases.fit, backend, how, data, test, loss, **options)
    torch.manual_seed(0)
    net = cases.mixed().to(device)
    with backends.use(backend):
        alone = fastmlp.fit(net, data, test, loss=copy.deepcopy(loss), engine="eager", **options)
    for parameters, epochs, engine in results:
        for ours, expected in zip(parameters, cases.tensors(net)):
            torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6)
        for (train_loss, train_accuracy, test_accuracy), epoch in zip(epochs, alone.epochs):
            assert train_loss == pytest.approx(epoch.train_loss, rel=1e-5)
            assert (train_accuracy, test_accuracy) == (epoch.train_accuracy, epoch.test_accuracy)
        assert engine == "eager"
    assert all(map(torch.equal, results[0][0], results[1][0]))


@feature("fit of a net in DDP or FSDP2: as in one process", "float32")
@pytest.mark.parametrize(
    "how", ["ddp", pytest.param("root", marks=needs_gpus), pytest.param("both", marks=needs_gpus)]
)
def test_fit(run: Run, backend: str, device: str, how: str) -> None:
    """Batches of 6 and a tail of one row, which is the part of one process alone."""
    fits(run, backend, device, how, fastmlp.CrossEntropyLoss(), 13, batch_size=6, lr=0.3)


@pytest.mark.feature(GROUP, "fit: losses that count rows otherwise", backend="torch", dtype="float32")
@pytest.mark.parametrize(
    ("loss", "count", "batch", "lr"),
    [
        (nn.CrossEntropyLoss(torch.tensor([0.2, 1.0, 3.0]), label_smoothing=0.1), 19, 5, 0.3),
        (fastmlp.CrossEntropyLoss(ignore_index=1, z_loss=0.1), 6, 2, 0.3),  # a part where nothing counts
        (nn.CrossEntropyLoss(torch.tensor([0.2, 1.0, 3.0]), ignore_index=0), 19, 5, 0.3),
        (fastmlp.CrossEntropyLoss(reduction="sum"), 19, 6, 0.03),
        (nn.MultiMarginLoss(), 19, 6, 0.3),
        (nn.MSELoss(), 13, 6, 0.3),
        (nn.MSELoss(reduction="sum"), 13, 6, 0.03),
    ],
    ids=["weights", "ignored", "ignored and weights", "sum", "another loss", "squares", "sum of squares"],
)
def test_fit_with_losses(run: Run, device: str, loss: nn.Module, count: int, batch: int, lr: float) -> None:
    fits(run, "torch", device, "ddp", loss, count, batch_size=batch, lr=lr)


@pytest.mark.feature(GROUP, "fit: losses that count rows otherwise", backend="torch", dtype="float32")
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_fit_on_probabilities(run: Run, device: str, reduction: str) -> None:
    """Their mean is over the rows, whatever the classes weigh."""
    loss = nn.CrossEntropyLoss(torch.tensor([0.2, 1.0, 3.0]), reduction=reduction)
    fits(run, "torch", device, "ddp", loss, 13, mix=True, batch_size=6, lr=0.03)


@pytest.mark.feature(GROUP, "fit: clip_norm, of the averaged gradients", backend="torch", dtype="float32")
def test_fit_clips(run: Run, device: str) -> None:
    fits(run, "torch", device, "ddp", nn.CrossEntropyLoss(), 13, batch_size=6, lr=1.0, clip_norm=0.1)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("engine", "'fused' cannot run this: the gradients of 2 processes"),
        ("checkpoint", "checkpoint: expected None"),
        ("batch_size", "batch_size: expected the same in every process, got from 4 to 5"),
        ("labels", "labels: expected the same in every process"),
        pytest.param("outside", "net: 4.weight is outside of fully_shard", marks=needs_gpus),
        pytest.param("mesh", "fully_shard over one mesh of one dimension", marks=needs_gpus),
    ],
)
@feature("fit in several processes: what cannot be right")
def test_fit_refuses(run: Run, refuses: Any, change: str, words: str) -> None:
    for said in run(cases.refused_fit, change):
        with refuses(ValueError, words):
            raise ValueError(said)


@pytest.mark.feature(
    GROUP,
    "torchrun -m fastmlp train: as in one process, logged and saved once",
    backend="torch",
    dtype="float32",
    kernels=False,
)
def test_the_command(run: Run, tmp_path: Path) -> None:
    """A tail of one row again: 601 examples in batches of 100."""
    arguments = ["train", "--dataset", "synthetic", "--epochs", "2", "--hidden", "8", "--batch-size", "100"]
    arguments += ["--device", DEVICE, "--engine", "eager", "--lr", "0.5", "--out"]
    (code, said, saved), other = run(cases.command, [*arguments, str(tmp_path / "two" / "net")])
    assert (code, saved) == (0, 1), said
    assert other == (0, "", 0)
    lines = said.splitlines()
    assert len(lines) == 4
    assert "601 examples, batch 100" in lines[0]
    assert lines[0].endswith("2 processes, no checkpoints")
    assert sorted(path.name for path in (tmp_path / "two").iterdir()) == [
        "net",
        "net.history.json",
        "net.toml",
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "named", synthetic(601, 101))
        alone = CliRunner().invoke(cli.app, [*arguments, str(tmp_path / "one")])
    for line, expected in zip(lines[1:3], alone.output.splitlines()[1:3]):
        assert line.split()[:-2] == expected.split()[:-2]  # but for the examples a second
    (state, about), (expected_state, expected_about) = map(load, (tmp_path / "two" / "net", tmp_path / "one"))
    assert about == expected_about
    for name, tensor in state.items():
        torch.testing.assert_close(tensor, expected_state[name], rtol=1e-4, atol=1e-6)


@pytest.mark.feature(
    GROUP,
    "torchrun -m fastmlp train: an error is said once, and all processes fail",
    backend="torch",
    kernels=False,
)
@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--hidden", "x"], 2, "--hidden x: expected positive widths"),
        (["--out", "/proc/nowhere/net"], 1, "--out /proc/nowhere/net: No such file"),
        (["--resume"], 2, "a run in several processes keeps no checkpoint"),
        (["--engine", "fused"], 2, "'fused' cannot run this"),
        (["--dataset", "fashion-mnist", "--data", "/proc"], 1, "train-images-idx3-ubyte: No such file"),
        (["--lr", "1e30"], 1, "the loss is nan in epoch 1"),
    ],
)
def test_errors_of_the_command(run: Run, options: list[str], code: int, words: str, tmp_path: Path) -> None:
    arguments = ["train", "--dataset", "synthetic", "--epochs", "1", "--hidden", "8", "--device", DEVICE]
    arguments += ["--out", str(tmp_path / "net")]
    (found, said, saved), other = run(cases.command, [*arguments, *options])
    assert (found, saved) == (code, 0)
    assert other == (code, "", 0)
    assert words in said
    assert said.count("error:") <= 1
    assert not (tmp_path / "net").exists()


@pytest.mark.deep
@pytest.mark.skipif(torch.cuda.is_available(), reason="as it stands there it is for a CPU")
def test_the_documents_example(run: Run) -> None:
    text = (Path(__file__).resolve().parents[2] / "docs" / "distributed.md").read_text()
    for names in run(cases.snippet, *re.findall(r"```python\n(.*?)```", text, re.DOTALL)):
        assert names == [*cases.torchs(fastmlp.MLP(784, [64, 10])).state_dict()]


@pytest.mark.deep
def test_the_pair_notices_a_failure(run: Run) -> None:
    """Last: it takes a new pair to go on."""
    with pytest.raises(AssertionError, match=r"rank 1: (?s:.*)ZeroDivisionError: on purpose"):
        run(cases.failing)
