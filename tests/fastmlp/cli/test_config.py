"""``--config``: a run's options in a file."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from fastmlp.cli.config import write
from fastmlp.cli.options import Dataset, Optimizer, Settings
from tests.commands import assert_fails, run, run_json

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

BASE = ("train", "--dataset", "digits", "--device", "cpu", "--hidden", "8")


def test_a_run_again_from_its_own_file(tmp_path: Path) -> None:
    """To the same bits, and the same file."""
    out, recorded = tmp_path / "net.safetensors", tmp_path / "net.toml"
    run(
        *BASE, "--epochs", 2, "--optimizer", "adamw", "--schedule", "one-cycle", "--activation", "silu",
        "--seed", 3, "--patience", 5, "--min-delta", 0.25, "--subset", 300, "--batch-size", 32, "--out", out,
    )  # fmt: skip
    first, text = out.read_bytes(), recorded.read_text()
    out.unlink()
    again = run("train", "--config", recorded)
    assert again.exit_code == 0, again.output
    assert out.read_bytes() == first
    assert recorded.read_text() == text
    assert text.splitlines()[1] == f"# the same run: fastmlp train --config {recorded} --out FILE"
    found = tomllib.loads(text)
    assert found == {
        "dataset": "digits", "subset": 300, "hidden": "8", "activation": "silu", "epochs": 2,
        "batch-size": 32, "optimizer": "adamw", "lr": 0.001, "weight-decay": 0.01, "schedule": "one-cycle",
        "patience": 5, "min-delta": 0.25, "seed": 3, "device": "cpu", "dtype": "float32", "engine": "auto",
        "compile": False, "out": str(out), "every": 1,
    }  # fmt: skip


def test_every_option_can_be_set(tmp_path: Path) -> None:
    """What `write` writes of all of them `read` takes, down to the first that makes no sense."""
    settings = Settings(
        data=Path("a"), dataset=Dataset.digits, subset=1, lr=0.5, momentum=0.25, weight_decay=0.125, clip=3.0,
        optimizer=Optimizer.momentum, patience=1, history=Path("h"), tensorboard=Path("t"),
        checkpoint=Path("c"), device="cpu", compile=True, out=Path("o"),
    )  # fmt: skip
    write(tmp_path / "all.toml", settings)
    assert len(tomllib.loads((tmp_path / "all.toml").read_text())) == len(Settings.__dataclass_fields__)
    assert_fails(run("train", "--config", tmp_path / "all.toml"), 2, "--data a: the digits set comes with")


def test_the_command_line_comes_first(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text('epochs = 3\nlr = 1\nactivation = "tanh"\nout = "nowhere/net"\n')
    found = run_json(*BASE, "--config", tmp_path / "c.toml", "--epochs", 1, "--out", tmp_path / "net")
    assert len(found["epochs"]) == found["config"]["epochs"] == 1
    assert (found["config"]["lr"], found["config"]["activation"]) == (1.0, "tanh")
    assert found["config"]["out"] == str(tmp_path / "net")


@pytest.mark.parametrize(
    ("text", "code", "message"),
    [
        ('epochs = "3"', 2, 'epochs: expected a whole number, got "3"'),
        ("epochs = 1.5", 2, "epochs: expected a whole number, got 1.5"),
        ("epochs = true", 2, "epochs: expected a whole number, got true"),
        ("epochs = -1", 2, "epochs: "),
        ('lr = "fast"', 2, 'lr: expected a number, got "fast"'),
        ("compile = 1", 2, "compile: expected true or false, got 1"),
        ("hidden = [512, 256]", 2, "hidden: expected a string, got [512, 256]"),
        ('optimizer = "sgdd"', 2, "optimizer: "),
        ("batch_size = 3", 2, "batch_size is not an option that a file can set; did you mean batch-size?"),
        ('changed = ["lr"]', 2, "changed is not an option that a file can set, which are: dataset, data"),
        ("[training]\nlr = 1", 2, "training is not an option that a file can set"),
        ("lr = ", 2, "expected TOML: Invalid value (at "),
        ("lr = nan", 2, "lr: expected a finite number of at least 0, got nan"),
        ('hidden = "\xff"', 2, "expected TOML in UTF-8"),
        (None, 1, "No such file or directory"),
    ],
)
def test_errors_name_key_and_file(text: str | None, code: int, message: str, tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    if text is not None:
        path.write_text(text, encoding="latin-1")
    assert_fails(run(*BASE, "--config", path, "--out", tmp_path / "net"), code, f"--config {path}: {message}")
    assert not (tmp_path / "net").exists()
