"""Training: the loop, its history, and checkpoints.

``schedules``    learning rates over a run
``history``      what training gives
``atomic``       files that are there whole or not at all
``tree``         nested state as JSON beside tensors
``checkpoint``   a net as a safetensors file
``identity``     which run is it?
``interrupt``    Ctrl-C and SIGTERM
``resume``       a run's whole state as a file
``distributed``  the processes that torchrun starts
``shares``       `fit` in several of them
``memory``       what to say when there is none left
``fit``          the loop
"""

from fastmlp.training.checkpoint import load, load_into, save
from fastmlp.training.fit import accuracy, fit
from fastmlp.training.history import Epoch, History, TrainingError
from fastmlp.training.interrupt import Interrupted
from fastmlp.training.memory import OutOfMemoryError
from fastmlp.training.resume import CheckpointWarning, Position, position

__all__ = [
    "CheckpointWarning",
    "Epoch",
    "History",
    "Interrupted",
    "OutOfMemoryError",
    "Position",
    "TrainingError",
    "accuracy",
    "fit",
    "load",
    "load_into",
    "position",
    "save",
]
