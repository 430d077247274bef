"""A picture as a network: from a pixel's place to its colour, by a narrow deep net on Fourier features.

Source: Tancik et al., "Fourier Features Let Networks Learn High Frequency Functions in Low Dimensional
Domains", 2020. Writes a PNG of the net before the training, after it, and the picture itself.

python examples/picture.py --image photo.jpg
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
import typer
from matplotlib.figure import Figure
from PIL import Image
from sklearn.datasets import load_sample_image
from torch import Tensor, nn

import fastmlp


def picture(path: Path | None, width: int) -> Tensor:
    """RGB (height, width, 3) in [0, 1]; scikit-learn's flower where there is no path."""
    image = Image.open(path).convert("RGB") if path else Image.fromarray(load_sample_image("flower.jpg"))
    size = (width, max(round(image.height * width / image.width), 1))
    return torch.from_numpy(np.asarray(image.resize(size, Image.Resampling.LANCZOS)) / np.float32(255))


def features(height: int, width: int, count: int, scale: float) -> Tensor:
    """Sines and cosines of random waves at every pixel, (height * width, 2 * count)."""
    places = torch.cartesian_prod(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width))
    waves = places @ torch.randn(2, count) * (scale * math.pi)
    return torch.cat([waves.sin(), waves.cos()], dim=1)


def narrow_net(inputs: int, width: int, depth: int, outputs: int) -> fastmlp.Sequential:
    """``depth`` hidden layers of one width with ReLU."""
    layers: list[nn.Module] = []
    for i in range(depth):
        linear = nn.Linear(width if i else inputs, width)
        nn.init.kaiming_normal_(linear.weight, nonlinearity="relu")
        layers += [linear, nn.ReLU()]
    return fastmlp.Sequential(*layers, nn.Linear(width, outputs))


def psnr(found: Tensor, wanted: Tensor) -> float:
    """Peak signal to noise, in dB, of colours in [0, 1]."""
    return -10 * math.log10((found - wanted).square().mean().item())


def main(
    image: Path | None = None,
    size: int = 160,
    width: int = 64,
    depth: int = 6,
    steps: int = 1500,
    batch_size: int = 4096,
    lr: float = 3e-3,
    seed: int = 0,
    device: str = "cuda" if torch.cuda.is_available() else "cpu",
    out: Path = Path("picture.png"),
) -> None:
    """Fit the net, and draw what it makes of the picture."""
    torch.manual_seed(seed)
    wanted = picture(image, size)
    height = len(wanted)
    x = features(height, size, count=width // 2, scale=4.0).to(device)
    y = wanted.flatten(0, 1).to(device)
    net = narrow_net(x.shape[1], width, depth, outputs=3).to(device)
    optimizer = torch.optim.Adam(net.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    step = fastmlp.TrainStep(net, fastmlp.MSELoss(), optimizer)

    @torch.no_grad()
    def drawn() -> Tensor:
        return net(x).clamp(0, 1).cpu().view_as(wanted)

    before = drawn()
    for i in range(1, steps + 1):
        rows = torch.randint(len(x), (batch_size,), device=device)
        loss = step(x[rows], y[rows])
        schedule.step()
        if i % max(steps // 5, 1) == 0:
            print(f"step {i:5d}  squared error {loss.item():.5f}")
    after = drawn()

    figure = Figure(figsize=(12, 4 * height / size + 0.3), layout="constrained")
    titles = ("before", f"after {steps} steps: {psnr(after, wanted):.1f} dB", "the picture")
    for axes, title, shown in zip(figure.subplots(1, 3), titles, (before, after, wanted)):
        axes.imshow(shown.numpy())
        axes.set_title(title)
        axes.axis("off")
    figure.savefig(out, dpi=100, bbox_inches="tight")
    print(f"{psnr(after, wanted):.1f} dB by {step.engine}, written to {out}")


if __name__ == "__main__":
    typer.run(main)
