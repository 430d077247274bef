"""What a run leaves beside its net."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fastmlp.training import History
from tests.commands import assert_fails, run, run_json

BASE = ("train", "--dataset", "digits", "--device", "cpu", "--hidden", "8")


def test_files(tmp_path: Path) -> None:
    """Beside --out, and named in the JSON."""
    found = run_json(*BASE, "--epochs", 2, "--out", tmp_path / "deep" / "net.safetensors")
    names = {"net": "", "config": "", "history": "", "checkpoint": ""}
    assert {*found["paths"]} == {*names}
    assert {Path(path).name for path in found["paths"].values()} == {
        "net.safetensors", "net.toml", "net.history.json", "net.ckpt.safetensors",
    }  # fmt: skip
    for path in found["paths"].values():
        assert Path(path).parent == tmp_path / "deep"
        assert Path(path).exists()
    history = History.from_json(Path(found["paths"]["history"]).read_text())
    assert [epoch.number for epoch in history.epochs] == [1, 2]
    assert found["epochs"][1]["test_loss"] == history.epochs[1].test_loss
    assert found["accuracy"] == history.epochs[1].test_accuracy
    assert (found["engine"], found["seconds"]) == (history.engine, history.seconds)


def test_a_history_elsewhere_goes_on_with_the_run(tmp_path: Path) -> None:
    out, history = tmp_path / "net", tmp_path / "logs" / "h.json"
    for epochs, more in ((2, ()), (4, ("--resume",))):
        run(*BASE, "--epochs", epochs, *more, "--out", out, "--history", history)
        numbers = [epoch.number for epoch in History.from_json(history.read_text()).epochs]
        assert numbers == [*range(1, epochs + 1)]
    assert not (tmp_path / "net.history.json").exists()


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(folder), purge_orphaned_data=True).Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_tensorboard(tmp_path: Path) -> None:
    """A run, what goes on from it, and a new one in its place."""
    options = ("--out", tmp_path / "net", "--tensorboard", tmp_path / "tb", "--schedule", "constant")
    run(*BASE, "--epochs", 2, *options)
    found = run_json(*BASE, "--epochs", 3, *options, "--resume")
    logged = scalars(tmp_path / "tb")
    assert {*logged} == {
        "loss/train", "loss/test", "accuracy/train", "accuracy/test", "lr", "examples per second",
    }  # fmt: skip
    for tag, key in (("loss/test", "test_loss"), ("accuracy/train", "train_accuracy")):
        expected = [(epoch["number"], pytest.approx(epoch[key], rel=1e-6)) for epoch in found["epochs"]]
        assert logged[tag] == expected
    assert logged["lr"] == [(step, pytest.approx(0.1)) for step in (1, 2, 3)]
    events = EventAccumulator(str(tmp_path / "tb")).Reload()
    content = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    for word in (b"batch-size", b"schedule", b"digits"):
        assert word in content
    run(*BASE, "--epochs", 1, *options, "--overwrite")
    assert [step for step, _ in scalars(tmp_path / "tb")["lr"]] == [1]


def test_tensorboard_of_a_regression_and_a_schedule(tmp_path: Path) -> None:
    run(
        "train", "--dataset", "diabetes", "--device", "cpu", "--epochs", 4, "--schedule", "linear",
        "--lr", 0.5, "--batch-size", 353, "--out", tmp_path / "net", "--tensorboard", tmp_path / "tb",
    )  # fmt: skip
    logged = scalars(tmp_path / "tb")
    assert {*logged} == {"loss/train", "loss/test", "lr", "examples per second"}
    assert [value for _, value in logged["lr"]] == [0.5, 0.375, 0.25, 0.125]


def test_tensorboard_that_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    result = run(*BASE, "--tensorboard", tmp_path / "tb", "--out", tmp_path / "net")
    assert_fails(result, 1, "pip install 'fastmlp[tensorboard]'")
    assert [*tmp_path.iterdir()] == []


def test_paths_that_cannot_be(tmp_path: Path) -> None:
    """Said before the training, and before anything is written."""
    for option, path, code, message in (
        ("--history", tmp_path / "net", 2, "expected another file than --out's"),
        ("--checkpoint", tmp_path / "net.toml", 2, "expected another file than --out's .toml's"),
        ("--history", "/proc/x/h.json", 1, "--history /proc/x/h.json: No such file or directory"),
        ("--history", tmp_path, 1, f"--history {tmp_path}: a directory"),
        ("--tensorboard", "/proc/x/tb", 1, "--tensorboard /proc/x/tb"),
    ):
        assert_fails(run(*BASE, "--out", tmp_path / "net", option, path), code, message)
        assert [*tmp_path.iterdir()] == []
    os.mkfifo(pipe := tmp_path / "pipe")
    assert_fails(run(*BASE, "--epochs", 0, "--out", pipe), 1, f"--out {pipe}: no file; expected one")
    assert [*tmp_path.iterdir()] == [pipe]


def test_a_run_that_is_refused_leaves_what_is_there(tmp_path: Path) -> None:
    """An engine that cannot, a checkpoint of another run: the recorded options are the old ones."""
    base = (*BASE, "--epochs", 1, "--out", tmp_path / "net", "--overwrite")
    run(*base)
    recorded = (tmp_path / "net.toml").read_text()
    assert run(*base, "--engine", "graph", "--lr", 0.5).exit_code == 2
    assert run(*base, "--resume", "--lr", 0.5).exit_code == 2
    assert (tmp_path / "net.toml").read_text() == recorded
    assert run(*base, "--resume").exit_code == 0  # with nothing left to do
    assert (tmp_path / "net.toml").read_text() == recorded
