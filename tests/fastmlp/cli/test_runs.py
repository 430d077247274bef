"""Names of runs, what a run leaves beside its net, and that none takes another's away."""

from __future__ import annotations

import os
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fastmlp.cli import trainer
from fastmlp.cli.nets import load_net
from fastmlp.cli.options import Dataset, Settings
from fastmlp.cli.runs import beside, named, place, put_aside, vacant
from fastmlp.training import History, Interrupted, load, position
from tests.commands import assert_fails, run, run_json

BASE = ("train", "--dataset", "digits", "--device", "cpu", "--hidden", "8", "--subset", 300)


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs without --out go to the current directory's runs/."""
    monkeypatch.chdir(tmp_path)


def test_a_net_is_not_replaced_unasked(tmp_path: Path) -> None:
    """By no command and no option that names a file, before anything is written."""
    net = tmp_path / "net.safetensors"
    assert run(*BASE, "--epochs", 2, "--out", net).exit_code == 0
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    again = run(*BASE, "--epochs", 0, "--out", net)
    assert_fails(again, 1, f"--out {net}: it is there already; another name keeps it, --overwrite replaces")
    other = ("--epochs", 1, "--out", tmp_path / "other.safetensors")
    for arguments in (
        (*BASE, *other, "--history", net),
        ("profile", "--trace", net),
        ("profile", "--memory", net),
        (*BASE, *other, "--history", tmp_path / "net.history.json"),
    ):
        assert run(*arguments).exit_code == 1
    stranger = run(*BASE, *other, "--checkpoint", tmp_path / "net.ckpt.safetensors", "--resume", "--seed", 1)
    assert_fails(stranger, 2, "the checkpoint of another run: seed was 0 and is 1")
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert run(*BASE, "--epochs", 0, "--out", net, "--overwrite").exit_code == 0
    assert net.read_bytes() != before[net]


def test_a_run_goes_on_over_its_own_net_alone(tmp_path: Path) -> None:
    """Also where it was interrupted on its way; another's checkpoint is no way to another's net."""
    net, kept = tmp_path / "net.safetensors", tmp_path / "net.ckpt.safetensors"
    for epochs in (1, 2):
        assert run(*BASE, "--epochs", epochs, "--resume", "--out", net).exit_code == 0
    assert load(net)[1]["config"]["epochs"] == position(kept).epoch == 2
    other = tmp_path / "other.safetensors"
    assert run(*BASE, "--epochs", 1, "--out", other).exit_code == 0
    before = other.read_bytes()
    assert_fails(
        run(*BASE, "--epochs", 3, "--resume", "--out", other, "--checkpoint", kept), 1, "--overwrite"
    )
    assert other.read_bytes() == before


def test_a_net_that_comes_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fit, net = trainer.fit, tmp_path / "net.safetensors"

    def slow(*arguments: object, **options: object) -> object:
        net.write_bytes(b"another's")
        return fit(*arguments, **options)

    monkeypatch.setattr(trainer, "fit", slow)
    found = run_json(*BASE, "--epochs", 1, "--out", net)
    assert net.read_bytes() == b"another's"
    assert found["paths"]["net"] == str(tmp_path / "net-2.safetensors")
    assert load_net(tmp_path / "net-2.safetensors")[1]["widths"] == [64, 8, 10]


def test_options_of_the_users_own_stay(tmp_path: Path) -> None:
    mine = tmp_path / "mine.toml"
    mine.write_text("hidden = '8'  # a good one\n")
    result = run(*BASE, "--config", mine, "--out", tmp_path / "mine.safetensors", "--epochs", 0)
    assert_fails(result, 1, f"its options go to {mine}, which holds others; expected another name")
    assert "a good one" in mine.read_text()


def test_names_count() -> None:
    """Of each data set; neither a run that was refused nor a file that is gone gives one away twice."""
    assert run(*BASE, "--epochs", 0, "--engine", "graph").exit_code == 2
    assert run(*BASE, "--epochs", 0, "--hidden", 10**11).exit_code == 1
    paths = [Path(run_json(*BASE, "--epochs", 0)["paths"]["net"]) for _ in range(2)]
    assert paths == [Path("runs/digits-1.safetensors"), Path("runs/digits-2.safetensors")]
    paths[0].unlink()
    other = run_json("train", "--dataset", "diabetes", "--device", "cpu", "--epochs", 0)
    assert other["paths"]["net"] == "runs/diabetes-1.safetensors"
    assert other["config"]["out"] == "runs/diabetes-1.safetensors"
    assert run(*BASE, "--epochs", 0).output.endswith("saved to runs/digits-3.safetensors\n")
    assert_fails(run(*BASE, "--overwrite"), 2, "--overwrite: expected --out with it")


def test_resume_finds_the_run_of_these_options(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the newest, and not one that is done."""
    fit = trainer.fit

    def interrupted(*arguments: object, **options: object) -> object:
        fit(*arguments, **{**options, "epochs": 1})
        raise Interrupted("interrupted", 2)

    for seed in (0, 1):
        with monkeypatch.context() as patch:
            patch.setattr(trainer, "fit", interrupted)
            assert run(*BASE, "--epochs", 2, "--seed", seed).exit_code == 130
    assert not Path("runs/digits-1.safetensors").exists()
    finished = run(*BASE, "--epochs", 2, "--seed", 0)
    assert finished.output.endswith("saved to runs/digits-3.safetensors\n")
    first = run(*BASE, "--epochs", 2, "--seed", 0, "--resume")
    assert "runs/digits-1.ckpt.safetensors: going on after the end of epoch 1\n" in first.output
    assert first.output.endswith("saved to runs/digits-1.safetensors\n")
    states = [load(f"runs/digits-{n}.safetensors")[0]["0.weight"] for n in (1, 3)]
    assert states[0].equal(states[1])
    longer = run(
        *BASE, "--epochs", 3, "--seed", 1, "--resume", "--batch-size", 128, "--changed", "batch-size"
    )
    assert longer.output.endswith("saved to runs/digits-2.safetensors\n")
    unknown = run(*BASE, "--epochs", 3, "--lr", 0.5, "--resume")
    assert_fails(unknown, 2, "runs/digits-3.ckpt.safetensors: the checkpoint of another run: lr was")
    shutil.rmtree("runs")
    new = run(*BASE, "--epochs", 1, "--resume")
    assert "no checkpoint at runs/digits-1.ckpt.safetensors yet: from the start" in new.output


def test_runs_that_start_at_once() -> None:
    """Each has a name of its own."""
    settings = Settings(dataset=Dataset.digits)
    with ThreadPoolExecutor(16) as pool, ExitStack() as running:
        names = pool.map(lambda _: running.enter_context(named(settings, False, ())), range(32))
        assert {path.name for path in names} == {f"digits-{n}.safetensors" for n in range(1, 33)}
    assert not [*Path("runs").iterdir()]  # none of them began


def test_beside_and_vacant(tmp_path: Path) -> None:
    assert beside(Path("a/net.safetensors"), ".toml") == Path("a/net.toml")
    assert [beside(Path(f"lr0.{n}"), ".toml").name for n in (1, 2)] == ["lr0.1.toml", "lr0.2.toml"]
    (tmp_path / "a.b").touch()
    (tmp_path / "a-2.b").touch()
    assert vacant(tmp_path / "a.b") == tmp_path / "a-3.b"
    assert vacant(tmp_path / "c") == tmp_path / "c"


def test_what_is_no_file_stays(tmp_path: Path) -> None:
    """A device or a pipe is no earlier run's checkpoint, to be put aside."""
    os.mkfifo(path := tmp_path / "pipe")
    assert place(path) is None
    put_aside(path)
    assert os.listdir(tmp_path) == ["pipe"]
    assert path.is_fifo()


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
