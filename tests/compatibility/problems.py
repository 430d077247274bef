"""What an operation is tried on: its leaves, the same computation by torch, and nets of linear layers."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastmlp import backends
from fastmlp.activations import resolve
from fastmlp.backends.triton_backend import TritonBackend
from fastmlp.functional import Layer

Function = Callable[..., Tensor]


class At(NamedTuple):
    """Where a problem stands, how many rows its batch has, and the one label of all of them, if any."""

    dtype: torch.dtype = torch.float32
    device: str = "cpu"
    rows: int = 6
    label: int | None = None

    def randn(self, *shape: int) -> Tensor:
        """The same numbers in each dtype, but for their rounding."""
        return torch.randn(shape).to(self.device, self.dtype)

    def labels(self, classes: int, *more: int) -> Tensor:
        labels = torch.randint(classes, (self.rows, *more)).to(self.device)
        return labels if self.label is None else torch.full_like(labels, self.label)


class Problem(NamedTuple):
    """Ours and torch's as functions of the same leaves, of which the first has the batch's rows.

    Torch's takes leaves of any floating dtype. Its constants are of that of the leaves.
    """

    ours: Function
    torchs: Function
    leaves: list[Tensor]

    def run(self, derive: Callable[[Function, list[Tensor]], list[Tensor]]) -> list[list[Tensor]]:
        """What ``derive`` finds of ours, of torch's and of torch's in float64, each of leaves of its own."""
        found = []
        for function, wide in ((self.ours, False), (self.torchs, False), (self.torchs, True)):
            leaves = [t.detach().double() if wide else t.detach() for t in self.leaves]
            found.append(derive(function, [t.requires_grad_() for t in leaves]))
        return found


#: The same numbers in memory: with steps between them, or an element behind the start, for instance.
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda t: t,
    "transposed": lambda t: t.mT.contiguous().mT if t.dim() > 1 else t,
    "with steps": lambda t: torch.stack([t, t], -1)[..., 0],
    "offset": lambda t: torch.cat([t.flatten()[:1], t.flatten()])[1:].view(t.shape),
}


def laid_out(t: Tensor, rng: random.Random) -> Tensor:
    """In one of these ways."""
    return LAYOUTS[rng.choice(list(LAYOUTS))](t)


#: Modules by the number of features, as torch's MLPs are built of them.
ACTIVATIONS: dict[str, Callable[[int], nn.Module]] = {
    "no activation": lambda n: nn.Identity(),
    "ReLU": lambda n: nn.ReLU(),
    "LeakyReLU": lambda n: nn.LeakyReLU(0.2),
    "LeakyReLU, negative slope": lambda n: nn.LeakyReLU(-0.3),
    "PReLU, one slope": lambda n: nn.PReLU(),
    "PReLU, a slope each": nn.PReLU,
    "Sigmoid": lambda n: nn.Sigmoid(),
    "Tanh": lambda n: nn.Tanh(),
    "GELU": lambda n: nn.GELU(),
    "GELU, tanh form": lambda n: nn.GELU(approximate="tanh"),
    "SiLU": lambda n: nn.SiLU(),
}


#: The same as the functional form wants it.
_ACTS = {name: resolve(build(1)) for name, build in ACTIVATIONS.items()}


def activated(name: str, slopes: Sequence[Tensor]) -> nn.Module:
    """The module, with these very tensors as its slopes."""
    module = ACTIVATIONS[name](1)
    for slope in slopes:
        del module.weight
        module.weight = slope
    return module


class Net(NamedTuple):
    """Linear layers with an activation between them, of 5 features."""

    widths: tuple[int, ...]
    activation: str = "Tanh"

    def leaves(self, at: At) -> list[Tensor]:
        """The input, and of each layer weight, bias and slopes, these away from 0 and from each other."""
        found = [at.randn(at.rows, self.widths[0])]
        for i, (k, n) in enumerate(itertools.pairwise(self.widths), start=2):
            found += [at.randn(n, k) / k**0.5, at.randn(n)]
            slopes = [*ACTIVATIONS[self.activation](n).parameters()] if i < len(self.widths) else []
            found += [torch.linspace(0.9, 0.1, s.numel()).to(at.device, at.dtype) for s in slopes]
        return found

    def split(self, params: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor, str, list[Tensor]]]:
        """Weight, bias, activation and slopes of each layer."""
        left, last = iter(params), len(self.widths) - 2
        for i in range(last + 1):
            w, b = next(left), next(left)
            act = self.activation if i < last else "no activation"
            yield w, b, act, [next(left)] if "PReLU" in act else []

    def layers(self, params: Sequence[Tensor]) -> list[Layer]:
        split = self.split(params)
        return [Layer(w, b, _ACTS[act]._replace(weight=s[0] if s else None)) for w, b, act, s in split]

    def torchs(self, x: Tensor, *params: Tensor) -> Tensor:
        for w, b, act, slopes in self.split(params):
            x = F.linear(x, w, b)
            x = F.prelu(x, *slopes) if slopes else ACTIVATIONS[act](1)(x)
        return x


def on_kernels(x: Tensor) -> bool:
    kinds = (TritonBackend, backends.Traced)  # no union: an older Dynamo knows none
    return x.dtype in backends.KERNEL_DTYPES and isinstance(backends.choose(x).backend, kinds)


def by_plan(plan: str, x: Tensor, *params: Tensor) -> str:
    """The plan where the kernels can follow it: elsewhere asking for it is an error."""
    alike = len({p.dtype for p in params}) == 1 and all(p.is_contiguous() for p in (x, *params))
    return plan if alike and on_kernels(x) else "auto"
