"""Learning-rate factors against torch's schedulers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fastmlp.training.schedules import NAMES, factors


@pytest.mark.parametrize("steps", [7, 10, 100, 235])
def test_one_cycle_is_torchs(steps: int) -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.3)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=0.3, total_steps=steps, cycle_momentum=False
    )
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if len(rates) < steps:
            scheduler.step()
    assert (0.3 * factors("one-cycle", steps)).tolist() == pytest.approx(rates, rel=1e-9, abs=1e-12)


def test_the_others() -> None:
    assert factors(None, 3).tolist() == factors("constant", 3).tolist() == [1, 1, 1]
    assert factors("linear", 4).tolist() == [1, 0.75, 0.5, 0.25]
    assert factors("cosine", 2).tolist() == pytest.approx([1, 0.5])
    assert factors(lambda progress: 2 - progress, 2).tolist() == [2, 1.5]
    for name in NAMES:
        assert factors(name, 0).shape == (0,)
        assert factors(name, 1).shape == (1,)
        assert factors(name, 50).dtype == torch.float64


def test_errors() -> None:
    with pytest.raises(ValueError, match="schedule: expected one of constant, linear, cosine, one-cycle"):
        factors("step", 3)
    with pytest.raises(ValueError, match="finite"):
        factors(lambda _: float("nan"), 3)
