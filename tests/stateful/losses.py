"""Programs over the functional losses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from hypothesis import strategies as st
from torch import Tensor
from torch.func import grad, vmap
from torch.utils.checkpoint import checkpoint

from tests.stateful import ambient
from tests.stateful.nets import _named, _threads
from tests.stateful.sides import Odd, Side, relaid

KINDS = ("cross_entropy", "linear_cross_entropy", "mse_loss")
TARGETS = ("classes", "classes", "int32", "uint8", "probabilities", "out of range", "float classes", "longer")
WEIGHTS = ("none", "none", "good", "row", "column", "matrix", "other dtype", "longer")
EVENTS = ("nothing", "nothing", "input", "target", "weight", "matrix", "matrix data")
WAYS = ("backward", "backward", "twice", "double", "threads", "checkpoint", "func.grad", "vmap")


def calls(layouts: st.SearchStrategy[str], **drawn: st.SearchStrategy[Any]) -> st.SearchStrategy[LossCall]:
    """Losses of operands laid out so; of the other fields those that are ``drawn``."""
    return st.builds(
        LossCall,
        kind=st.sampled_from(KINDS),
        dtype=st.sampled_from(["float32", "float32", "float64", "bfloat16"]),
        layout=layouts,
        target=st.sampled_from(TARGETS),
        target_layout=layouts,
        weight=st.sampled_from(WEIGHTS),
        bias=st.booleans(),
        reduction=st.sampled_from(["mean", "sum", "none"]),
        odd=st.sampled_from(["nothing", "nothing", "x", "target", "weight", "matrix"]),
        **drawn,
    )


class LossCall(NamedTuple):
    """A loss, and what is done with it."""

    kind: str = "cross_entropy"
    rows: int = 3
    classes: int = 4
    inner: tuple[int, ...] = ()  # of images
    dtype: str = "float32"
    layout: str = "contiguous"
    target: str = "classes"
    target_layout: str = "contiguous"
    weight: str = "none"
    bias: bool = False
    reduction: str = "mean"
    ignore: int = -100
    smoothing: float = 0.0
    odd: str = "nothing"  # which tensor is of a type of its own
    contexts: tuple[str, ...] = ()
    event: str = "nothing"
    way: str = "backward"
    seed: int = 0

    def run(self, side: Side, exact: bool) -> dict[str, Any]:
        """Do it to one side; ``exact`` in float64."""
        tensors = self._tensors(exact)
        loss = self._loss(side, tensors, exact)
        inputs = {f"grad {n}": t for n, t in tensors.items() if t is not None and t.requires_grad}
        first = next(iter(inputs.values()))
        with ambient.entered(self.contexts, exact, ambient.AROUND):
            if self.way == "func.grad":
                return {"grad": grad(lambda x: loss(x).sum())(first.detach())}
            if self.way == "vmap":
                return {"vmap": vmap(loss)(torch.stack([first, -first]))}
            value = checkpoint(loss, first, use_reentrant=False) if self.way == "checkpoint" else loss(first)
            facts = (value.requires_grad, value.is_inference(), value.dtype, type(value))
            found = {"loss": value.detach().clone(), "facts": facts}
            self._happens(tensors)
            if value.requires_grad:
                found |= self._differentiate(value, inputs)
            return found

    def _tensors(self, exact: bool) -> dict[str, Tensor | None]:
        torch.default_generator.manual_seed(self.seed)
        dtype = getattr(torch, self.dtype)

        def normal(*shape: int) -> Tensor:
            values = torch.randn(*shape).to(dtype)
            return relaid(values.double() if exact else values, self.layout)

        c, rows = self.classes, (self.rows, *(self.inner if self.kind == "cross_entropy" else ()))
        if self.kind == "linear_cross_entropy":
            made: dict[str, Tensor | None] = {"x": normal(self.rows, 5), "matrix": normal(c, 5)}
            made["bias"] = normal(c) if self.bias else None
        else:
            made = {"x": normal(rows[0], c, *rows[1:])}
        if self.kind == "mse_loss":
            made["target"] = normal(*rows, c)
        else:
            made["target"] = self._target(rows, c, made["x"].dtype)
            made["weight"] = self._weight(c, made["x"].dtype)
        if made.get(self.odd) is not None:
            made[self.odd] = made[self.odd].as_subclass(Odd)  # type: ignore[union-attr]
        for name in ("x", "matrix", "bias"):
            if made.get(name) is not None:
                made[name].requires_grad_()  # type: ignore[union-attr]
        return made

    def _target(self, rows: tuple[int, ...], c: int, dtype: torch.dtype) -> Tensor:
        if self.target == "probabilities":
            found = torch.rand(rows[0], c, *rows[1:]).softmax(1).to(dtype)
        else:
            found = torch.randint(c + 2 * (self.target == "out of range"), rows)
            found = found.to(
                {"int32": torch.int32, "uint8": torch.uint8, "float classes": dtype}.get(
                    self.target, torch.int64
                )
            )
        if self.target == "longer":
            found = torch.cat([found, found[:1]])
        return relaid(found, "contiguous" if self.target_layout == "negated" else self.target_layout)

    def _weight(self, c: int, dtype: torch.dtype) -> Tensor | None:
        if self.weight == "none":
            return None
        values = torch.rand(c + (self.weight == "longer")) + 0.1
        shapes = {"row": (1, c), "column": (c, 1), "matrix": (c // 2, 2)}
        if self.weight == "matrix" and c % 2:
            return None
        if self.weight == "other dtype":
            dtype = torch.float64 if dtype != torch.float64 else torch.float32
        return relaid(values.to(dtype).view(shapes.get(self.weight, (-1,))), self.layout)

    def _loss(self, side: Side, tensors: dict[str, Tensor | None], exact: bool) -> Callable[[Tensor], Tensor]:
        options: dict[str, Any] = {"reduction": self.reduction}
        if self.kind != "mse_loss":
            options |= {"label_smoothing": self.smoothing, "weight": tensors["weight"]}
            options |= {} if self.target == "probabilities" else {"ignore_index": self.ignore}

        def loss(x: Tensor) -> Tensor:
            with ambient.entered(self.contexts, exact, ambient.FORWARD):
                if self.kind == "mse_loss":
                    return side.mse_loss(x, tensors["target"], **options)
                if self.kind == "cross_entropy":
                    return side.cross_entropy(x, tensors["target"], **options)
                return side.linear_cross_entropy(
                    x, tensors["matrix"], tensors["target"], tensors["bias"], **options
                )

        return loss

    @torch.no_grad()
    def _happens(self, tensors: dict[str, Tensor | None]) -> None:
        name, _, how = self.event.partition(" ")
        tensor = tensors.get("x" if name == "input" else name)
        if tensor is None or self.way == "checkpoint":  # which runs the forward again, on what is there then
            return
        if how == "data":
            tensor.data = -tensor.data.clone()
        elif name == "target" and not tensor.is_floating_point():
            tensor.zero_()
        else:
            tensor.mul_(2)

    def _differentiate(self, value: Tensor, inputs: dict[str, Tensor]) -> dict[str, Any]:
        torch.default_generator.manual_seed(self.seed + 1)
        upstream = torch.rand(value.shape, device="cpu", dtype=torch.float32).to(value.dtype) + 0.5
        leaves = [*inputs.values()]
        if self.way == "twice":
            value.backward(upstream, retain_graph=True)
            first = _named(inputs, [t.grad for t in leaves])
            value.backward(upstream)
            return {**first, **{f"{n} twice": g for n, g in _named(inputs, [t.grad for t in leaves]).items()}}
        if self.way == "double":
            first = torch.autograd.grad(value, leaves, upstream, create_graph=True)
            total = torch.stack([g.square().sum() for g in first]).sum()
            if not total.requires_grad:
                return _named(inputs, first)
            return _named(inputs, torch.autograd.grad(total, leaves, allow_unused=True))
        if self.way == "threads":
            return _threads(
                lambda i: torch.autograd.grad(value, leaves, (i + 1) * upstream, retain_graph=True)
            )
        value.backward(upstream)
        return _named(inputs, [t.grad for t in leaves])
