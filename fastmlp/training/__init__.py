"""Training: the loop, its history, and checkpoints.

``fit``            all of it together
``arguments``      numbers, losses, optimizers
``arrays``         tensors from other libraries' data
``nonfinite``      NaN and infinity in data
``specs``          which features and targets go with a net and a loss
``sources``        examples on the device, or sent there batch by batch
``inputs``         makes a source of what `fit` takes
``stream``         epochs over data that stays on the host
``evaluate``       loss and accuracy on data that is not trained on
``history``        the results of training
``schedules``      learning rates over a run
``clipping``       keeps the norm of gradients within a limit
``errors``         what stops training
``checkpoint``     tensors and JSON in a safetensors file
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
