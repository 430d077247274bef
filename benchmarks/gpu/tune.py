"""Tiles for the headlines' shapes, and ours or cuBLAS, as the very files that get committed.

``tiles.json`` and ``decisions.json`` beside the report hold what ships in ``kernels/`` and what was measured
here. They are written with every row. The user's own are neither read nor written.
"""

from __future__ import annotations

import itertools
import json
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from shutil import copyfile
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from triton.testing import do_bench

from fastmlp.backends import decide
from fastmlp.kernels import tune
from fastmlp.kernels.launch import arch_of
from fastmlp.kernels.offline.case import NUMERICS, Run, Shape
from fastmlp.kernels.offline.cases import MATRIX_PROBLEMS
from fastmlp.kernels.tiles import configs, decisions
from fastmlp.kernels.tiles.configs import Key, Tile, TmaTile

from ..measure import Row, new_row, reason
from ..numerics import products
from ..timing import Timing
from .ahead import Ahead, compiler_error

if TYPE_CHECKING:
    from .worker import Bench

TILES, DECISIONS = "tiles", "decisions"
FILES = ("tiles.json", "decisions.json")
_WORTH = 1.02  # how much faster than the package's a tile must be to take its place
_DTYPES = {"bf16": "bfloat16", "fp16": "float16", "tf32": "tf32", "fp32": "float32"}
_ROUNDS = 3
_ALL = ("bf16", "tf32", "fp32")


class Tiles(NamedTuple):
    """Which tiles to look for: a row for each dtype."""

    families: tuple[str, ...]
    dtypes: tuple[str, ...]
    shapes: tuple[Shape, ...]
    most: int  # candidates, the package's own not counted


class Ways(NamedTuple):
    """Which decisions to make: a row for each op, dtype and shape."""

    dtypes: tuple[str, ...]
    shapes: tuple[Shape, ...]


BOOK: Shape = (256, 256, 784)
CUBES: tuple[Shape, ...] = ((8192, 8192, 8192), (4096, 4096, 4096), (1024, 1024, 1024))
_LARGE = ("matmul", "matmul_backward", "linear", "linear_backward")
#: What matters most comes first: there may be no time for all. A part's kernels are compiled while the part
#: before is measured, so large tiles come well before the decisions that use them.
PLAN: tuple[Tiles | Ways, ...] = (
    Tiles(_LARGE, ("bf16",), CUBES, 6),
    Tiles(_LARGE, ("tf32",), CUBES, 5),
    Tiles(("linear", "update", "epoch"), _ALL, (BOOK,), 5),
    Tiles(("head",), _ALL, ((256, 10, 256),), 5),
    Ways(("bf16", "tf32", "fp16"), CUBES),
    *(Tiles(("mlp", "mlp_backward", "mlp_gradients"), ("bf16",), (shape,), 3) for shape in tune.MLP_SHAPES),
    Tiles(("mlp_wide", "mlp_wide_backward"), ("bf16",), tune.WIDE_MLP_SHAPES, 3),
    Tiles(("linear_backward", "linear_backward_prologue"), _ALL, (BOOK,), 5),
    Ways(("bf16", "tf32"), tuple(shape for shape in decide.SHAPES if shape not in CUBES)),
)
#: A rehearsal's. An epoch has a program for every multiprocessor, too many for the interpreter.
TOY: tuple[Tiles | Ways, ...] = (
    Tiles(("linear", "update", "mlp"), ("bf16",), ((32, 32, 32),), 1),
    Ways(("bf16",), ((32, 32, 32),)),
)


def run(bench: Bench) -> None:
    """The stage."""
    rows = [list(_rows(part, bench)) for part in (TOY if bench.toy else PLAN)]
    parts = [[row for row in part if not bench.has(row.name)] for part in rows]
    with _files(bench, go_on=sum(map(len, parts)) < sum(map(len, rows))), Ahead(bench) as ahead:
        for row in parts[0]:
            row.compile(ahead)
        for part, following in zip(parts, [*parts[1:], []]):
            for row in following:
                row.compile(ahead)
            for row in part:
                bench.row(row.name, partial(_kept, row, ahead, bench))


def _rows(part: Tiles | Ways, bench: Bench) -> Iterator[_Tile | _Decision]:
    if isinstance(part, Ways):
        for shape, dtype, op in itertools.product(part.shapes, part.dtypes, decisions.OPS):
            yield _Decision(op, dtype, shape, bench)
        return
    arch = arch_of(torch.empty(0, device=bench.device))
    for family, dtype in itertools.product(part.families, part.dtypes):
        numerics, (_, n, k) = NUMERICS[dtype], part.shapes[0]
        precision = configs.precision_class(numerics.compute, numerics.precision)
        if configs.exists(family, arch, precision):
            yield _Tile((family, arch, precision, configs.bucket(n, k, family)), dtype, part, bench)


def _kept(row: _Tile | _Decision, ahead: Ahead, bench: Bench) -> Row:
    """The row; what it decides is written to the files before it is reported."""
    made = new_row(row.group, row.label, _DTYPES[row.dtype])
    try:
        with products(row.dtype):
            made |= row.measure(ahead)
    except Exception as error:
        made |= {"error": reason(error)}
    for name, text in zip(FILES, (tiles_text(), decisions_text())):
        bench.keep(name, text)
    return made


class _Tile:
    """The best tile for a key of the table."""

    group = TILES

    def __init__(self, key: Key, dtype: str, part: Tiles, bench: Bench) -> None:
        self._key, self.dtype, self._part, self._bench = key, dtype, part, bench
        self.label = f"{key[0]}, {key[2]}, {key[3]}"
        self.name = f"{TILES}, {self.label}"
        self._tasks: dict[Tile, Future[None]] = {}

    def compile(self, ahead: Ahead) -> None:
        tiles = [configs.default(self._key), *tune.promising(self._key, self._part.most)]
        family, shape = self._key[0], self._part.shapes[0]
        self._tasks = {
            tile: ahead.submit(tile_launches, family, self.dtype, shape, tile)
            for tile in dict.fromkeys(tiles)
        }

    def measure(self, ahead: Ahead) -> Row:
        ahead.wait([*self._tasks.values()], self.label)
        missing = {text(tile): _unready(task) for tile, task in self._tasks.items()}
        tiles = [tile for tile in self._tasks if not missing[text(tile)]]
        problems = tune.problems(
            [self._key[0]], [self.dtype], self._part.shapes, self._key[1], self._bench.device
        )
        ((_, trials),) = tune.tune(
            problems, clock(self._bench), lambda *_: tiles, rounds=_ROUNDS,
            say=lambda tile: self._bench.note(f"{self.name}: {text(tile)}"),
        )  # fmt: skip
        missing |= {text(trial.tile): trial.skipped for trial in trials}
        table = next(trial for trial in trials if trial.tile == configs.default(self._key))
        row: Row = {
            "table": text(table.tile),
            "seconds": {text(trial.tile): _timing(trial) for trial in trials if not trial.skipped},
            "missing": {tile: why for tile, why in missing.items() if why},
        }
        if table.skipped:  # it is what everybody has now
            row["error"] = f"the table's {text(table.tile)}: {table.skipped}"
        if trials[0].skipped:
            return row
        best = trials[0]
        if not table.skipped and table.ms < _WORTH * best.ms:
            best = table
            configs.write_cache({self._key: best.tile})
        row |= {"choice": text(best.tile), "gain": 1.0 if table.skipped else table.ms / best.ms}
        return row


class _Decision:
    """Which way a layer's products go."""

    group = DECISIONS

    def __init__(self, op: str, dtype: str, shape: Shape, bench: Bench) -> None:
        self._op, self.dtype, self._shape, self._bench = op, dtype, shape, bench
        m, n, k = shape
        self.label = f"{op}, {m} x {k} -> {n}"
        self.name = f"{DECISIONS}, {self.label}, {_DTYPES[dtype]}"
        self._task: Future[None] | None = None

    def compile(self, ahead: Ahead) -> None:
        self._task = ahead.submit(decision_launches, self._op, self.dtype, self._shape)

    def measure(self, ahead: Ahead) -> Row:
        ahead.wait([] if self._task is None else [self._task], self.label)
        machine, what = decisions.machine(), (self._op, self.dtype, self._shape)
        before = decisions.choose(machine, self._op, self.dtype, *self._shape).order
        row, skipped = decide.measure(
            *what, clock(self._bench), machine, self._bench.device, _ROUNDS, "python -m benchmarks.gpu",
            lambda way: self._bench.note(f"{self.name}: {way}"),
        )  # fmt: skip
        if row is None:
            return {"error": "no way runs", "missing": skipped}
        decisions.write([row])
        wrong = [f"{way}: {why}" for way, why in skipped.items() if why.startswith("another result")]
        seconds = {
            way: Timing(median, low, high, low, _ROUNDS) for way, (low, median, high) in row.seconds.items()
        }
        table = next((way for way in before if way in row.seconds), None)
        return {
            "choice": row.order[0],
            "table": table,
            "gain": None if table is None else row.seconds[table][1] / row.seconds[row.order[0]][1],
            "seconds": {way: asdict(timing) for way, timing in seconds.items()},
            "missing": skipped,
            **({"error": "; ".join(wrong)} if wrong else {}),
        }


def text(tile: Tile) -> str:
    """A tile in brief."""
    more = f" p{tile.SUBTILES}{' specialized' * tile.WARP_SPECIALIZE}" if isinstance(tile, TmaTile) else ""
    return f"{tile.BLOCK_M}x{tile.BLOCK_N}x{tile.BLOCK_K} w{tile.num_warps} s{tile.num_stages}{more}"


def _timing(trial: tune.Trial) -> dict[str, Any]:
    """Seconds: the geometric mean over the problems, of each round."""
    rounds = [1e-3 * statistics.geometric_mean(times) for times in zip(*trial.times)]
    return asdict(Timing(1e-3 * trial.ms, min(rounds), max(rounds), min(rounds), len(rounds)))


def _unready(task: Future[None]) -> str:
    """Why what it compiles cannot be tried."""
    return compiler_error(task) if task.done() else "not compiled in time"


def clock(bench: Bench) -> tune.Timer:
    """Milliseconds of a call; in a rehearsal of a single one."""

    def once(run: Run) -> float:
        began = time.perf_counter()
        run()
        return 1e3 * (time.perf_counter() - began)

    return once if bench.toy else partial(do_bench, warmup=4, rep=12, return_mode="median")


def tile_launches(family: str, dtype: str, shape: Shape, tile: Tile) -> None:
    """What a tile's trial launches, for `Ahead`."""
    with configs.override(family, tile):
        MATRIX_PROBLEMS[family][0](NUMERICS[dtype], shape, device="meta")()


def decision_launches(op: str, dtype: str, shape: Shape) -> None:
    """What our ways launch, for `Ahead`: each as far as it can."""
    with products(dtype):
        run = decide.problem(op, dtype, shape, "meta")
        for way in (decisions.TMA, decisions.POINTER):
            with suppress(Exception), decisions.force(way):
                run()


@contextmanager
def _files(bench: Bench, go_on: bool) -> Iterator[None]:
    """Inside the ``with`` block, measurements go to a folder of their own, which an earlier run may fill."""
    with tempfile.TemporaryDirectory() as folder:
        for name in FILES:
            if go_on and (bench.out / name).is_file():
                copyfile(bench.out / name, Path(folder) / name)
        before = os.environ.get("FASTMLP_CACHE_DIR")
        os.environ["FASTMLP_CACHE_DIR"] = folder
        _forget()
        try:
            yield
        finally:
            os.environ.pop("FASTMLP_CACHE_DIR")
            if before is not None:
                os.environ["FASTMLP_CACHE_DIR"] = before
            _forget()


def _forget() -> None:
    configs.forget()
    decisions.forget()


def tiles_text() -> str:
    """The new ``kernels/tiles/tiles.json``: what is there, and the better ones that were found."""
    better = {key: tile for key, tile in configs.read_cache().items() if tile != configs.default(key)}
    return _json(configs.entries(configs.shipped() | better))


def decisions_text() -> str:
    """The new ``kernels/tiles/decisions.json``: what is there, and what was measured."""
    return _json({row.key: asdict(row) for row in (*decisions.shipped(), *decisions.read())})


def _json(entries: dict[str, Any]) -> str:
    return json.dumps(entries, indent=1, sort_keys=True) + "\n"
