"""The optimizers' device function against torch.optim on the same elements."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import triton
import triton.language as tl
from torch import nn

from fastmlp.engine import rules
from fastmlp.kernels.launch import launch
from fastmlp.kernels.training.optimizers import RULES, State, apply
from tests.classifiers import OPTIMIZERS
from tests.numerics import assert_as_good_as_torch


@triton.jit
def _kernel(w_ptr, g_ptr, first_ptr, second_ptr, hyper_ptr, RULE: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    state = State(tl.load(w_ptr + i), tl.load(first_ptr + i), tl.load(second_ptr + i))
    state = apply(state, tl.load(g_ptr + i), hyper_ptr, RULE)
    tl.store(w_ptr + i, state.value)
    tl.store(first_ptr + i, state.first)
    tl.store(second_ptr + i, state.second)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_steps(name: str, device: str) -> None:
    """Ten steps on 512 weights with gradients of all sizes; weights and states as good as torch's."""
    start = torch.randn(512, device=device)
    theirs, exact = nn.Parameter(start.clone()), nn.Parameter(start.double())
    twin = nn.Parameter(start.clone())  # of the second group, where there is one
    optimizers: list[Any] = [OPTIMIZERS[name]([p, nn.Parameter(twin.to(p.dtype))]) for p in (theirs, exact)]
    rule = rules.recognise(OPTIMIZERS[name]([twin, nn.Parameter(start.clone())]), [twin])
    mine = OPTIMIZERS[name]([twin])
    rule = rules.recognise(mine, [twin])
    assert isinstance(rule, rules.Rule)
    assert rule.kind in RULES
    w, first, second = start.clone(), torch.zeros(512, device=device), torch.zeros(512, device=device)
    for _ in range(10):
        gradient = torch.randn(512, device=device) * 10 ** torch.empty(512, device=device).uniform_(-4, 1)
        row = rule.rows(torch.ones(1, dtype=torch.float64))[0, 0].contiguous().to(device)
        launch(_kernel, (1,), w, gradient, first, second, row, RULE=rule.kind, BLOCK=512)
        rule._fresh = False
        rule.steps += 1
        for p, optimizer in zip((theirs, exact), optimizers):
            p.grad = gradient.to(p.dtype)
            optimizer.step()
    assert_as_good_as_torch(w, theirs.detach(), exact.detach(), "weight")
    for key, value in (("momentum_buffer", first), ("exp_avg", first), ("exp_avg_sq", second)):
        state = optimizers[0].state[theirs].get(key)
        if state is not None:
            assert_as_good_as_torch(value, state, optimizers[1].state[exact][key], key)
