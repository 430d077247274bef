"""What may stop a training, each said in a line, with how to go on."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fastmlp.cli.common import by_option, errors, fail, what_failed
from fastmlp.cli.options import Settings
from fastmlp.training import Interrupted, TrainingError, distributed
from fastmlp.training.errors import is_out_of_memory


@contextmanager
def said(kept: Path) -> Iterator[None]:
    """Say what stopped the training, and how to go on from the checkpoint ``kept`` if there is one of it."""
    try:
        yield
    except Interrupted as error:
        fail(f"{error}; the same command with --resume goes on from there", 128 + error.signal)
    except KeyboardInterrupt:
        fail("interrupted", 130)
    except ValueError as error:  # an engine that cannot run here, a checkpoint of another run
        fail(by_option(str(error), [*Settings.__dataclass_fields__, "changed"], {"clip_norm": "clip"}), 2)
    except OSError as error:
        fail(f"--checkpoint {kept}: {error.strerror or error}")
    except (RuntimeError, MemoryError) as error:
        if distributed.is_gone(error):
            errors.print(f"error: another process is gone ({str(error).splitlines()[0]})", style="red")
            distributed.leave(1)
        if _is_compilers(error):
            fail(f"--compile: {str(error).strip().splitlines()[0]}")
        if not isinstance(error, TrainingError) and not is_out_of_memory(error):
            raise
        again = "--batch-size N --changed batch-size" if is_out_of_memory(error) else "--lr LR --changed lr"
        goes_on = f"; --resume {again} goes on from there" if str(kept) in str(error) else ""
        whose = ""
        if is_out_of_memory(error) and distributed.size() > 1:  # the others may have enough
            whose, errors.quiet = f"process {distributed.rank()}: ", False
        what = str(error).splitlines()[0] if isinstance(error, TrainingError) else what_failed(error)
        fail(f"{whose}{what}{goes_on}")


def _is_compilers(error: BaseException) -> bool:
    """Whether torch.compile says that it cannot, such as for want of a C++ compiler."""
    dynamo = sys.modules.get("torch._dynamo.exc")  # not imported where nothing is compiled
    return dynamo is not None and isinstance(error, dynamo.TorchDynamoException)
