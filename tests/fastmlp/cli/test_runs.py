"""Names of runs, and that no run takes another's net away."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from fastmlp.cli import trainer
from fastmlp.cli.nets import load_net
from fastmlp.cli.options import Dataset, Settings
from fastmlp.cli.runs import beside, named, vacant
from fastmlp.training import Interrupted, load, position
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
