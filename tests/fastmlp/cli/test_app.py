"""What all commands have in common, as a new user meets it."""

from __future__ import annotations

import subprocess
import sys

import pytest
from typer.testing import CliRunner

import fastmlp
from fastmlp import cli, data
from fastmlp.cli.common import Dataset
from fastmlp.cli.options import Engine, Schedule
from fastmlp.engine.choose import ENGINES
from fastmlp.training import schedules
from tests.commands import assert_fails, run

COMMANDS = ("train", "eval", "predict", "info")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example(command: str) -> None:
    result = run(command, "--help")
    assert result.exit_code == 0
    assert f"Example: fastmlp {command} " in result.output
    assert "--json" in result.output
    assert "[default: " in result.output or command == "info"


def test_help() -> None:
    result = run("--help")
    assert result.exit_code == 0
    said = " ".join(result.output.split())
    for words in ("Exit status: 0 done; 1 failed", "2 wrong usage; 130 Ctrl-C", "Example: fastmlp train"):
        assert words in said
    for command in COMMANDS:
        assert f"│ {command}" in result.output
    assert run().output == result.output
    assert run("-h").output == result.output


def test_version() -> None:
    result = run("--version")
    assert (result.exit_code, result.output) == (0, f"fastmlp {fastmlp.__version__}\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "No such command 'trian'"),
        (["train", "--epochz", "3"], "No such option: --epochz"),
        (["train", "--epochs", "three"], "'--epochs'"),
        (["train", "--dataset", "cifar"], "'cifar' is not one of 'fashion-mnist', 'mnist'"),
        (["eval"], "Missing argument 'NET'"),
        (["predict", "--top", "0", "net"], "'--top'"),
    ],
)
def test_wrong_usage_is_a_line(arguments: list[str], message: str) -> None:
    """Each says whose help to read."""
    result = run(*arguments)
    assert_fails(result, 2, message)
    about = " ".join(["fastmlp", *arguments[: arguments[0] in COMMANDS]])
    assert result.output.endswith(f" (see {about} --help)\n")
    assert len(result.output.splitlines()) == 1


def test_names_are_those_of_the_library() -> None:
    assert tuple(name.value for name in Dataset) == data.NAMES
    assert tuple(name.value for name in Engine) == ENGINES
    assert tuple(name.value for name in Schedule) == schedules.NAMES


def complete(*words: str) -> list[str]:
    """What the shell is told after these words, the last one not yet whole."""
    environment = {
        "_FASTMLP_COMPLETE": "complete_bash",
        "COMP_WORDS": " ".join(["fastmlp", *words]),
        "COMP_CWORD": str(len(words)),
    }
    return CliRunner(env=environment).invoke(cli.app, prog_name="fastmlp").output.split()


def test_completion() -> None:
    assert complete("tr") == ["train"]
    assert complete("train", "--activation", "ge") == ["gelu", "gelu_tanh"]
    assert complete("train", "--dataset", "d") == ["digits", "diabetes"]
    assert complete("train", "--optimizer", "adam") == ["adam", "adamw"]
    assert complete("info", "--on", "h") == ["h100", "h200"]


def test_show_completion() -> None:
    result = run("--show-completion", "bash")
    assert result.exit_code == 0, result.output
    assert "_FASTMLP_COMPLETE=complete_bash" in result.output


def test_python_m_fastmlp() -> None:
    """Help and completion wait for torch, and for nothing else that is large."""
    done = subprocess.run([sys.executable, "-c", _MAIN], capture_output=True, text=True, timeout=120)
    assert done.stdout == f"fastmlp {fastmlp.__version__}\n[]\n", done.stderr


_MAIN = """
import runpy, sys
heavy = "triton torchvision sklearn matplotlib tensorboard torch._dynamo pandas PIL".split()
sys.argv = ["fastmlp", "--version"]
try:
    runpy.run_module("fastmlp", run_name="__main__")
except SystemExit:
    print([name for name in heavy if name in sys.modules])
"""
