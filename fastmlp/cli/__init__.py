"""The command line: one file a command."""

from __future__ import annotations

import sys

try:
    import rich  # noqa: F401
    import safetensors  # noqa: F401 - better missed now than when a trained net is to be saved
    import typer
except ImportError as error:  # pragma: no cover
    sys.exit(f"fastmlp: the command line needs more ({error}): pip install 'fastmlp[train]'")

from fastmlp.cli import info, profile, train

app = typer.Typer(
    no_args_is_help=True,
    add_completion=True,
    help="Multilayer perceptrons for PyTorch, fused.",
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)
app.command("train", epilog=train.EXAMPLE)(train.train)
app.command("info", epilog=info.EXAMPLE)(info.info)
app.command("profile", epilog=profile.EXAMPLE)(profile.profile)
