"""A hundred nets trained at once: their parameters stacked, their products batched, by ``torch.func``.

Each net has its own start and its own bootstrap sample of the digits (Breiman, "Bagging Predictors", 1996).
Under ``vmap`` fastmlp's modules run torch's own batched ops.

python examples/ensemble.py
"""

from __future__ import annotations

import copy
import time

import torch
import typer
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

import fastmlp
from fastmlp.data import Images, digits

Parameters = dict[str, Tensor]


def stacked(nets: list[nn.Module]) -> Parameters:
    """Parameters of all nets by name, the first dimension counting the nets."""
    return {name: p.detach().requires_grad_() for name, p in stack_module_state(nets)[0].items()}


def pixels(images: Images) -> Tensor:
    """(N, features) in [0, 1]."""
    return images.images.flatten(1) / 255


def main(
    nets: int = 100,
    width: int = 16,
    epochs: int = 10,
    batch_size: int = 64,
    lr: float = 1e-2,
    seed: int = 0,
    device: str = "cuda" if torch.cuda.is_available() else "cpu",
) -> None:
    """Train them, and let them vote."""
    torch.manual_seed(seed)
    train, test = (part.to(device) for part in digits())
    x, y = pixels(train), train.labels
    classes = len(train.classes)
    models = [fastmlp.MLP(x.shape[1], [width, classes]).to(device) for _ in range(nets)]
    skeleton = copy.deepcopy(models[0]).to("meta")  # the structure, without parameters of its own
    parameters = stacked(list(models))
    optimizer = torch.optim.Adam(parameters.values(), lr=lr)  # elementwise: each net gets its own steps
    loss = fastmlp.CrossEntropyLoss()

    def logits(one: Parameters, inputs: Tensor) -> Tensor:
        return functional_call(skeleton, one, (inputs,))

    def objective(one: Parameters, inputs: Tensor, labels: Tensor) -> Tensor:
        return loss(logits(one, inputs), labels)

    start = time.perf_counter()
    samples = torch.randint(len(y), (nets, len(y)), device=device)  # with replacement
    for _ in range(epochs):
        order = torch.rand(samples.shape, device=device).argsort(1)
        for rows in samples.gather(1, order).split(batch_size, dim=1):
            optimizer.zero_grad()
            vmap(objective)(parameters, x[rows], y[rows]).sum().backward()  # the nets share no parameter
            optimizer.step()
    with torch.no_grad():
        votes = vmap(logits, in_dims=(0, None))(parameters, pixels(test))
        alone = (votes.argmax(2) == test.labels).float().mean(1)
        together = (votes.softmax(2).mean(0).argmax(1) == test.labels).float().mean().item()
    print(f"{nets} nets in {time.perf_counter() - start:.1f} s")
    print(f"test accuracy alone {alone.mean():.4f} ({alone.min():.4f}-{alone.max():.4f})")
    print(f"test accuracy together {together:.4f}")


if __name__ == "__main__":
    typer.run(main)
