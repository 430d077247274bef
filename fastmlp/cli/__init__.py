"""The command line: one file a command."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

try:
    import rich  # noqa: F401
    import safetensors  # noqa: F401 - better missed now than when a trained net is to be saved
    import tomli_w  # noqa: F401 - likewise
    import typer
except ImportError as error:  # pragma: no cover
    sys.exit(f"fastmlp: the command line needs more ({error}): pip install 'fastmlp[train]'")

from typer.core import TyperCommand, TyperGroup

import fastmlp
from fastmlp.cli import bench, eval, info, plot, predict, profile, train
from fastmlp.cli.common import errors, plain, what_failed

EXAMPLE = """Example: fastmlp train --dataset digits && fastmlp eval runs/digits-1.safetensors

Exit status: 0 done; 1 failed, with one line on stderr; 2 wrong usage; 130 Ctrl-C, 143 SIGTERM.

fastmlp COMMAND --help has an example of each. --install-completion teaches your shell to complete."""

# click's, wherever this typer has its click.
_UsageError: type[Exception] = typer.BadParameter.__mro__[1]


class _OneLine(TyperGroup):
    """Wrong usage is one line on stderr, as every error is; no arguments at all ask for help."""

    def main(self, args: Sequence[str] | None = None, **options: Any) -> Any:  # type: ignore[override]
        args = sys.argv[1:] if args is None else args
        try:
            code = super().main(args or ["--help"], **{**options, "standalone_mode": False})
        except _UsageError as error:
            context = getattr(error, "ctx", None)
            about = f" (see {context.command_path} --help)" if context else ""
            message = plain(error.format_message())  # type: ignore[attr-defined]
            code = 2
            if message.endswith(" is not readable"):  # typer looks before any command does: the file's fault
                about, code = "", 1
            errors.print(f"error: {message}{about}", style="red")
        except (typer.Abort, KeyboardInterrupt):
            errors.print("error: interrupted", style="red")
            code = 130
        except Exception as error:
            failure = what_failed(error)
            if failure is None:
                raise
            errors.print(f"error: {failure}", style="red")
            code = 1
        if code and "fastmlp.training.distributed" in sys.modules:
            from fastmlp.training import distributed

            if distributed.size() > 1:
                distributed.leave(code)
        sys.exit(code)

    def invoke(self, ctx: Any) -> Any:
        """typer makes a bare status of Ctrl-C, wherever in the command it came."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise typer.Abort from None


class _App(typer.Typer):
    """Ctrl-C is a line also while the commands are made, before there is one to run."""

    def __call__(self, *args: Any, **options: Any) -> Any:
        try:
            return super().__call__(*args, **options)
        except KeyboardInterrupt:
            errors.print("error: interrupted", style="red")
            sys.exit(130)


#: What options were called before, and what they are everywhere.
_BEFORE = {"--batch": "--batch-size", "--on": "--device", "--measure": "--remeasure"}


class _Command(TyperCommand):
    """Takes the options' earlier names too. Whole numbers have 64 bits: more fails in many ways below."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        names = {name for option in self.params for name in option.opts}
        rest = super().parse_args(ctx, [_renamed(word, names) for word in args])
        for option in ctx.command.params:
            value = ctx.params.get(option.name)
            if isinstance(value, int) and not -(1 << 63) <= value < 1 << 63:
                raise typer.BadParameter(f"expected a number of 64 bits, got {value}", ctx, option)
        return rest


def _renamed(word: str, names: set[str]) -> str:
    name, equals, value = word.partition("=")
    now = _BEFORE.get(name)
    return f"{now}{equals}{value}" if now in names else word


app = _App(
    cls=_OneLine,
    add_completion=True,
    epilog=EXAMPLE,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)


def _version(asked: bool) -> None:
    if asked:
        print(f"fastmlp {fastmlp.__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Show the version, and exit."
    ),
) -> None:
    """Multilayer perceptrons for PyTorch, fused."""


app.command("train", epilog=train.EXAMPLE)(train.train)
app.command("eval", epilog=eval.EXAMPLE)(eval.evaluate)
app.command("predict", epilog=predict.EXAMPLE)(predict.predict)
app.command("bench", epilog=bench.EXAMPLE)(bench.bench)
app.command("profile", epilog=profile.EXAMPLE)(profile.profile)
app.add_typer(plot.app, name="plot", epilog=plot.EXAMPLE)
app.command("info", epilog=info.EXAMPLE)(info.info)
for _command in (*app.registered_commands, *plot.app.registered_commands):
    _command.cls = _Command
