"""What makes a training run, so that no other one goes on from its checkpoint."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fastmlp import backends


class Run(NamedTuple):
    """What is trained, and how."""

    model: nn.Module
    loss: nn.Module
    optimizer: torch.optim.Optimizer
    device: torch.device
    dtype: torch.dtype
    examples: int
    batch: int
    seed: int
    #: What the data are, and whatever else determines the result; for a checkpoint only.
    facts: dict[str, Any]


def describe(run: Run, engine: str) -> dict[str, Any]:
    """Everything that must be the same for a run to be resumed, as JSON holds it.

    Every number of the optimizer's groups is an entry of its own, under its name: "lr", "momentum".
    """
    names = {id(p): name for name, p in run.model.named_parameters()}
    names |= {id(p): f"loss.{name}" for name, p in run.loss.named_parameters()}
    groups = run.optimizer.param_groups
    weight = next(run.model.parameters(), torch.empty(0, device=run.device, dtype=torch.float32))
    choice = backends.choose(weight)
    found = {
        "net": _structure(run.model),
        "loss": _structure(run.loss) | {"buffers": digest(*run.loss.buffers())},
        "optimizer": f"{type(run.optimizer).__module__}.{type(run.optimizer).__qualname__}",
        "parameters": [[names.get(id(p), "?") for p in group["params"]] for group in groups],
        **hyperparameters(groups),
        "batch_size": run.batch,
        "seed": run.seed,
        "dtype": str(run.dtype),
        "device": run.device.type,
        "engine": engine.split("+")[0],  # graph+pdl gives graph's bits
        "backend": choice.backend.name if choice.backend is not None else "torch",
        **run.facts,
    }
    return json.loads(json.dumps(found))


def hyperparameters(groups: list[dict[str, Any]]) -> dict[str, Any]:
    """The numbers of an optimizer's groups by name; a list if there are several groups."""
    names = dict.fromkeys(name for group in groups for name in group if name not in ("params", "param_names"))
    values = {name: [_plain(group.get(name)) for group in groups] for name in names}
    return {name: value[0] if len(value) == 1 else value for name, value in values.items()}


def environment(device: torch.device) -> dict[str, Any]:
    """What determines a run's last bits besides the run itself."""
    if device.type == "cuda":
        return {"torch": torch.__version__, "GPU": torch.cuda.get_device_name(device)}
    return {"torch": torch.__version__, "threads": torch.get_num_threads()}


def differences(saved: dict[str, Any], now: dict[str, Any], changed: Collection[str] = ()) -> list[str]:
    """How ``now`` differs from ``saved``, a line each, except in what may have ``changed``."""
    found = []
    for name in dict.fromkeys((*saved, *now)):
        before, here = saved.get(name), now.get(name)
        if name in changed or json.dumps(before) == json.dumps(here):
            continue
        if isinstance(before, dict) and isinstance(here, dict):
            found += [f"{short(name)} {line}" for line in differences(before, here)]
        elif name.endswith("content"):
            found.append(f"{short(name)} is another")
        else:
            found.append(f"{short(name)} was {short(before)} and is {short(here)}")
    return found


def _structure(module: nn.Module) -> dict[str, Any]:
    """Each module's type, and the numbers, strings and flags among its attributes."""
    return {
        name or "itself": {"type": _name(type(child)), **_attributes(child)}
        for name, child in module.named_modules()
    }


def _name(kind: type) -> str:
    return f"{kind.__module__.split('.')[0]}.{kind.__qualname__}"


def _attributes(module: nn.Module) -> dict[str, Any]:
    attributes = vars(module).items()
    return {n: v for n, v in attributes if not n.startswith("_") and n != "training" and _is_plain(v)}


def is_scalar(value: object) -> bool:
    """Whether ``value`` is one that JSON can hold, and not a container."""
    return value is None or isinstance(value, (bool, int, float, str))


def _is_plain(value: object) -> bool:
    return all(map(_is_plain, value)) if isinstance(value, (tuple, list)) else is_scalar(value)


def _plain(value: object) -> object:
    """A group's entry as JSON holds it."""
    if isinstance(value, Tensor):
        return value.tolist()
    if isinstance(value, (tuple, list)):
        return [_plain(v) for v in value]
    return value if _is_plain(value) else repr(value)


def digest(*tensors: Tensor) -> str:
    """A fingerprint of shapes, dtypes and content."""
    digest = hashlib.sha256()
    for tensor in tensors:
        flat = tensor.detach().cpu().contiguous().flatten()
        digest.update(f"{tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def short(value: object) -> str:
    """``value`` as a message shows it."""
    text = str(value)
    text = text if len(text) <= 80 else text[:77] + "..."
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)  # a terminal may obey the others
