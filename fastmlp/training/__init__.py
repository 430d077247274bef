"""Training: the loop, its history, and checkpoints.

``schedules``    learning rates over a run
``history``      what training gives
``tree``         nested state as JSON beside tensors
``checkpoint``   a net as a safetensors file
``identity``     which run is it?
``interrupt``    Ctrl-C and SIGTERM
``resume``       a run's whole state as a file
``arguments``    numbers, losses, optimizers
``finite``       where data are no numbers
``targets``      which labels or targets go with a net and a loss
``features``     which features go with a net
``expected``     both of them
``arrays``       tensors of what else holds numbers
``pairs``        batches that others make
``sources``      examples on the device, or sent there batch by batch
``inputs``       what `fit` takes, made a source
``stream``       epochs over data that stays on the host
``distributed``  the processes that torchrun starts
``shares``       `fit` in several of them
``memory``       what to say when there is none left
``clipping``     gradients whose norm is kept within a limit
``evaluate``     loss and accuracy on data that is not trained on
``epochs``       the epochs of a run
``fit``          all of it together
"""

from fastmlp.training.checkpoint import load, load_into, save
from fastmlp.training.evaluate import Score, accuracy, evaluate
from fastmlp.training.fit import fit
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
