"""Which optimizers the epilogue can be, and the numbers it takes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from fastmlp.engine import rules


def parameters() -> list[nn.Parameter]:
    return [nn.Parameter(torch.ones(4, 3)), nn.Parameter(torch.ones(4))]


def test_kinds() -> None:
    p = parameters()
    for optimizer, kind in (
        (torch.optim.SGD(p, lr=0.1), "sgd"),
        (torch.optim.SGD(p, lr=0.1, momentum=0.9), "momentum"),
        (torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True), "nesterov"),
        (torch.optim.Adam(p), "adam"),
        (torch.optim.AdamW(p), "adam"),
    ):
        rule = rules.recognise(optimizer, p)
        assert isinstance(rule, rules.Rule)
        assert rule.kind == kind


class MySGD(torch.optim.SGD):
    pass


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda p: torch.optim.Adagrad(p), "Adagrad is not among"),
        (lambda p: MySGD(p, lr=0.1), "MySGD is not among"),
        (lambda p: torch.optim.SGD(p, lr=0.1, maximize=True), "maximize"),
        (lambda p: torch.optim.AdamW(p, amsgrad=True), "amsgrad"),
        (lambda p: torch.optim.AdamW(p, lr=torch.tensor(0.1)), "tensors"),
        (lambda p: torch.optim.SGD(p[:1], lr=0.1), "not just the network's"),
        (lambda p: torch.optim.SGD([*p, nn.Parameter(torch.ones(1))], lr=0.1), "not just the network's"),
        (
            lambda p: torch.optim.SGD([{"params": p[:1], "momentum": 0.9}, {"params": p[1:]}], lr=0.1),
            "differ in kind",
        ),
    ],
)
def test_reasons(make: Any, words: str) -> None:
    p = parameters()
    reason = rules.recognise(make(p), p)
    assert isinstance(reason, str)
    assert words in reason


def test_hooks_and_own_steps() -> None:
    p = parameters()
    optimizer = torch.optim.SGD(p, lr=0.1)
    torch.optim.lr_scheduler.StepLR(optimizer, 1)  # wraps the step to count the calls
    assert isinstance(rules.recognise(optimizer, p), rules.Rule)
    optimizer.register_step_post_hook(lambda *_: None)
    assert "hooks" in str(rules.recognise(optimizer, p))
    optimizer = torch.optim.SGD(p, lr=0.1)
    optimizer.step = lambda: None  # type: ignore[method-assign]
    assert "step of its own" in str(rules.recognise(optimizer, p))


def test_a_scheduler_sees_the_steps(recwarn: pytest.WarningsRecorder) -> None:
    p = parameters()
    optimizer = torch.optim.SGD(p, lr=0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    rule = rules.recognise(optimizer, p)
    assert isinstance(rule, rules.Rule)
    rule.advance(3)
    scheduler.step()
    assert not [w for w in recwarn if "lr_scheduler.step()" in str(w.message)]
    assert rule.rows(torch.ones(1, dtype=torch.float64))[0, 0, 0].item() == pytest.approx(0.05)


def test_states_that_differ() -> None:
    p = parameters()
    optimizer = torch.optim.SGD(p, lr=0.1, momentum=0.9)
    optimizer.state[p[0]]["momentum_buffer"] = torch.zeros(4, 3)
    assert "others none" in str(rules.recognise(optimizer, p))
    optimizer.state[p[1]]["momentum_buffer"] = torch.zeros(4, dtype=torch.float64)
    assert "not float32" in str(rules.recognise(optimizer, p))


def test_facts_know_whose_group_a_parameter_is_in() -> None:
    p = parameters()
    optimizer = torch.optim.SGD([{"params": p[:1]}, {"params": p[1:], "lr": 0.2}], lr=0.1)
    before, (first, second) = rules.facts(optimizer, p), optimizer.param_groups
    first["params"], second["params"] = second["params"], first["params"]
    assert rules.facts(optimizer, p) != before
    first["params"], second["params"] = second["params"], first["params"]
    assert rules.facts(optimizer, p) == before


def test_rows_of_sgd() -> None:
    p = parameters()
    groups = [{"params": p[:1], "weight_decay": 0.5}, {"params": p[1:], "lr": 0.2}]
    optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9, dampening=0.25)
    rule = rules.recognise(optimizer, p)
    assert isinstance(rule, rules.Rule)
    assert rule.groups == [0, 1]
    rows = rule.rows(torch.tensor([1.0, 0.5], dtype=torch.float64))
    assert rows.dtype == torch.float32
    assert rows.shape == (2, 2, rules.HYPERS)
    assert torch.allclose(rows[:, 0, :4], torch.tensor([[0.1, 0.5, 0.9, 1.0], [0.05, 0.5, 0.9, 0.75]]))
    assert torch.allclose(rows[:, 1, :4], torch.tensor([[0.2, 0, 0.9, 1.0], [0.1, 0, 0.9, 0.75]]))
    rule.advance(1)
    assert rule.rows(torch.ones(1, dtype=torch.float64))[0, 0, 3].item() == 0.75


def test_rows_of_adam_go_on_where_torch_stopped() -> None:
    p = parameters()
    optimizer = torch.optim.AdamW(p, lr=0.01, betas=(0.9, 0.99), weight_decay=0.1)
    for parameter in p:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    rule = rules.recognise(optimizer, p)
    assert isinstance(rule, rules.Rule)
    row = rule.rows(torch.ones(1, dtype=torch.float64))[0, 0].tolist()
    expected = [0.01 / (1 - 0.9**2), 0.0, 1 - 0.01 * 0.1, 0.1, 0.99, 0.01, 1e-8, (1 - 0.99**2) ** 0.5]
    assert row == pytest.approx(expected, rel=1e-6)
    optimizer.step()  # by torch, behind the rule's back
    rule.refresh()
    assert rule.steps == 2


def test_widths_agree_with_the_kernels() -> None:
    from fastmlp.kernels.training import optimizers

    assert optimizers.HYPERS.value == rules.HYPERS
