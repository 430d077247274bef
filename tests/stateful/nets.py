"""Programs over a net: a forward, something that happens, and one of the ways to differentiate."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import functional_call, grad, jvp, vmap
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.checkpoint import checkpoint

from fastmlp.backends import requested
from fastmlp.kernels.launch import INTERPRETED
from tests.stateful import ambient
from tests.stateful.sides import Odd, Side, relaid

#: What happens between forward and backward: to a layer's parameters, the input or the output.
EVENTS = (
    *("nothing", "nothing", "weight in place", "bias in place", "weight data", "bias data", "input in place"),
    *("output in place", "output data", "cast", "assign", "froze", "weight resized"),
)
WAYS = (
    *("backward", "backward", "grad", "twice", "double", "threads", "checkpoint", "reentrant checkpoint"),
    *("forward threads", "vmap", "func.grad", "jvp", "nothing"),
)


#: Those that trace, too.
ALL_WAYS = (*WAYS, "dual", "jit.trace", "make_fx")


class NetCall(NamedTuple):
    """What is done with a net."""

    lead: tuple[int, ...] = (3,)
    layout: str = "contiguous"
    kind: str = "plain"  # of the input: "plain", "odd" (a type of its own), "inference", "other dtype"
    input_grad: bool = True
    contexts: tuple[str, ...] = ()
    event: str = "nothing"
    layer: int = 0
    way: str = "backward"
    upstream: str = "contiguous"
    seed: int = 0

    def run(self, side: Side, exact: bool) -> dict[str, Any]:
        """Do it to one side; ``exact`` for its copy in float64."""
        layers = side.layers
        for p in side.net.parameters():
            p.grad = None
        x = self._input(layers[0].in_features, side.dtype, exact)
        with ambient.entered(self.contexts, exact, ambient.AROUND):
            forward = lambda x: self._forward(side, x, exact)  # noqa: E731
            if self.way in _TRANSFORMS:
                return _TRANSFORMS[self.way](side, forward, x)
            if self.way == "forward threads":
                return _threads(lambda i: _first(forward(x * (i + 1)), [*side.net.parameters()]))
            if "checkpoint" in self.way:
                y = checkpoint(forward, x, use_reentrant=self.way.startswith("reentrant"))
            else:
                y = forward(x)
            found = {
                "output": y.detach().clone(),
                "facts": (y.requires_grad, y.is_inference(), y.dtype, type(y)),
            }
            self._happens(side, x, y)
            if y.requires_grad:
                found |= self._differentiate(side, x, y)
        return found | {"input": x.detach().clone()}

    def _input(self, features: int, dtype: torch.dtype, exact: bool) -> Tensor:
        torch.default_generator.manual_seed(self.seed)
        values = torch.randn(*self.lead, features)
        if self.kind == "other dtype" and not exact:
            dtype = torch.float32 if dtype == torch.float64 else torch.float64
        values = values.to(torch.bfloat16 if dtype == torch.bfloat16 else torch.float32).to(dtype)
        if self.kind == "inference":
            with torch.inference_mode():
                return relaid(values, self.layout)
        x = relaid(values, self.layout)
        if self.kind == "odd":
            x = x.as_subclass(Odd)
        return x.requires_grad_(self.input_grad)

    def _forward(self, side: Side, x: Tensor, exact: bool) -> Tensor:
        with ambient.entered(self.contexts, exact, ambient.FORWARD):
            return side.net(x)

    @torch.no_grad()
    def _happens(self, side: Side, x: Tensor, y: Tensor) -> None:
        if "checkpoint" in self.way:  # which runs the forward again, on whatever is there then
            return
        layer = side.layers[self.layer % len(side.layers)]
        which, _, how = self.event.partition(" ")
        p = {"weight": layer.weight, "bias": layer.bias, "input": x, "output": y}.get(which)
        if self.event == "cast":
            side.net.to(torch.float32 if side.dtype == torch.float64 else torch.float64)
        elif self.event == "assign":
            side.net.load_state_dict({k: -v for k, v in side.net.state_dict().items()}, assign=True)
        elif self.event == "froze":
            layer.requires_grad_(not layer.weight.requires_grad)
        elif p is not None and how == "in place":
            p.neg_()
        elif p is not None and how == "data":
            p.data = -p.data.clone()
        elif p is not None and how == "resized":
            p.data = torch.cat([p.data, p.data])
            p.data = p.data[: len(p) // 2]

    def _differentiate(self, side: Side, x: Tensor, y: Tensor) -> dict[str, Any]:
        torch.default_generator.manual_seed(self.seed + 1)
        upstream = relaid(torch.randn(y.shape, device="cpu", dtype=torch.float32).to(y.dtype), self.upstream)
        inputs = {f"grad {n}": t for n, t in [("x", x), *side.net.named_parameters()] if t.requires_grad}
        if self.way == "grad":
            return _named(inputs, torch.autograd.grad(y, [*inputs.values()], upstream, allow_unused=True))
        if self.way == "twice":
            y.backward(upstream, retain_graph=True)
            y.backward(upstream)
        elif self.way == "double":
            first = torch.autograd.grad(y, [*inputs.values()], upstream, allow_unused=True, create_graph=True)
            total = sum(g.square().sum() for g in first if g is not None)
            if not isinstance(total, Tensor) or not total.requires_grad:
                return _named(inputs, first)
            second = torch.autograd.grad(total, [*inputs.values()], allow_unused=True)
            return _named(inputs, [s if s is not None else torch.zeros(()) for s in second])
        elif self.way == "threads":
            leaves = [*inputs.values()]
            # torch's own hooks of modules keep what they were given between two calls.
            hooked = any(m._backward_hooks for m in side.net.modules())
            return _threads(
                lambda i: torch.autograd.grad(
                    y, leaves, (i + 1) * upstream, retain_graph=True, allow_unused=True
                ),
                turns=hooked,
            )
        elif self.way != "nothing":
            y.backward(upstream)
        return _named(inputs, [t.grad for t in inputs.values()])


def _named(inputs: dict[str, Tensor], grads: Any) -> dict[str, Any]:
    """Each gradient by its name, a copy."""
    return {name: None if g is None else g.detach().clone() for name, g in zip(inputs, grads)}


def _first(y: Tensor, inputs: list[Tensor]) -> list[Tensor | None]:
    leaves = [p for p in inputs if p.requires_grad]
    if not y.requires_grad or not leaves:
        return [y.detach()]
    return [y.detach(), *torch.autograd.grad(y.square().sum(), leaves, allow_unused=True)]


def _threads(work: Callable[[int], Any], count: int = 4, turns: bool = False) -> dict[str, Any]:
    """What ``work`` gives in threads that begin together; in Triton's interpreter one by one."""
    found: list[Any] = [None] * count
    turns |= INTERPRETED and requested() == "triton"
    start = threading.Barrier(1 if turns else count)

    def one(i: int) -> None:
        start.wait()
        try:
            found[i] = work(i)
        except Exception as error:
            found[i] = error

    threads = [threading.Thread(target=one, args=(i,)) for i in range(count)]
    for thread in threads:
        thread.start()
        if turns:
            thread.join()
    for thread in threads:
        thread.join()
    for result in found:
        if isinstance(result, Exception):
            raise result
    return {f"thread {i}, {j}": t for i, result in enumerate(found) for j, t in enumerate(result)}


def _vmapped(side: Side, forward: Callable[[Tensor], Tensor], x: Tensor) -> dict[str, Any]:
    return {"vmap": vmap(forward)(torch.stack([x, -x]))}


def _functional(side: Side, forward: Callable[[Tensor], Tensor], x: Tensor) -> dict[str, Any]:
    params = {name: p.detach() for name, p in side.net.named_parameters()}

    def total(params: dict[str, Tensor]) -> Tensor:
        return functional_call(side.net, params, (x.detach(),)).square().sum()

    return dict(sorted(grad(total)(params).items()))


def _tangent(side: Side, forward: Callable[[Tensor], Tensor], x: Tensor) -> dict[str, Any]:
    value, tangent = jvp(forward, (x.detach(),), (torch.ones_like(x.detach()),))
    return {"value": value, "tangent": tangent}


def _dual(side: Side, forward: Callable[[Tensor], Tensor], x: Tensor) -> dict[str, Any]:
    with forward_ad.dual_level():
        value, tangent = forward_ad.unpack_dual(forward(forward_ad.make_dual(x.detach(), -x.detach())))
    return {"value": value.detach(), "tangent": None if tangent is None else tangent.detach()}


def _traced(side: Side, forward: Callable[[Tensor], Tensor], x: Tensor) -> dict[str, Any]:
    return {"traced": torch.jit.trace(forward, x.detach(), check_trace=False)(2 * x.detach()).detach()}


def _graphed(side: Side, forward: Callable[[Tensor], Tensor], x: Tensor) -> dict[str, Any]:
    return {"graph": make_fx(forward)(x.detach())(2 * x.detach()).detach()}


_TRANSFORMS = {
    "vmap": _vmapped,
    "func.grad": _functional,
    "jvp": _tangent,
    "dual": _dual,
    "jit.trace": _traced,
    "make_fx": _graphed,
}
