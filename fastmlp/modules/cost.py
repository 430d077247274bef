"""What a model costs by each plan, without running it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from numbers import Integral

import torch
from torch import nn

from fastmlp import markup
from fastmlp.activations import from_module, resolve
from fastmlp.costs import choice, plans
from fastmlp.costs.devices import Device, find, operand_kind
from fastmlp.costs.plans import Dense, Plan, passed
from fastmlp.functional.layer import Layer, Layers
from fastmlp.modules.linear_act import LinearAct
from fastmlp.modules.sequential import Sequential
from fastmlp.modules.stages import Dequantized, stages_of, untouched

_FREE = (nn.Identity, nn.Flatten, nn.Unflatten)  # views
_SAME_SHAPE = (nn.BatchNorm1d, nn.LayerNorm)  # not counted, but what follows them can be


@dataclass(frozen=True)
class Choice:
    """The plan of one chain of linear layers."""

    chain: str  # its widths
    plan: str
    why: str


@dataclass(frozen=True, repr=False)
class Cost:
    """What `cost` found; ``str`` of it is a table, and so is what a notebook shows."""

    batch: int
    dtype: torch.dtype
    kind: str  # of the products' operands: "half", "tf32" or "ieee"
    device: Device
    training: bool
    plans: dict[str, Plan]  # of the whole model: a chain that a plan does not take counts as layers
    choices: tuple[Choice, ...]
    not_counted: tuple[str, ...]  # what no plan counts, by its name in the model

    def seconds(self, plan: str) -> float:
        """The floor: the least that ``plan`` takes on the device."""
        return self.plans[plan].floor(self.device, self.kind)

    def rows(self) -> list[tuple[str, ...]]:
        """A header, and a line for each plan."""
        head = ("plan", "launches", "operations", "memory", "cache", "floor", "kept for backward")
        lines: list[tuple[str, ...]] = [head if self.training else head[:-1]]
        for name, plan in self.plans.items():
            work = plan.work
            line = (
                name,
                f"{len(plan.forward)} + {len(plan.backward)}" if self.training else str(work.launches),
                _scaled(work.operations, 1000, ("", "k", "M", "G", "T")).rstrip(),
                _scaled(work.bytes, 1024, _BYTES),
                _scaled(work.cached, 1024, _BYTES),
                _time(self.seconds(name)),
                _scaled(plan.kept, 1024, _BYTES),
            )
            lines.append(line if self.training else line[:-1])
        return lines

    def notes(self) -> list[str]:
        """Which plan each chain takes and why, and what is not counted."""
        found = [f"{choice.chain}: {choice.plan}, {choice.why}" for choice in self.choices]
        return found + [f"not counted: {name}" for name in self.not_counted]

    @property
    def title(self) -> str:
        """What the table is about."""
        dtype = str(self.dtype).removeprefix("torch.")
        passes = "forward + backward" if self.training else "inference"
        return f"{passes}, batch {self.batch}, {dtype} ({self.kind}) on {self.device.name}"

    def __repr__(self) -> str:
        floors = ", ".join(f"{name} {_time(self.seconds(name))}" for name in self.plans)
        return f"<Cost: {self.title}: {floors}>"

    def _repr_html_(self) -> str:
        head, *lines = self.rows()
        return markup.table(self.title, head, lines, self.notes())

    def __str__(self) -> str:
        return "\n".join([self.title, *markup.aligned(self.rows()), *self.notes()])


_BYTES = ("B", "KiB", "MiB", "GiB", "TiB")


def _scaled(value: float, step: int, units: Sequence[str]) -> str:
    for unit in units[:-1]:
        if value < step:
            return f"{value:.3g} {unit}" if value < 1000 else f"{value:.0f} {unit}"
        value /= step
    return f"{value:.3g} {units[-1]}"


def _time(seconds: float) -> str:
    return f"{seconds * 1e6:.3g} µs" if seconds < 1e-3 else f"{seconds * 1e3:.3g} ms"


def cost(
    model: nn.Module | Sequence[int],
    batch: int,
    *,
    dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
    training: bool = True,
    input_grad: bool = False,
) -> Cost:
    """Operations, bytes, launches and the least time of ``model`` by every plan. Nothing is run.

    In every ``nn.Sequential`` runs of linear layers are chains, as `fuse` would make them. Linear layers
    outside, activations and dropout by themselves run by torch's own ops and count alike in every plan.
    What else there is stands in ``not_counted``. The formulae are in docs/cost.md.

    Args:
        model: a module, each of whose linear layers sees ``batch`` rows once; or the widths of a net with
            biases and ReLUs.
        batch: rows.
        dtype: that everything is in; default: the model's first parameter's, float32 for widths.
        device: a name of `costs.devices.DEVICES` or a torch.device; default: the GPU at hand, else "h200".
        training: count forward and backward, from a given gradient of the output, instead of inference.
        input_grad: whether the input needs a gradient too.

    Raises:
        TypeError: ``model`` is neither.
        ValueError: a batch or width that is not positive, a dtype that the kernels do not compute in, or an
            unknown device.
    """
    if not isinstance(batch, Integral) or isinstance(batch, bool) or batch < 1:
        raise ValueError(f"batch: expected a positive number of rows, got {batch!r}")
    if dtype is None:
        parameter = next(model.parameters(), None) if isinstance(model, nn.Module) else None
        dtype = torch.float32 if parameter is None else parameter.dtype
    where, kind = find(device), operand_kind(dtype)
    walk = _Walk(int(batch), dtype, where, kind, training, input_grad)
    if isinstance(model, nn.Module):
        walk.module(model, "")
    else:
        walk.chain(plans.chain(_widths(model)))
    return Cost(
        walk.batch, dtype, kind, where, training, walk.totals(), tuple(walk.choices), tuple(walk.not_counted)
    )


def _widths(model: Sequence[int]) -> list[int]:
    if not isinstance(model, Sequence) or isinstance(model, str):
        raise TypeError(f"model: expected an nn.Module or a sequence of widths, got {type(model).__name__}")
    if len(model) < 2 or not all(isinstance(w, Integral) and w >= 1 for w in model):
        raise ValueError(f"model: expected two positive widths at least, got {list(model)}")
    return [int(width) for width in model]


@dataclass
class _Walk:
    """Goes through a model and adds up what it finds."""

    batch: int
    dtype: torch.dtype
    device: Device
    kind: str
    training: bool
    input_grad: bool
    choices: list[Choice] = field(default_factory=list)
    not_counted: list[str] = field(default_factory=list)
    _found: list[dict[str, Plan]] = field(default_factory=list)  # of every chain and op, by plan
    _width: int | None = None  # of what comes out of the last one, where that is known

    def module(self, module: nn.Module, name: str) -> None:
        """Count ``module`` and what is inside it."""
        if isinstance(module, nn.Sequential):
            self._sequential(module, name)
        elif type(module) is nn.Linear:
            self._alone(Dense(module.in_features, module.out_features, module.bias is not None))
        elif type(module) is LinearAct:
            self.chain(Layers([Layer(module.weight, module.bias, resolve(module.activation))]).dense)
        elif next(module.children(), None) is not None:
            for key, child in module.named_children():
                self._width = None  # nothing says in which order a forward calls them
                self.module(child, f"{name}.{key}".lstrip("."))
        else:
            self._op(module, name)

    def _sequential(self, module: nn.Sequential, name: str) -> None:
        names = {id(child): key for key, child in module.named_modules(remove_duplicate=False)}
        for stage in stages_of(module, (nn.Sequential, Sequential)):
            if isinstance(stage, Layers):
                self.chain(stage.dense)
            elif isinstance(stage, Dequantized):  # its bytes are fewer than are counted here
                self.not_counted.append(f"{name}.{names[id(stage.module)]} (Dequantize)".lstrip("."))
                self.chain(stage.layers.dense, "the input is quantized")
            else:
                self.module(stage, f"{name}.{names.get(id(stage), '')}".strip("."))

    def chain(self, layers: list[Dense], misfit: str | None = None) -> None:
        """Count a chain of layers by every plan that takes it (all, but for a ``misfit``), and choose one."""
        by_plan = {name: self._count(name, layers) for name in ("eager", "layers")}
        misfit = misfit or choice.whole_misfit(layers, self.kind)
        if misfit is None:
            names = ("whole", "recompute") if self.training else ("whole",)
            by_plan |= {name: self._count(name, layers) for name in names}
        self.choices.append(self._choose(layers, by_plan, misfit))
        self._add(by_plan, layers[-1].n)

    def _choose(self, layers: list[Dense], by_plan: dict[str, Plan], misfit: str | None) -> Choice:
        widths = plans.widths_of(layers)
        name = plans.name(widths)
        if self.device.name == "cpu":
            return Choice(name, "eager", "off the GPU torch's own ops are the fastest")
        if misfit is not None:
            return Choice(name, "layers", f"the whole-network kernels do not take it: {misfit}")
        if self.training and choice.partly_frozen(layers):
            return Choice(name, "layers", "no gradients of frozen layers")
        chosen = choice.choose_plan(widths, self.batch, self.dtype, self.device.name, self.training)
        floors = ", ".join(
            f"{plan} {_time(found.floor(self.device, self.kind))}"
            for plan, found in by_plan.items()
            if plan != "eager"
        )
        return Choice(name, chosen, f"floors: {floors}")

    def _alone(self, layer: Dense) -> None:
        """A linear layer that no Sequential runs: torch's own op in every plan."""
        self._add({"eager": self._count("eager", [layer])}, layer.n)

    def _op(self, module: nn.Module, name: str) -> None:
        """An activation or a dropout outside a chain, by torch's own op."""
        if isinstance(module, _FREE):
            return
        if type(module) is nn.Dropout and (not module.training or module.p == 0):
            return
        dropped = type(module) is nn.Dropout
        act = from_module(module) if untouched(module) else None
        if self._width is None or not (act or dropped):
            self.not_counted.append(f"{name or 'model'} ({type(module).__name__})")
            self._width = self._width if isinstance(module, _SAME_SHAPE) else None
            return
        elements = self.batch * self._width
        matrix = elements * self.dtype.itemsize
        mask = elements if dropped else 0  # a byte each
        forward = passed("dropout" if act is None else act.name, 2 * matrix + mask)
        backward = passed(f"{forward.name}_backward", (2 if dropped else 3) * matrix + mask)
        plan = Plan((forward,), (), 0, 2 * matrix)
        if self.training:
            plan += Plan((), (backward,), mask or matrix, mask or matrix)
        self._add({"eager": plan}, self._width)

    def _count(self, plan: str, layers: list[Dense]) -> Plan:
        # A chain behind another passes its gradient on.
        input_grad = self.input_grad or bool(self._found)
        sms = self.device.sms
        return plans.count(plan, layers, self.batch, self.dtype, sms, self.training, input_grad)

    def _add(self, by_plan: dict[str, Plan], width: int) -> None:
        self._found.append(by_plan)
        self._width = width

    def totals(self) -> dict[str, Plan]:
        """The model by each plan that a chain takes; a chain that does not is counted by the plan before."""
        taken = ["eager"]
        if self.device.name != "cpu":
            taken += [plan for plan in plans.PLANS[1:] if any(plan in found for found in self._found)]
        totals = {}
        for name in taken:
            known = plans.PLANS[plans.PLANS.index(name) :: -1]
            each = (next(by_plan[plan] for plan in known if plan in by_plan) for by_plan in self._found)
            totals[name] = sum(each, Plan((), (), 0, 0))
        return totals
