"""``python -m benchmarks.gpu --out DIR``: see docs/benchmarks.md, "On a GPU"."""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from .conductor import Conductor, Options
from .stages import NAMES, STAGES


def main(argv: Sequence[str] | None = None) -> int:
    """Run the stages; 0 all passed, 1 something failed, 2 wrong usage, 3 time ran out, 130 interrupted."""
    listed = "\n".join(f"  {stage.name:10} {stage.answers}" for stage in STAGES)
    parser = argparse.ArgumentParser(
        "python -m benchmarks.gpu",
        description=f"What a quarter of an hour on a GPU must answer, in this order:\n{listed}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="A stage that is asked for is measured anew, unless --resume finds that it was complete.\n"
        "Exit status: 0 all passed, 1 something failed, 2 wrong usage, 3 time ran out, 130 interrupted.",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where the report goes")
    parser.add_argument("--minutes", type=float, default=9.0, help="for all of it; default: 9")
    parser.add_argument("--only", type=_stages, default=NAMES, metavar="STAGE,...", help="only these stages")
    parser.add_argument("--resume", action="store_true", help="go on where the last run stopped")
    parser.add_argument("--data", type=Path, metavar="DIR", help="holds FashionMNIST/raw; default: synthetic")
    parser.add_argument(
        "--rehearse", action="store_true", help="toy sizes on interpreted kernels: everything but the GPU"
    )
    arguments = parser.parse_args(argv)
    if not arguments.minutes > 0:
        parser.error(f"--minutes {arguments.minutes:g}: expected more than 0")
    if not arguments.rehearse and not torch.cuda.is_available():
        parser.error("torch sees no GPU here; --rehearse tries all of it without one")
    options = Options(
        arguments.out,
        60 * arguments.minutes,
        arguments.only,
        arguments.resume,
        arguments.rehearse,
        arguments.data,
    )
    for stream in (sys.stdout, sys.stderr):  # a terminal without UTF-8 has no µ
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        conductor = Conductor(options)
    except OSError as error:
        parser.error(f"--out {arguments.out}: {error.strerror}")
    return conductor.run()


def _stages(text: str) -> tuple[str, ...]:
    """In the order in which they run."""
    asked = text.split(",")
    unknown = [name for name in asked if name not in NAMES]
    if unknown:
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: expected {', '.join(NAMES)}")
    return tuple(name for name in NAMES if name in asked)


if __name__ == "__main__":
    sys.exit(main())
