"""Hooks of every kind fire on our modules and their children as on torch's, and count."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules import module as of_all

import fastmlp
from tests.compatibility.compare import same_or_as_good
from tests.compatibility.twins import agree, plain, results, rows, twins

GROUP = "Modules"
Seen = list[tuple[str, str]]
Hook = Callable[..., Any]


def forward(seen: Seen) -> Hook:
    return lambda m, i, o: seen.append(("forward", type(m).__name__)) or o * 2


def forward_pre(seen: Seen) -> Hook:
    return lambda m, i: seen.append(("pre", type(m).__name__)) or tuple(t * 2 for t in i[:1]) + i[1:]


def backward(seen: Seen) -> Hook:
    return lambda m, gi, go: (
        seen.append(("backward", type(m).__name__)) or tuple(None if g is None else g * 2 for g in gi)
    )


def backward_pre(seen: Seen) -> Hook:
    return lambda m, go: seen.append(("backward pre", type(m).__name__)) or tuple(g * 2 for g in go)


#: (what it is called, how a module registers it, how all modules do, the hook).
KINDS: list[tuple[str, str, str, Callable[[Seen], Hook]]] = [
    ("forward hooks", "register_forward_hook", "register_module_forward_hook", forward),
    ("forward-pre hooks", "register_forward_pre_hook", "register_module_forward_pre_hook", forward_pre),
    (
        "full-backward hooks",
        "register_full_backward_hook",
        "register_module_full_backward_hook",
        backward,
    ),
    (
        "full-backward-pre hooks",
        "register_full_backward_pre_hook",
        "register_module_full_backward_pre_hook",
        backward_pre,
    ),
]
every_kind = pytest.mark.parametrize(
    ("one", "all_of", "hook"),
    [
        pytest.param(*rest, id=name, marks=pytest.mark.feature(GROUP, name, dtype="float32"))
        for name, *rest in KINDS
    ],
)


@every_kind
@pytest.mark.parametrize("place", ["first", "activation", "last", "itself", "all modules"])
def test_hooks(
    place: str, one: str, all_of: str, hook: Callable[[Seen], Hook], backend: str, device: str
) -> None:
    """On a child, on the whole, on every module there is: the same calls in their order, the same values."""
    logs: list[Seen] = []

    def run(net: nn.Module, x: Tensor) -> list[Tensor]:
        seen: Seen = []
        logs.append(seen)
        if place == "all modules":
            handle = getattr(of_all, all_of)(hook(seen))
        else:
            where = {"first": "0", "activation": "1", "last": "2", "itself": ""}[place]
            handle = getattr(net.get_submodule(where), one)(hook(seen))
        try:
            hooked = results(net, x)
        finally:
            handle.remove()
        x.grad = None
        net.zero_grad()
        return [*hooked, *results(net, x)]  # without it: nothing of it is left

    agree(plain, backend, device, run=run)
    assert logs[0] == logs[1]
    assert len(logs[0]) == (4 if place == "all modules" else 1)


@every_kind
def test_hooks_of_other_modules(
    one: str, all_of: str, hook: Callable[[Seen], Hook], backend: str, device: str
) -> None:
    """On a loss, a layer with its activation, an MLP, a Dequantize."""
    target = torch.tensor([0, 3, 1, 2, 3, 0], device=device)
    like: dict[str, Any] = {"device": device}
    for made, arguments in (
        (lambda: fastmlp.CrossEntropyLoss(), (target,)),
        (lambda: fastmlp.LinearCrossEntropyLoss(5, 300, **like), (target,)),
        (lambda: fastmlp.LinearAct(5, 4, activation="silu", **like), ()),
        (lambda: fastmlp.MLP(5, [4, 3], **like), ()),
        (lambda: fastmlp.Dequantize(0.5, **like), ()),
    ):
        torch.manual_seed(0)
        module = made()
        plainly, hooked = (rows(device).requires_grad_() for _ in range(2))
        expected = module(plainly * 2 if "pre" in one and "backward" not in one else plainly, *arguments)
        (grad,) = torch.autograd.grad(expected.sum(), plainly)
        seen: Seen = []
        getattr(module, one)(hook(seen))
        value = module(hooked, *arguments)
        value.sum().backward()
        assert len(seen) == 1, module
        torch.testing.assert_close(value, expected * 2 if one == "register_forward_hook" else expected)
        twice = one in ("register_forward_hook", "register_full_backward_hook") or "backward_pre" in one
        torch.testing.assert_close(hooked.grad, grad * 2 if twice else grad)


@pytest.mark.feature(GROUP, "hooks with kwargs, and ones that are always called", dtype="float32")
def test_hooks_with_kwargs(backend: str, device: str) -> None:
    ours, theirs, _ = twins(plain, device)
    logs: list[list[Any]] = []
    for net in (ours, theirs):
        seen: list[Any] = []
        logs.append(seen)
        net.register_forward_pre_hook(lambda m, a, k: seen.append((len(a), sorted(k))), with_kwargs=True)  # noqa: B023
        net.register_forward_hook(
            lambda m, a, k, o: seen.append((len(a), sorted(k), o is None)),  # noqa: B023
            with_kwargs=True,
            always_call=True,
        )
        net(input=rows(device))
        with pytest.raises((RuntimeError, ValueError)):
            net(input=rows(device, features=6))
    assert logs[0] == logs[1]
    assert logs[0][-1][-1] is True  # called although the forward raised


@pytest.mark.feature(GROUP, "state_dict and load_state_dict hooks")
def test_state_dict_hooks(device: str) -> None:
    """They are called in torch's order, and what they change is changed."""
    logs: list[list[str]] = []
    states: list[dict[str, Tensor]] = []
    for net in twins(plain, device)[:2]:
        seen: list[str] = []
        logs.append(seen)
        for name, module in net.named_modules():
            extra = f"{name}.extra".lstrip(".")
            module.register_state_dict_pre_hook(lambda m, p, k, n=name: seen.append("pre " + n))  # noqa: B023
            module.register_state_dict_post_hook(
                lambda m, d, p, _, n=name, e=extra: seen.append("post " + n) or d.update({e: torch.ones(1)})  # noqa: B023
            )
            module.register_load_state_dict_pre_hook(
                lambda m, d, p, *_, n=name, e=extra: seen.append("load " + n) or d.pop(e)  # noqa: B023
            )
            module.register_load_state_dict_post_hook(lambda m, _, n=name: seen.append("loaded " + n))  # noqa: B023
        states.append(net.state_dict())
        net.load_state_dict(dict(states[-1]), strict=True)
    assert logs[0] == logs[1]
    assert len(logs[0]) == 16
    assert list(states[0]) == list(states[1])
    assert len(states[0]) == 8


@pytest.mark.feature(GROUP, "gradient hooks of parameters", dtype="float32")
def test_parameter_hooks(backend: str, device: str) -> None:
    """A tensor hook changes the gradient; one after accumulation sees the whole of it."""
    found = []
    for net in twins(plain, device):
        x = rows(device).to(next(net.parameters()).dtype).requires_grad_()
        sums: dict[str, Tensor] = {}
        for name, parameter in net.named_parameters():
            parameter.register_hook(lambda g: g * 3)
            parameter.register_post_accumulate_grad_hook(lambda p, n=name: sums.update({n: p.grad.clone()}))  # noqa: B023
        found.append([*results(net, x), *(sums[name] for name, _ in net.named_parameters())])
    same_or_as_good(*found, backend, "parameter hooks")
