"""The tuner, with a clock of our own: it has no GPU to measure here."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import astuple
from pathlib import Path

import pytest
import torch

from fastmlp.kernels import tune
from fastmlp.kernels.offline import training_cases
from fastmlp.kernels.offline.case import Run
from fastmlp.kernels.offline.cases import MATRIX_PROBLEMS
from fastmlp.kernels.offline.resources import ARCHITECTURES
from fastmlp.kernels.tiles import configs
from fastmlp.kernels.tiles.configs import Tile, TmaTile

SHAPE = (24, 16, 40)
BEST = Tile(32, 32, 32, 8, 4, 2)
SLOW = Tile(32, 16, 32, 8, 4, 2)
BROKEN = Tile(24, 32, 32)  # not a power of two: does not compile


@pytest.fixture(autouse=True)
def cache_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Empty; and nothing ships."""
    (tmp_path / "nothing.json").write_text("{}")
    monkeypatch.setattr(configs, "_SHIPPED", tmp_path / "nothing.json")
    monkeypatch.setenv("FASTMLP_CACHE_DIR", str(tmp_path / "cache"))
    configs.forget()
    yield tmp_path / "cache"
    monkeypatch.undo()
    configs.forget()


def chosen() -> Tile:
    """The tile that the tuner tries right now."""
    assert configs._override is not None
    family, tile = configs._override
    assert configs.lookup(family, "sm_90", "half", 1, 1) == tile
    assert configs.lookup("another", "interpret", "half", 1, 1) != tile
    return tile


def clock(run: Run) -> float:
    run()
    tile = chosen()
    return {BEST: 1.0, SLOW: 3.0}.get(Tile(*astuple(tile)[:6]), 2.0)


def tiles_of(family: str) -> list[Tile]:
    """The three as the family's own kind of tile."""
    return [configs.tile_type(family)(*astuple(tile)) for tile in (SLOW, BROKEN, BEST)]


def run_tuner(family: str, device: str, dtypes: tuple[str, ...] = ("bf16",)) -> list[tune.Trial]:
    todo = tune.problems([family], dtypes, [SHAPE], "sm_90", device)  # the key's arch; it runs on `device`
    ((key, trials),) = tune.tune(todo, clock, lambda *_: tiles_of(family))
    assert key == (family, "sm_90", "half", "narrow")
    print(tune.report(key, trials, todo[key]))
    return trials


# An epoch has a program for every multiprocessor, too many for the interpreter.
@pytest.mark.few(1)
@pytest.mark.parametrize("family", [name for name in MATRIX_PROBLEMS if name != "epoch"])
def test_the_winner_is_written_and_looked_up(family: str, device: str) -> None:
    table = configs.TABLE[family, "sm_90", "half", "narrow"]
    assert configs.lookup(family, "sm_90", "half", 16, 40) == table
    trials = run_tuner(family, device)
    slow, broken, best = tiles_of(family)
    assert [trial.tile for trial in trials] == [best, table, slow, broken]
    assert configs.lookup(family, "sm_90", "half", 16, 40) == best
    assert configs.read_cache() == {(family, "sm_90", "half", "narrow"): best}


def test_what_an_architecture_lacks_is_not_tuned(device: str) -> None:
    families = [*configs.TMA_FAMILIES, "linear"]
    for arch, expected in (("sm_80", ["linear"] * 2), ("sm_90", [*families, "linear"])):
        found = tune.problems(families, ["bf16", "fp32"], [SHAPE], arch, device)
        assert [key[0] for key in found] == expected


def test_candidates_of_tma() -> None:
    """Warps are specialized where Triton can; an epilogue's part is never narrower than 64 columns."""
    for key in configs.TABLE:
        if key[0] in configs.TMA_FAMILIES:
            tiles = tune.candidates(*key)
            assert all(isinstance(tile, TmaTile) for tile in tiles)
            ways = {tile.WARP_SPECIALIZE for tile in tiles}
            assert ways == ({False, True} if key[1] == "sm_100" else {False})
            assert min(tile.BLOCK_N // tile.SUBTILES for tile in tiles) == 64


def test_a_tile_that_does_not_compile_is_skipped(device: str, capsys: pytest.CaptureFixture[str]) -> None:
    broken = run_tuner("linear", device)[-1]
    assert broken.skipped
    assert "skipped 1: " in capsys.readouterr().out


def test_dtypes_that_share_a_key_are_judged_together(device: str) -> None:
    best, *_ = run_tuner("linear", device, ("bf16", "fp16"))
    assert best.times == [[1.0] * tune.ROUNDS, [1.0] * tune.ROUNDS]


def test_a_tile_with_another_result_is_skipped() -> None:
    """A miscompiled kernel may well be fast."""
    right, wrong = torch.ones(3), torch.ones(3) * 1.1
    problem = tune.Problem(lambda: (wrong if chosen() == BEST else right, None), 1.0)
    trials = tune.measure("linear", [SLOW, BEST], [problem], clock)
    assert [bool(trial.skipped) for trial in trials] == [False, True]


@pytest.mark.parametrize("part", ["update", "epoch"])
def test_a_trainings_tiles_are_told_apart_by_what_becomes_of_the_weights(
    part: str, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call that is timed leaves them as they are."""
    monkeypatch.setattr(training_cases, "num_sms", lambda index: 2)
    monkeypatch.setattr(training_cases, "_TIMED_STEPS", 2)
    ((_, (problem,)),) = tune.problems([part], ["fp32"], [SHAPE], "sm_90", device).items()
    weights = [layer.weight for layer in problem.run.problem.layers]
    start = [weight.clone() for weight in weights]
    right = problem.result()
    problem.run()
    assert all(torch.equal(*pair) for pair in zip(weights, start))
    assert all(moved.norm() > 0 for moved in right)
    with configs.override(part, BEST):
        assert tune.alike(problem.result(), right)
    rule = problem.run.problem.hypers
    monkeypatch.setattr(rule, "zero_", lambda: rule.fill_(0.0))
    launched = getattr(type(problem.run.problem), part)
    monkeypatch.setattr(type(problem.run.problem), part, lambda self: (launched(self), weights[0].add_(0.01)))
    assert not tune.alike(problem.result(), right)


def test_promising_tiles_are_near_the_packages() -> None:
    for key in configs.TABLE:
        tiles = tune.promising(key, 5)
        assert len(set(tiles)) == 5, key
        assert set(tiles) <= set(tune.candidates(*key)) - {configs.default(key)}, key
        shown = {(*astuple(tile)[:3], tile.num_warps, tile.num_stages, *astuple(tile)[6:]) for tile in tiles}
        assert len(shown) == 5, f"{key}: two differ in nothing that the kernel reads"


def test_a_tile_is_said_before_it_is_tried() -> None:
    said: list[Tile] = []
    tried: list[tuple[Tile, Tile]] = []
    problem = tune.Problem(lambda: tried.append((chosen(), said[-1])), 1.0)
    tune.measure("linear", [SLOW, BEST], [problem], lambda run: run() or 1.0, rounds=2, say=said.append)
    assert [tile for tile, _ in tried] == [tile for _, tile in tried] == said
    assert len(said) == 6


def test_nothing_is_written_where_nothing_ran(cache_dir: Path) -> None:
    def fail() -> None:
        raise RuntimeError("out of resource: shared memory")

    todo = {("linear", "sm_90", "half", "narrow"): [tune.Problem(fail, 1.0)]}
    ((_, trials),) = tune.tune(todo, clock, lambda *_: [BEST])
    assert all("shared memory" in trial.skipped for trial in trials)
    assert not cache_dir.exists()


def test_rounds_start_at_another_tile_each() -> None:
    order: list[Tile] = []

    def record(run: Run) -> float:
        order.append(chosen())
        return 1.0

    tiles = [Tile(16, 16, 16 << i) for i in range(3)]
    tune.measure("linear", tiles, [tune.Problem(lambda: (), 1.0)], record, rounds=3)
    a, b, c = tiles
    assert order == [a, b, c, b, c, a, c, a, b]


def test_candidates_fit_the_machine() -> None:
    for key in configs.TABLE:
        _, arch, precision, _ = key
        tiles = tune.candidates(*key)
        assert 10 < len(tiles) < 130, key
        assert len(set(tiles)) == len(tiles), key
        itemsize = 2 if precision == "half" else 4
        for tile in tiles:
            operands = tile.num_stages * (tile.BLOCK_M + tile.BLOCK_N) * tile.BLOCK_K * itemsize
            assert operands <= ARCHITECTURES[arch].shared_limit, key


def test_bad_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    for *arguments, said in (
        ["--shape", "1,2", "'1,2', expected M,N,K"],
        ["--shape", "0,1,1", "'0,1,1', expected sizes of at least 1"],
        ["--shape", "1,257,1", "at most 256 output features"],
        ["--family", "softmax", "'softmax'"],
        ["--dtype", "int8", "'int8'"],
    ):
        with pytest.raises(SystemExit) as stopped:
            tune.main(arguments)
        assert stopped.value.code == 2
        assert said in capsys.readouterr().err


@pytest.mark.deep
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to tune")
def test_no_gpu_is_said() -> None:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "fastmlp.kernels.tune", "--family", "linear"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert "no GPU" in done.stderr
