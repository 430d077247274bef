"""fastmlp inside Lightning: modules and loss stand where torch's would, the rest is Lightning's.

pip install lightning && python examples/lightning_module.py
"""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import lightning
import torch
import typer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import fastmlp
from fastmlp.data import Images, load


class Classifier(lightning.LightningModule):
    """The book's MLP: 784-256-10 on images (B, 28, 28)."""

    def __init__(self, lr: float = 0.1) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = fastmlp.Sequential(nn.Flatten(), nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 10))
        self.loss = fastmlp.CrossEntropyLoss()

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 28, 28) in [0, 1] to logits (B, 10)."""
        return self.net(images)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """The loss that Lightning differentiates."""
        images, labels = batch
        loss = self.loss(self(images), labels)
        self.log("train_loss", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Accuracy."""
        images, labels = batch
        self.log("accuracy", (self(images).argmax(1) == labels).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Plain SGD."""
        return torch.optim.SGD(self.parameters(), lr=self.hparams["lr"])


def loader(images: Images, batch_size: int, shuffle: bool) -> DataLoader[tuple[Tensor, ...]]:
    """Batches of float32 images and labels."""
    return DataLoader(TensorDataset(images.images / 255, images.labels), batch_size, shuffle=shuffle)


def main(
    data: Path | None = None, epochs: int = 3, batch_size: int = 256, lr: float = 0.1, seed: int = 0
) -> None:
    """Train it on Fashion-MNIST by Lightning's Trainer."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", ".*does not have many workers.*")  # the data are in memory
    lightning.seed_everything(seed, verbose=False)
    train, test = load(data, print)
    model = Classifier(lr)
    trainer = lightning.Trainer(
        max_epochs=epochs, accelerator="auto", devices=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(model, loader(train, batch_size, shuffle=True), loader(test, 2048, shuffle=False))
    measured = trainer.callback_metrics
    print(f"train loss {measured['train_loss']:.4f}  test accuracy {measured['accuracy']:.4f}")


if __name__ == "__main__":
    typer.run(main)
