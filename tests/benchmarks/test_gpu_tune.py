"""The stage that tunes: what it writes is what ships, and nothing is written anywhere else."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu import tune
from benchmarks.gpu.tune import Tiles, Ways
from benchmarks.gpu.worker import Bench
from benchmarks.measure import Row
from fastmlp.backends import triton_backend
from fastmlp.kernels import tune as tuner
from fastmlp.kernels.launch import INTERPRETED
from fastmlp.kernels.offline.case import Run
from fastmlp.kernels.tiles import configs, decisions
from fastmlp.kernels.tiles.configs import Tile

pytestmark = pytest.mark.skipif(not INTERPRETED, reason="a rehearsal: on a GPU the stage itself runs")

SHAPE = (32, 32, 32)
KEY = ("linear", "interpret", "half", "narrow")
ROW = "tiles, linear, half, narrow"
LINEAR = Tiles(("linear",), ("bf16",), (SHAPE,), 1)


@pytest.fixture(autouse=True)
def cache_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The user's, which stays as it is; and nothing ships."""
    monkeypatch.setenv("FASTMLP_CACHE_DIR", str(tmp_path / "cache"))
    (tmp_path / "nothing.json").write_text("{}")
    for module in (configs, decisions):
        monkeypatch.setattr(module, "_SHIPPED", tmp_path / "nothing.json")
    tune._forget()
    yield tmp_path / "cache"
    assert os.environ["FASTMLP_CACHE_DIR"] == str(tmp_path / "cache")
    assert not (tmp_path / "cache").exists()
    monkeypatch.undo()
    tune._forget()


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Row]]:
    """Run it with a plan and a clock; its files go to ``tmp_path``, its notes to ``notes``."""

    def run(
        *plan: Tiles | Ways,
        clock: Callable[[Run], float] = ours_is_fast,
        done: tuple[str, ...] = (),
        seconds: float = 1000.0,
    ) -> list[Row]:
        messages: list[dict[str, Any]] = []
        monkeypatch.setattr(tune, "TOY", plan)
        monkeypatch.setattr(tune, "clock", lambda bench: clock)
        tune.run(Bench(messages.append, seconds, frozenset(done), "cpu", toy=True, out=tmp_path))
        for message in messages:
            if "file" in message:
                (tmp_path / message["file"]).write_text(message["text"])
        run.notes = [message["note"] for message in messages if "note" in message]
        run.left_out = [message["left_out"] for message in messages if "left_out" in message]
        return [message["row"] for message in messages if "row" in message]

    return run


def milliseconds(run: Run, other: float) -> float:
    """The package's tile, or the pointer kernel, takes 2; another ``other``."""
    run()
    tried = configs._override
    if tried is not None:
        return 2.0 if tried[1] == configs.default(KEY) else other
    return 2.0 if decisions._forced == (decisions.POINTER,) else other


def ours_is_fast(run: Run) -> float:
    return milliseconds(run, 1.0)


def test_the_files_are_read_back(
    stage: Callable[..., list[Row]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_tile, *of_ops = stage(LINEAR, Ways(("bf16",), (SHAPE,)))
    (better,) = tuner.promising(KEY, 1)
    assert (of_tile["key"], of_tile["group"], of_tile["dtype"]) == (ROW, "tiles", "bfloat16")
    assert (of_tile["choice"], of_tile["gain"]) == (tune.text(better), 2.0)
    assert of_tile["table"] == tune.text(configs.default(KEY)) != of_tile["choice"]
    assert of_tile["seconds"][of_tile["choice"]]["median"] == pytest.approx(1e-3)
    assert [row["label"].split(",")[0] for row in of_ops] == [*decisions.OPS]
    for row in of_ops:
        assert row["choice"] in (decisions.TMA, decisions.LIBRARY)
        assert (row["table"], row["gain"]) == (decisions.POINTER, 2.0)
    assert "undone" in of_ops[2]["missing"]["tma"]
    assert f"{ROW}: {tune.text(better)}" in stage.notes
    assert f"{of_ops[0]['key']}: library" in stage.notes

    assert configs.default(KEY) != better
    monkeypatch.setattr(configs, "_SHIPPED", tmp_path / "tiles.json")
    monkeypatch.setattr(decisions, "_SHIPPED", tmp_path / "decisions.json")
    tune._forget()
    assert configs.shipped() == {KEY: better}
    assert configs.default(KEY) == better
    for op in decisions.OPS:
        found = decisions.choose(decisions.machine(), op, "bf16", *SHAPE)
        assert found.row is not None
        assert found.row.command == "python -m benchmarks.gpu"
        assert found.order[0] in (decisions.TMA, decisions.LIBRARY)
    assert len(json.loads((tmp_path / "decisions.json").read_text())) == 3


def test_a_tile_that_is_hardly_faster_stays_out(stage: Callable[..., list[Row]], tmp_path: Path) -> None:
    (row,) = stage(LINEAR, clock=lambda run: milliseconds(run, 1.99))
    assert (row["choice"], row["gain"]) == (row["table"], 1.0)
    assert json.loads((tmp_path / "tiles.json").read_text()) == {}


def test_what_ships_stays(
    stage: Callable[..., list[Row]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = ("head", "sm_90", "half", "narrow")
    shipped = tmp_path / "shipped.json"
    shipped.write_text(json.dumps(configs.entries({other: Tile(16, 0, 32, 1, 4, 2)})))
    monkeypatch.setattr(configs, "_SHIPPED", shipped)
    tune._forget()
    stage(LINEAR)
    assert set(json.loads((tmp_path / "tiles.json").read_text())) == {"/".join(other), "/".join(KEY)}


def test_a_process_that_goes_on_keeps_what_was_found(stage: Callable[..., list[Row]], tmp_path: Path) -> None:
    plan = LINEAR, Ways(("bf16",), (SHAPE,))
    (first, *_) = stage(*plan)
    rows = stage(*plan, done=(first["key"],))
    assert len(rows) == 3
    assert list(json.loads((tmp_path / "tiles.json").read_text())) == ["/".join(KEY)]
    stage(*plan, clock=lambda run: milliseconds(run, 3.0))  # anew: nothing of before counts
    assert json.loads((tmp_path / "tiles.json").read_text()) == {}


def test_a_tile_with_another_result_is_not_chosen(
    stage: Callable[..., list[Row]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuner, "alike", lambda result, reference: result is reference)
    (row,) = stage(LINEAR)
    assert row["choice"] == row["table"]
    (wrong,) = tuner.promising(KEY, 1)
    assert row["missing"] == {tune.text(wrong): "another result than the first tile's"}


def test_a_table_whose_tile_fails_is_an_error(
    stage: Callable[..., list[Row]], monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = Tile(24, 32, 32)  # not a power of two
    monkeypatch.setitem(configs.TABLE, ("linear", "gfx942", "half", "narrow"), broken)
    monkeypatch.setattr(tuner, "promising", lambda key, most: [Tile(32, 32, 32)])
    (row,) = stage(LINEAR)
    assert row["error"].startswith(f"the table's {tune.text(broken)}: ")
    assert row["choice"] == tune.text(Tile(32, 32, 32))


def test_a_way_with_another_result_is_an_error(
    stage: Callable[..., list[Row]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Our kernels are what everybody runs; the decision is made without it."""
    monkeypatch.setattr(triton_backend, "linear_act_tma", lambda x, *_: (x * 0, None))
    row, *others = stage(Ways(("bf16",), (SHAPE,)))
    assert row["error"] == "tma: another result than library's"
    assert (row["choice"], row["gain"]) == (decisions.LIBRARY, 2.0)
    assert not any("error" in other for other in others)


def test_what_did_not_compile_is_not_tried(
    stage: Callable[..., list[Row]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def submit(self: Any, make: Any, *arguments: Any) -> Future[None]:
        task: Future[None] = Future()
        if arguments[-1] == configs.default(KEY):
            task.set_result(None)
        else:
            task.set_exception(RuntimeError("PassManager::run failed"))
        return task

    monkeypatch.setattr(tune.Ahead, "submit", submit)
    (row,) = stage(LINEAR)
    assert row["choice"] == row["table"]
    assert [*row["missing"].values()] == ["RuntimeError: PassManager::run failed"]


def test_no_row_is_begun_when_the_time_is_over(stage: Callable[..., list[Row]]) -> None:
    assert stage(LINEAR, Ways(("bf16",), (SHAPE,)), seconds=0.0) == []
    assert stage.left_out[0] == ROW
    assert len(stage.left_out) == 4


def test_the_plan_has_the_headlines_shapes() -> None:
    shapes = {shape for part in tune.PLAN for shape in part.shapes}
    assert {(8192, 8192, 8192), (4096, 4096, 4096), (1024, 1024, 1024), (256, 256, 784)} <= shapes
    ways = [part for part in tune.PLAN if isinstance(part, Ways)]
    assert set(ways[0].dtypes) == {"bf16", "tf32", "fp16"}
    for part in tune.PLAN:  # a row is a key of the table
        if isinstance(part, Tiles):
            for family in part.families:
                assert len({configs.bucket(n, k, family) for _, n, k in part.shapes}) == 1
