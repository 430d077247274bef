"""Training: the loop, its history, and checkpoints.

``fit``            all of it together
``arguments``      numbers, losses, optimizers
``arrays``         tensors of what others give
``nonfinite``      NaN and infinity in data
``specs``          which features and targets go with a net and a loss
``sources``        examples on the device, or sent there batch by batch
``inputs``         what `fit` takes, made a source
``stream``         epochs over data that stays on the host
``epochs``         the epochs of a run
``evaluate``       loss and accuracy on data that is not trained on
``history``        what training gives
``schedules``      learning rates over a run
``clipping``       gradients whose norm is kept within a limit
``errors``         what stops a training
``checkpoint``     tensors and what JSON holds as a safetensors file
``identity``       which run is it?
``run_state``      a run as its checkpoint holds it
``resume``         going on from there
``checkpointer``   when a run is saved
``distributed``    the processes that torchrun starts
``data_parallel``  `fit` in several of them
"""

from fastmlp.training.checkpoint import load, load_into, save
from fastmlp.training.checkpointer import CheckpointWarning
from fastmlp.training.errors import Interrupted, OutOfMemoryError, TrainingError
from fastmlp.training.evaluate import Score, accuracy, evaluate
from fastmlp.training.fit import fit
from fastmlp.training.history import Epoch, History
from fastmlp.training.run_state import Position, position

__all__ = [
    "CheckpointWarning",
    "Epoch",
    "History",
    "Interrupted",
    "OutOfMemoryError",
    "Position",
    "Score",
    "TrainingError",
    "accuracy",
    "evaluate",
    "fit",
    "load",
    "load_into",
    "position",
    "save",
]
