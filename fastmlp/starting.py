"""How the command ``fastmlp`` starts: the import of torch, which takes seconds, waits until it is needed.

Ctrl-C in these seconds is one line and status 130, as later, and no traceback: importing this takes it, in a
process that is ``fastmlp`` or ``python -m fastmlp``, and `done` gives it back.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType


def done() -> None:
    """Leave Ctrl-C to Python again."""
    if signal.getsignal(signal.SIGINT) is _leave:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _leave(number: int, frame: FrameType | None) -> None:
    while frame is not None and frame.f_code.co_filename != "<frozen importlib._bootstrap>":
        frame = frame.f_back
    if frame is None:  # not an import: another program that is called fastmlp
        raise KeyboardInterrupt
    os.write(2, b"error: interrupted\n")
    os._exit(130)  # nothing has begun, and half of torch cannot be taken down in good order


def is_command() -> bool:
    """Whether this process is ``fastmlp`` or ``python -m fastmlp``; no other that imports the package is."""
    if threading.current_thread() is not threading.main_thread() or not sys.argv:
        return False
    if sys.argv[0] == "-m":  # what Python makes of it while the module is being looked for
        return sys.orig_argv[-len(sys.argv)] in ("fastmlp", "-mfastmlp")
    return os.path.basename(sys.argv[0]).removesuffix(".exe") == "fastmlp"


if is_command() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, _leave)
