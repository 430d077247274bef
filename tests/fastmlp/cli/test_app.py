"""What all commands have in common, as a new user meets it."""

from __future__ import annotations

import os
import shutil
import signal
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import fastmlp
from fastmlp import activations, cli, data, studies
from fastmlp.cli import options
from fastmlp.costs import devices
from fastmlp.engine.choose import ENGINES
from fastmlp.profiling.rows import SORTS
from fastmlp.training import checkpoint, load, schedules
from tests.commands import assert_fails, run, run_json

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
        (["train", "--dataset", "cifar"], "for '--dataset': 'cifar' is not one of 'fashion-mnist', 'mnist'"),
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
    """Which the options spell again, since the library's tables import torch."""
    assert tuple(name.value for name in options.Dataset) == data.NAMES
    assert tuple(name.value for name in options.Engine) == ENGINES
    assert tuple(name.value for name in options.Schedule) == schedules.NAMES
    assert tuple(name.value for name in options.Sort) == tuple(SORTS)
    assert options.ACTIVATIONS == activations.NAMES
    assert tuple(devices.DEVICES) == options.DEVICES
    assert tuple(name.replace("_", "-") for name in studies.STUDIES) == options.STUDIES


@pytest.mark.parametrize(
    "arguments",
    [
        ("eval", "file"), ("predict", "file"), ("profile", "file"), ("plot", "confusion", "file"),
        ("plot", "curve", "file"), ("train", "--config", "file"), ("bench", "--from", "file"),
        ("predict", "net", "--image", "file"), ("predict", "net", "--input", "file"),
    ],
)  # fmt: skip
def test_a_file_that_may_not_be_read(
    arguments: tuple[str, ...], trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It failed: that is no wrong usage."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(trained, "net")
    Path("file").touch()
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: str(path) != "file" and access(path, mode))
    assert_fails(run(*arguments), 1, "'file' is not readable")


@pytest.mark.parametrize("option", ["--out", "--history", "--checkpoint"])
@pytest.mark.parametrize("path", [".", "/", "", "a" * 300])
def test_no_file_is_a_line(option: str, path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is written."""
    monkeypatch.chdir(tmp_path)
    what = "File name too long" if path.startswith("a") else "a directory"
    base = ("train", "--dataset", "digits", "--device", "cpu", "--out", "net")
    assert_fails(run(*base, option, path), 1, f"{option} {Path(path)}: {what}")
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (
            ["profile", "--batch-size", 100000000],
            1,
            "--batch-size 100000000, --steps 20: out of memory: 1,568,000,000,000 bytes asked for; a smaller",
        ),
        (["profile", "--batch-size", 2**62], 1, f"--batch-size {2**62}, --steps 20: out of memory: "),
        (["profile", "--steps", 2**50, "--inference", "--batch-size", 2**50], 1, "out of memory: "),
        (["profile", "--hidden", 2**62], 1, f"--hidden {2**62}: out of memory: "),
        (["profile", "--hidden", 2**70], 2, f"--hidden {2**70}: expected positive widths"),
        (["train", "--dataset", "digits", "--hidden", 2**62, "--out", "net"], 1, "out of memory: "),
        (["train", "--epochs", 10**30], 2, f"for '--epochs': expected a number of 64 bits, got {10**30}"),
        (["plot", "predictions", "net", "--rows", 10**30], 2, "for '--rows': expected a number of 64 bits"),
    ],
)
def test_a_huge_number_is_a_line(
    arguments: list[object], code: int, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert_fails(run(*arguments, *(("--device", "cpu") if "plot" not in arguments else ())), code, message)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["plot", "curve", "deep"], "deep: expected a history"),
        (["bench", "--from", "deep"], "--from deep: no JSON"),
        (["train", "--config", "deep"], "--config deep: expected TOML"),
    ],
)
def test_a_file_that_is_nested_too_deeply(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("deep").write_text(("a = " if "train" in arguments else "") + "[" * 100_000)
    assert_fails(run(*arguments), 2 if "train" in arguments else 1, message)


def test_ctrl_c_while_torch_is_imported(tmp_path: Path) -> None:
    """Of the command, a line; of a program that imports fastmlp, Python's own."""
    (tmp_path / "torch.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    imported = "import sys; sys.argv = ['/bin/{}', 'train']; import fastmlp.cli; fastmlp.cli.app()"
    for arguments, code, said in (
        (["-m", "fastmlp", "train"], 130, "error: interrupted\n"),
        (["-c", imported.format("fastmlp")], 130, "error: interrupted\n"),
        (["-c", imported.format("other")], -signal.SIGINT, "KeyboardInterrupt\n"),
    ):
        done = subprocess.run(
            [sys.executable, *arguments], env=os.environ | {"PYTHONPATH": str(tmp_path)}, capture_output=True,
            text=True, timeout=60,
        )  # fmt: skip
        assert done.returncode == code, done.stderr
        assert done.stderr.endswith(said)
        assert code != 130 or done.stderr == said


@pytest.mark.parametrize("where", ["fastmlp.cli.sets.both", "typer.main.get_command"])
def test_ctrl_c_before_the_first_step(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """While the data is read, and while the commands are made."""

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(where, interrupted)
    with pytest.raises(SystemExit) as left:
        cli.app(["train", "--dataset", "digits", "--device", "cpu", "--out", str(tmp_path / "net")])
    assert (left.value.code, capsys.readouterr().err) == (130, "error: interrupted\n")
    assert not [*tmp_path.iterdir()]


def test_a_header_that_promises_too_much(tmp_path: Path) -> None:
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    header = struct.pack(">4B3I", 0, 0, 8, 3, 784, 10000, 1)
    for part in ("train", "t10k"):
        (raw / f"{part}-images-idx3-ubyte").write_bytes(header + bytes(7_840_000))
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">4BI", 0, 0, 8, 1, 784) + bytes(784))
    net = tmp_path / "net"
    assert_fails(run("train", "--data", tmp_path, "--out", net), 1, "train-images-idx3-ubyte: ")
    assert not net.exists()


ESCAPES = "\x1b[31m\x1b]0;title\x07\r\x9b\u202e"


def test_what_files_say_is_shown_not_obeyed(trained: Path, tmp_path: Path) -> None:
    """Classes, a data set's name, a path and what an error repeats: no terminal gets their codes."""
    state, about = load(trained)
    bad = {"classes": [f"{i}{ESCAPES}" for i in range(10)], "dataset": ESCAPES}
    path = tmp_path / f"net{ESCAPES.replace('/', '')}\udcff\n"
    checkpoint.write(path, state, {"metadata": about | bad})
    broken = tmp_path / "broken"
    checkpoint.write(broken, state, {"metadata": about | {"activation": f"relu{ESCAPES}\nerror: none"}})
    for arguments in (("eval", path), ("predict", path), ("eval", broken), ("eval", f"{path}x")):
        result = run(*arguments, "--device", "cpu")
        assert "\\x1b[31m" in result.output
        assert not {*result.output} & {*ESCAPES[:1], "\x07", "\r", "\x9b", "\u202e", "\udcff"}
        assert len(result.stderr.splitlines()) == 1
    assert run_json("eval", path)["classes"][0]["name"] == f"0{ESCAPES}"


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
    assert complete("info", "--device", "h") == ["h100", "h200"]


def test_show_completion(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shellingham.detect_shell", lambda: ("bash", "bash"))  # whatever started the tests
    result = run("--show-completion", "bash")
    assert result.exit_code == 0, result.output
    assert "_FASTMLP_COMPLETE=complete_bash" in result.output


def test_help_and_completion_import_nothing_large() -> None:
    """Not even torch, whose import takes seconds; what a command then uses of fastmlp is all there."""
    done = subprocess.run([sys.executable, "-c", _MAIN], capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines()[-2:] == ["[]", "[]"], done.stdout + done.stderr
    assert f"fastmlp {fastmlp.__version__}\n" in done.stdout
    for words in ("Usage: fastmlp [OPTIONS]", "Usage: fastmlp plot roofline", "gelu_tanh", "learning-rate"):
        assert words in done.stdout


_MAIN = """
import os, runpy, sys

def run(*arguments):
    sys.argv = ["fastmlp", *arguments]
    try:
        runpy.run_module("fastmlp", run_name="__main__")
    except SystemExit as end:
        assert not end.code, arguments

run("--version")
run("--help")
from fastmlp.cli import app, plot
for command in app.registered_commands:
    run(command.name, "--help")
for command in plot.app.registered_commands:
    run("plot", command.name, "--help")
os.environ["_FASTMLP_COMPLETE"] = "complete_bash"
for words in ("train --activation ge", "info --device h", "plot study l", "profile --sort "):
    os.environ |= {"COMP_WORDS": f"fastmlp {words}", "COMP_CWORD": str(len(words.split(" ")))}
    run()
heavy = "torch numpy triton torchvision sklearn matplotlib tensorboard pandas PIL".split()
print([name for name in heavy if name in sys.modules])

import fastmlp
lazy = {name: getattr(fastmlp, name) for name in fastmlp.__all__}
del sys.modules["fastmlp"], sys.argv[0]
import fastmlp
print([name for name, found in lazy.items() if getattr(fastmlp, name) is not found])
"""
