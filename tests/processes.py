"""Code in a Python of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path

_ROOT = Path(__file__).resolve().parent.parent


def output_of(
    code: str,
    *arguments: str,
    timeout: float = 120.0,
    without: Collection[str] = (),
    **environment: str,
) -> str:
    """What ``code`` prints. It sees this process' environment, but for those variables, and ends well."""
    inherited = {name: value for name, value in os.environ.items() if name not in without}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=inherited | environment,
        cwd=_ROOT,
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
