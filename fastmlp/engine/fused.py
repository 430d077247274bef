"""A training step in 2L - 1 launches of Triton kernels: forwards, head, hidden gradients, update."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Literal

import torch
from torch import Tensor

from fastmlp.backends.base import LossOptions
from fastmlp.backends.route import Like, describe
from fastmlp.backends.triton_backend import fp32_precision
from fastmlp.engine import rules
from fastmlp.engine.base import Executor
from fastmlp.engine.checks import check_batch
from fastmlp.engine.network import Network
from fastmlp.engine.rules import Rule
from fastmlp.kernels.common.arguments import Source
from fastmlp.kernels.common.quantized import Number, source
from fastmlp.kernels.common.replay import Replay
from fastmlp.kernels.launch import cdiv
from fastmlp.kernels.loss.head import MAX_CLASSES, targets
from fastmlp.kernels.tiles import configs
from fastmlp.kernels.training.layer_table import ALIGNMENT, LayerMemory, Table, table
from fastmlp.kernels.training.recipe import Recipe
from fastmlp.kernels.training.step import train_step
from fastmlp.kernels.training.update import Accumulators

#: Rows of Adam's numbers that go to the device at a time.
_ROWS_AHEAD = 256


def problem(network: Network) -> str | None:
    """Why the kernels cannot run ``network``, or None if they can."""
    if len(network.layers) < 2:
        return "there is no hidden layer"
    if network.widths[-1] > MAX_CLASSES:
        return f"the head has at most {MAX_CLASSES} classes or outputs"
    if isinstance(network.options, LossOptions) and network.options.label_smoothing == 1:
        return "a label smoothing of 1 is torch's own"
    if any(p.data_ptr() % ALIGNMENT for p in network.parameters):
        return "a parameter's memory is not aligned to 16 bytes"
    return None


class FusedExecutor(Executor):
    """Steps whose gradients never reach memory: the optimizer is the epilogue of dW.

    Parameters and optimizer state are torch's own tensors, float32, and 16-bit products round them as they
    are loaded. With ``copies`` they read copies in that dtype instead, half the bytes, which the update
    writes beside the weights. Only for steps with nothing else in between: `prepare` makes the copies anew,
    since not every write to a parameter leaves a trace (``.data``).
    """

    name = "fused"

    def __init__(
        self,
        network: Network,
        rule: Rule,
        dtype: torch.dtype,
        pdl: bool = False,
        family: Literal["update", "epoch"] = "update",
        copies: bool = False,
    ) -> None:
        """``family``: the kernel whose tiles the table of the layers is for."""
        self.network, self.rule, self.dtype, self.pdl = network, rule, dtype, pdl
        self._family = family
        self.device = network.layers[0].weight.device
        self.sums = torch.zeros(2, device=self.device, dtype=torch.float64)
        weights = [layer.weight for layer in network.layers]
        self._has_copies = copies and dtype != torch.float32
        self.copies = [torch.empty_like(w, dtype=dtype) for w in weights] if self._has_copies else weights
        self._rows = 0
        self._like: Like | None = None  # the batch before
        self._key: Hashable = None
        self._known: object = None  # what the recipe, the tile and the table were made of
        self._counted: list[int] = []  # versions of Adam's counts after the last step
        self._looked: object = None  # the same, looked at for the step to come
        self._chunk: tuple[object, int, tuple[Tensor, ...]] | None = None

    def step(self, x: Tensor, y: Tensor, rows: Tensor | None = None, *, count: bool = True) -> Tensor:
        """See `Executor.step`. 2L - 1 launches, which count in any case."""
        x = check_batch(self.network, x, y, rows, self.dtype)
        rows = None if rows is None else rows.contiguous()
        self.prepare((x if rows is None else rows).shape[0])
        loss = self.launch(x.resolve_neg(), y.resolve_neg(), rows, self._next_row())
        self.stepped(1)
        return loss

    def prepare(self, rows: int) -> bool:
        """Make sure that the buffers hold so many rows, and that the copies are the weights'.

        Returns:
            Whether there are new buffers, which no graph knows.
        """
        facts, self._looked = self._looked or self._facts(), None
        new = rows > self._rows or self._known != facts
        if new:
            self.rule = Rule(self.rule.optimizer, self.rule.parameters)
            self._configure()
            self._allocate(max(rows, self._rows))
            self._known = self._facts()
        self.rule.refresh()
        if self._has_copies:
            torch._foreach_copy_(self.copies, [layer.weight.detach() for layer in self.network.layers])
        return new

    def stepped(self, steps: int) -> None:
        """Account for steps that were launched: the optimizer's state, and that the parameters changed."""
        rules.drop_gradients(self.rule.optimizer)
        self.rule.advance(steps)
        self._counted = [count._version for count in self.rule.counts()]
        torch.autograd.graph.increment_version(self.rule.parameters)

    def written(self) -> list[Tensor]:
        """Everything that a step changes and a later one reads."""
        states = [state for p in self.network.parameters for state in self.rule.state(p) if state is not None]
        return [*(p.detach() for p in self.network.parameters), *states, *(c.detach() for c in self.copies)]

    def source(self, x: Tensor, rows: Tensor | None) -> Source:
        """Rows of x as the kernels take them."""
        return _source(self.network, x, rows)

    def launch(self, x: Tensor, y: Tensor, rows: Tensor | None, hypers: Tensor) -> Tensor:
        """The kernels of one step and nothing else, so that a CUDA graph can hold them.

        x (N, K) and ``rows`` as in `step`, hypers (groups, HYPERS) on the device.
        """
        batch = x, y, rows, hypers
        if self._like is None or not self._like(batch):
            self._key = describe(batch)
            self._like = None if self._key is None else Like(batch, self._key)
        tensors = (*batch, *self._buffers)
        if self._key is None:  # not plain tensors
            return self._launches.function(*tensors)
        loss: Tensor = self._launches(self._key, tensors)
        return loss

    def _next_row(self) -> Tensor:
        """The optimizer's numbers for the next step, on the device; sent there when they change."""
        settings, steps = self.rule.settings(), self.rule.steps
        adam = self.rule.kind == "adam"
        if self._chunk is not None:
            known, start, rows = self._chunk
            offset = steps - start if adam else 0
            if known == settings and 0 <= offset < len(rows):
                return rows[offset]
        chunk = self.rule.rows(torch.ones(_ROWS_AHEAD if adam else 1, dtype=torch.float64, device="cpu"))
        rows = to_device(chunk, self.device).unbind()
        self._chunk = settings, steps, rows
        return rows[0]

    def holds(self) -> bool:
        """See `Executor.holds`."""
        self._looked = self._facts()
        return self._looked == self._known and self._counted == [c._version for c in self.rule.counts()]

    def _facts(self) -> object:
        """What may change between two steps: the rule, torch's TF32 switch, where the tensors are.

        A loaded ``state_dict`` or a ``to`` replaces those.
        """
        numbers = [None if t is None else t.data_ptr() for t in (self.network.scale, self.network.shift)]
        return rules.facts(self.rule.optimizer, self.rule.parameters), fp32_precision(), numbers

    def _configure(self) -> None:
        """The recipe, and the tile that suits it."""
        precision = fp32_precision() if self.dtype == torch.float32 else "ieee"
        options = self.network.options
        self.recipe = Recipe(
            options.loss,
            **options._asdict(),
            class_weight=self.network.class_weight,
            rule=self.rule.kind,
            dtype=self.dtype,
            precision=precision,
            pdl=self.pdl,
        )
        largest = max((layer.weight for layer in self.network.layers), key=torch.Tensor.numel)
        self.tile = configs.for_weight(self._family, largest, self.dtype, precision)

    def _allocate(self, rows: int) -> None:
        def matrix(features: int) -> Tensor:
            padded = cdiv(features, ALIGNMENT) * ALIGNMENT
            return torch.empty(rows, padded, device=self.device, dtype=self.dtype)[:, :features]

        layers: list[LayerMemory] = []
        groups = iter(self.rule.groups)
        last = len(self.network.layers) - 1
        for i, ((weight, bias, act, _), copy) in enumerate(zip(self.network.layers, self.copies)):
            n = weight.shape[0]
            y = matrix(n) if i < last else None
            states = [self.rule.state(p) if p is not None else (None, None) for p in (weight, bias)]
            of_weight = next(groups)
            layers.append(
                LayerMemory(
                    weight,
                    bias,
                    copy,
                    layers[-1].y if layers else None,
                    y,
                    y if act.saves_output or y is None else matrix(n),
                    matrix(n),
                    (*states[0], *states[1]),
                    (of_weight, next(groups) if bias is not None else 0),
                    act.name,
                    act.slope,
                )
            )
        tile = self.tile
        self.memory: Table = table(layers, tile.BLOCK_M, tile.BLOCK_N)
        self.partial = torch.empty(
            3 * self.recipe.programs(self.memory, rows), device=self.device, dtype=torch.float32
        )
        self.counters = torch.zeros(self.memory.tiles, device=self.device, dtype=torch.int32)
        self._rows = rows
        numbers = self.recipe.class_weight, self.network.scale, self.network.shift
        self._buffers = [*self.memory.tensors(), self.partial, self.counters, self.sums, *numbers]
        self._launches = Replay(self._step())

    def _step(self) -> Callable[..., Tensor]:
        """The launches of a step, as a function of the batch; it holds the buffers, but not the executor."""
        memory, recipe, tile, network = self.memory, self.recipe, self.tile, self.network
        partial, sums, counters = self.partial, self.sums, self.counters

        def step(x: Tensor, y: Tensor, rows: Tensor | None, hypers: Tensor, *_: Tensor | None) -> Tensor:
            loss = torch.empty((), device=sums.device, dtype=torch.float32)
            into = Accumulators(partial, loss, sums, counters)
            train_step(memory, recipe, _source(network, x, rows), targets(y, rows), hypers, into, tile)
            return loss

        return step


def _source(network: Network, x: Tensor, rows: Tensor | None) -> Source:
    """Rows of x: integers up to 255 are exact in every dtype, x / 255 is not."""
    scale: Number | None = network.scale
    if scale is None:
        scale = 1 / 255 if x.dtype == torch.uint8 else 1.0
    return source(x, rows, scale, network.shift)


def to_device(table: Tensor, device: torch.device) -> Tensor:
    """A copy on ``device`` that the host does not wait for."""
    return table.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else table
