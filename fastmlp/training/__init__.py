"""Training: the loop, its history, and checkpoints."""

from fastmlp.training.checkpoint import load, save
from fastmlp.training.fit import Epoch, History, TrainingError, accuracy, fit

__all__ = ["Epoch", "History", "TrainingError", "accuracy", "fit", "load", "save"]
