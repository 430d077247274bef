"""One hidden layer, wide enough, fits a function as closely as asked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fastmlp.engine import TrainStep
from fastmlp.studies.exercise import Say
from fastmlp.studies.exercises import mlp
from fastmlp.studies.study import Study, cell, check_some, machine, one_thread, place
from fastmlp.training.schedules import factors

if TYPE_CHECKING:
    from matplotlib.figure import Figure

QUESTION = "How closely does one hidden layer of growing width fit a function?"
_LR = 0.03
_POINTS = 512  # that are fitted; the error is measured on as many between them


def target(x: Tensor) -> Tensor:
    """The function that is fitted, on [-1, 1]: waves that grow shorter and higher to the right."""
    return (0.6 + 0.4 * x) * torch.sin(math.pi * (x + 1.5) ** 2)


def approximation(
    widths: Sequence[int] | None = None,
    *,
    seeds: Sequence[int] | None = None,
    steps: int | None = None,
    activation: str = "relu",
    small: bool = False,
    data: Path | str | None = None,
    device: torch.device | str | None = None,
    say: Say = print,
) -> Study:
    """Fit `target` by 1-n-1 nets: Adam, mean squared error, all points in each step.

    Args:
        widths: n; by default 1 to 256.
        seeds: a run each; by default 0, 1, 2, or 0 in a small run.
        steps: of each run; by default 2000, or 500.
        activation: of `fastmlp.activations.NAMES`.
        small: in a second.
        data: None: the study makes its own.
        device: where; None for the GPU if there is one.
        say: told what is done.

    Returns:
        A row for each width: the mean squared error by seed, and the first seed's fit.

    Raises:
        ValueError: ``data`` is given; nothing to try.
    """
    if data is not None:
        raise ValueError(f"data: expected None, since this study fits a function of its own, got {data}")
    widths = ((2, 16, 64) if small else tuple(2**i for i in range(9))) if widths is None else widths
    seeds = (range(1) if small else range(3)) if seeds is None else seeds
    steps = (500 if small else 2000) if steps is None else steps
    check_some(widths=widths, seeds=seeds, steps=range(steps))
    where = place(device)
    grid = torch.linspace(-1, 1, 2 * _POINTS + 1, device=where)[:, None]
    x, between = grid[::2], grid[1::2]
    rows = []
    with one_thread():
        for width in widths:
            fits = [_fit(width, activation, seed, x, between, steps).cpu() for seed in seeds]
            errors = [(fit - target(between.cpu())).square().mean().item() for fit in fits]
            row = {"width": width, "parameters": 3 * width + 1, "mean squared error": errors}
            rows.append(row | {"fit": [fits[0][:, 0].tolist()]})
            say(f"width {width}: mean squared error {cell(errors)}")
    setup = {
        "training": f"{_POINTS} points, {steps} steps of Adam, learning rate {_LR} falls to 0, {activation}",
        "seeds": len(seeds),
        "machine": machine(where),
    }
    return Study("approximation", QUESTION, rows, setup, _draw)


def _fit(width: int, activation: str, seed: int, x: Tensor, between: Tensor, steps: int) -> Tensor:
    """What a net that was fitted on ``x`` (N, 1) gives ``between`` (M, 1) these."""
    torch.manual_seed(seed)
    net = mlp([width], activation, sizes=(1, 1)).to(x.device)
    with torch.no_grad():  # spreads the kinks over [-1, 1], where zeros would put them all at 0
        weight, bias, *_ = net.parameters()
        bias.copy_(weight[:, 0] * torch.linspace(-1, 1, width + 2, device=x.device)[1:-1])
    y = target(x)
    optimizer = torch.optim.Adam(net.parameters(), lr=_LR)
    step = TrainStep(net, nn.MSELoss(), optimizer)
    for factor in factors("linear", steps).tolist():
        optimizer.param_groups[0]["lr"] = _LR * factor
        step(x, y)
    with torch.no_grad():
        return net(between)


def _draw(study: Study) -> Figure:
    """Some fits, and the error over the width."""
    from fastmlp.plots.fits import fits  # matplotlib is needed by pictures alone

    x = torch.linspace(-1, 1, 2 * _POINTS + 1, device="cpu")[1::2]
    return fits(x.tolist(), target(x).tolist(), study.rows, title=study.question, note=study.caption())
