"""clip_norm against torch's own loop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fastmlp
from fastmlp.training import TrainingError, fit
from fastmlp.training.clipping import Clip, NotFiniteError

X, Y = torch.randn(40, 6) * 5, torch.randint(3, (40,))


def net() -> fastmlp.Sequential:
    torch.manual_seed(0)
    return fastmlp.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 3))


def by_hand(limit: float, device: str) -> list[torch.Tensor]:
    model, generator = net().to(device), torch.Generator(device).manual_seed(0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    for _ in range(2):
        for rows in torch.randperm(40, generator=generator, device=device).split(16):
            optimizer.zero_grad()
            fastmlp.CrossEntropyLoss()(model(X.to(device)[rows]), Y.to(device)[rows]).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), limit)
            optimizer.step()
    return list(model.parameters())


def run(model: nn.Module, device: str, **options: Any) -> Any:
    optimizer = torch.optim.SGD(model.to(device).parameters(), lr=0.5, momentum=0.9)
    options = {"epochs": 2, "batch_size": 16, "device": device, "optimizer": optimizer, **options}
    return fit(model, (X, Y), **options)


def test_as_torch(device: str) -> None:
    """To the bit; what need not be clipped is not; nothing is left on the optimizer."""
    model = net().to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    history = run(model, device, clip_norm=0.2, optimizer=optimizer)
    for ours, theirs in zip(model.parameters(), by_hand(0.2, device)):
        torch.testing.assert_close(ours, theirs)
    assert (history.engine, history.reason) == (
        "eager",
        "clip_norm needs all gradients before the first update",
    )
    assert not optimizer._optimizer_step_pre_hooks
    run(unclipped := net(), device, engine="eager")
    run(wide := net(), device, clip_norm=1e6)
    assert all(map(torch.equal, unclipped.parameters(), wide.parameters()))
    assert not torch.allclose(unclipped[0].weight, model[0].weight)


@pytest.mark.parametrize("engine", ["fused", "graph", "persistent"])
def test_engines_that_cannot(engine: str, device: str) -> None:
    with pytest.raises(ValueError, match=f"engine: '{engine}' cannot run this: clip_norm needs all"):
        run(net(), device, engine=engine, clip_norm=1.0)


def test_bad_limits(device: str) -> None:
    for wrong in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="clip_norm: expected a positive number, got"):
            run(net(), device, clip_norm=wrong)
    model = net().to(device)
    adam = torch.optim.Adam(model.parameters(), fused=True)
    with pytest.raises(ValueError, match="clip_norm: with float16, expected no optimizer of fused=True"):
        run(model, device, clip_norm=1.0, dtype=torch.float16, optimizer=adam)


def test_a_norm_that_is_not_finite(device: str, tmp_path: Path) -> None:
    """On a CPU before it does harm; on a GPU, where a look costs, at the end of the epoch."""

    class Burst(nn.Module):
        """A loss that is finite, with gradients that are not."""

        calls = 0

        def forward(self, logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            self.calls += logits.requires_grad
            value = nn.functional.cross_entropy(logits, y)
            if self.calls == 5:  # the second step of the second epoch
                value = (
                    value + (logits - logits.detach()).abs().sum().sqrt() * 0 + logits.sum() * float("inf")
                )
                return value.nan_to_num(0, 0, 0)
            return value

    model, seen = net(), []

    def note(_: int) -> None:
        seen.append([p.clone() for p in model.parameters()])

    step = ", step 1 of 3" if device == "cpu" else ""
    message = (
        rf"the norm of the gradients is \w+( finite)? in epoch 2{step}; a smaller lr may help; the last good"
    )
    with pytest.raises(TrainingError, match=message):
        run(model, device, clip_norm=1.0, loss=Burst(), checkpoint=tmp_path / "run", on_batch=note)
    if device == "cpu":
        assert all(map(torch.equal, model.parameters(), seen[-1]))


def test_norms_that_are_looked_at_later() -> None:
    """One of several that is not finite is enough."""
    weight = nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    with Clip(optimizer, 1.0, looks=False) as clip:
        for gradient in (1.0, float("inf"), 1.0):
            weight.grad = torch.full((2,), gradient)
            optimizer.step()
        with pytest.raises(NotFiniteError):
            clip.check()
        clip.check()


def test_a_checkpoint_knows(device: str, tmp_path: Path) -> None:
    run(net(), device, epochs=1, clip_norm=0.5, checkpoint=tmp_path / "run")
    with pytest.raises(ValueError, match=r"clip_norm was 0\.5 and is None"):
        run(net(), device, engine="eager", checkpoint=tmp_path / "run", resume=True)
    with pytest.raises(ValueError, match=r"clip_norm was 0\.5 and is 0\.25"):
        run(net(), device, clip_norm=0.25, checkpoint=tmp_path / "run", resume=True)
    run(net(), device, clip_norm=0.25, checkpoint=tmp_path / "run", resume=True, changed=("clip_norm",))
    run(whole := net(), device, clip_norm=0.5)
    run(net(), device, epochs=1, clip_norm=0.5, checkpoint=tmp_path / "run")
    run(resumed := net(), device, clip_norm=0.5, checkpoint=tmp_path / "run", resume=True)
    assert all(map(torch.equal, whole.parameters(), resumed.parameters()))
