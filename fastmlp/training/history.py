"""What training gives, and how it says that it cannot go on."""

from __future__ import annotations

from dataclasses import dataclass, field


class TrainingError(RuntimeError):
    """Training cannot go on; the message says where it stopped."""


@dataclass(frozen=True)
class Epoch:
    """What one epoch gave."""

    number: int  # from 1
    train_loss: float  # mean over the examples, each before its own step
    train_accuracy: float  # likewise, in [0, 1]
    test_accuracy: float | None  # after the epoch; None without a test set
    seconds: float  # of training, without the test
    examples_per_second: float

    def __str__(self) -> str:
        tested = "" if self.test_accuracy is None else f"test accuracy {self.test_accuracy:.4f}  "
        return (
            f"epoch {self.number:3d}  train loss {self.train_loss:.4f}  "
            f"train accuracy {self.train_accuracy:.4f}  {tested}{self.examples_per_second:,.0f} examples/s"
        )


@dataclass
class History:
    """Every epoch, those before a resume too, the seconds that all of it took, and which engine ran."""

    epochs: list[Epoch] = field(default_factory=list)
    seconds: float = 0.0
    engine: str = ""
