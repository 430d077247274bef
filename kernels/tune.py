"""Measure tiles on this machine's GPU and keep the fastest ones in the cache file.

``python -m fastmlp.kernels.tune --family linear linear_backward --dtype bf16 tf32 --shape 256,256,784``

A tile serves a whole bucket of shapes, so the winner is the one with the lowest geometric mean over
the bucket's shapes and dtypes. The table's own tile is always among the candidates.
"""

from __future__ import annotations

import argparse
import itertools
import math
import statistics
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor
from triton.testing import do_bench

from fastmlp.kernels.compile import align
from fastmlp.kernels.launch import INTERPRETED, arch_of
from fastmlp.kernels.loss.head import MAX_CLASSES
from fastmlp.kernels.offline.case import NUMERICS, Run, Shape
from fastmlp.kernels.offline.cases import MATRIX_PROBLEMS
from fastmlp.kernels.offline.resources import ARCHITECTURES
from fastmlp.kernels.tiles import configs
from fastmlp.kernels.tiles.configs import Key, Tile, TmaTile

#: Milliseconds that a call takes.
Timer = Callable[[Run], float]

#: Two narrow weights and two wide ones; a head's are as narrow as its classes are few.
SHAPES: tuple[Shape, ...] = ((256, 256, 784), (1024, 512, 512), (1024, 1024, 1024), (4096, 4096, 4096))
HEAD_SHAPES: tuple[Shape, ...] = ((256, 10, 256), (1024, 100, 1024), (4096, 256, 4096))
#: Nets that run whole: rows and their width twice.
MLP_SHAPES: tuple[Shape, ...] = ((1 << 16, 64, 64), (1 << 16, 128, 128))
WIDE_MLP_SHAPES: tuple[Shape, ...] = ((1 << 16, 256, 256),)
_SHAPES = {
    "head": HEAD_SHAPES,
    "mlp": MLP_SHAPES,
    "mlp_backward": MLP_SHAPES,
    "mlp_wide": WIDE_MLP_SHAPES,
    "mlp_wide_backward": WIDE_MLP_SHAPES,
    "mlp_gradients": MLP_SHAPES + WIDE_MLP_SHAPES,
}
ROUNDS = 3
# Two tiles add in different orders; a wrong one is far off.
_TOLERANCE = 0.02


@dataclass
class Problem:
    """One launch to time, and the floating-point operations it does."""

    run: Run
    flops: float

    def result(self) -> list[Tensor]:
        """What tiles have to agree on: what the launch returns, or what it says that it makes."""
        return tensors_of(getattr(self.run, "result", self.run)())


@dataclass
class Trial:
    """One tile: its times (ms) on each problem, or why it was skipped."""

    tile: Tile
    times: list[list[float]] = field(default_factory=list)
    skipped: str = ""

    @property
    def ms(self) -> float:
        """The geometric mean over the problems of the median times."""
        return statistics.geometric_mean(statistics.median(times) for times in self.times)


def candidates(family: str, arch: str, precision: str, bucket: str) -> list[Tile]:
    """Tiles worth a try: nearly square, accumulators fit the registers, operands the shared memory."""
    if family in configs.TMA_FAMILIES:
        return _tma_candidates(arch, precision, bucket)
    architecture = ARCHITECTURES[configs.nearest(arch)]
    itemsize = 2 if precision == "half" else 4
    lanes = architecture.target.warp_size
    most = 32 if precision == "ieee" else 128  # accumulators a thread; without tensor cores operands too
    sides = (32, 64, 128) if bucket == "narrow" else (64, 128, 256)
    reductions = (16, 32) if precision == "ieee" else (32, 64, 128)
    stages = (1, 2) if architecture.target.backend == "hip" else (2, 3, 4)
    head = family == "head"  # its BLOCK_N is the classes, its rows are few
    pairs = [(m, 0) for m in (16, 32, 64)] if head else list(itertools.product(sides, sides))
    found = []
    for (m, n), k, warps, depth in itertools.product(pairs, reductions, (4, 8), stages):
        accumulators = m * n // (warps * lanes)
        fits = depth * (m + n) * k * itemsize <= architecture.shared_limit and accumulators <= most
        sensible = max(m, n) <= 2 * min(m, n) and (warps == 4 or m * n >= 64 * 64)
        if fits and (head or sensible):
            found.append(Tile(m, n, k, configs.group_m(family), warps, depth))
    return found


def _tma_candidates(arch: str, precision: str, bucket: str) -> list[Tile]:
    """Tiles for the kernel that TMA feeds: 128-byte rows, so that the copies meet no bank twice."""
    limit = ARCHITECTURES[configs.nearest(arch)].shared_limit
    itemsize = 2 if precision == "half" else 4
    sides = (64, 128) if bucket == "narrow" else (64, 128, 256)
    specialized = (False, True) if configs.nearest(arch) == "sm_100" else (False,)
    found: list[Tile] = []
    for m, n, k, warps, depth, parts, specialize in itertools.product(
        (64, 128), sides, (64 // itemsize, 128 // itemsize), (4, 8), (2, 3, 4), (1, 2, 4), specialized
    ):
        operands, result = depth * (m + n) * k * itemsize, m * n // parts * itemsize
        full = k * itemsize == 128 or configs.nearest(arch) == "sm_120"
        fits = operands + result <= limit and m * n // (warps * 32) <= 128
        if fits and full and n >= m and parts * 64 <= n and (warps == 4) == (m * n < 128 * 128):
            found.append(TmaTile(m, n, k, 8, warps, depth, parts, specialize))
    return found


def promising(key: Key, most: int) -> list[Tile]:
    """Up to ``most`` candidates for ``key``: the fewest doublings away from `configs.default`."""
    default = configs.default(key)

    def far(tile: Tile) -> int:
        return sum(abs(a - b) for a, b in zip(_powers(tile), _powers(default)))

    return [tile for tile in sorted(candidates(*key), key=far) if tile != default][:most]


def _powers(tile: Tile) -> list[int]:
    return [
        int(value).bit_length() if name != "num_stages" else value for name, value in asdict(tile).items()
    ]


def problems(
    families: Iterable[str],
    dtypes: Iterable[str],
    shapes: Iterable[Shape] | None,
    arch: str,
    device: str,
) -> dict[Key, list[Problem]]:
    """What to time, by the key of the table that it decides; on typical shapes if none are given."""
    found: dict[Key, list[Problem]] = {}
    for family, dtype in itertools.product(families, dtypes):
        (make, products), numerics = MATRIX_PROBLEMS[family], NUMERICS[dtype]
        precision = configs.precision_class(numerics.compute, numerics.precision)
        if not configs.exists(family, arch, precision):
            continue
        for m, n, k in shapes or _SHAPES.get(family, SHAPES):
            problem = Problem(make(numerics, (m, n, k), device=device), 2.0 * m * n * k * products)
            found.setdefault((family, arch, precision, configs.bucket(n, k, family)), []).append(problem)
    return found


def measure(
    family: str,
    tiles: Sequence[Tile],
    todo: Sequence[Problem],
    timer: Timer,
    rounds: int = ROUNDS,
    say: Callable[[Tile], object] = lambda tile: None,
) -> list[Trial]:
    """Time every tile of ``family`` on every problem, in rounds that each start at another tile.

    A GPU's clock drifts: tiles that are timed in turns see the same drift. ``say`` is told of a tile before
    it is tried.
    """
    trials = [Trial(tile, [[] for _ in todo]) for tile in dict.fromkeys(tiles)]
    reference: list[list[Tensor]] | None = None
    for trial in trials:
        say(trial.tile)
        try:
            with configs.override(family, trial.tile):
                results = [problem.result() for problem in todo]
        except Exception as error:  # out of registers or shared memory, or the compiler gave up
            trial.skipped = f"{type(error).__name__}: {error}".split("\n")[0]
            continue
        reference = reference or results
        if not all(alike(*pair) for pair in zip(results, reference)):
            trial.skipped = "another result than the first tile's"
    usable = [trial for trial in trials if not trial.skipped]
    for turn in range(rounds):
        first = turn * len(usable) // rounds
        for trial in usable[first:] + usable[:first]:
            say(trial.tile)
            with configs.override(family, trial.tile):
                for times, problem in zip(trial.times, todo):
                    times.append(timer(problem.run))
    return trials


def tensors_of(result: Any) -> list[Tensor]:
    """The tensors among what a call returned."""
    return [t for t in result or () if isinstance(t, Tensor)]


def alike(result: list[Tensor], reference: list[Tensor]) -> bool:
    """Whether two ways gave the same, up to the order in which they add."""
    return all(
        (a.float() - b.float()).norm().item() <= _TOLERANCE * b.float().norm().item()
        for a, b in zip(result, reference)
    )


def tune(
    todo: dict[Key, list[Problem]],
    timer: Timer,
    tiles: Callable[..., Sequence[Tile]] = candidates,
    **options: Any,
) -> Iterator[tuple[Key, list[Trial]]]:
    """Each key with its trials, the fastest first; the winner goes to the cache file at once.

    Args:
        todo: see `problems`.
        timer: times one call.
        tiles: the candidates for a key.
        options: of `measure`.
    """
    for key, mine in todo.items():
        trials = measure(key[0], [configs.default(key), *tiles(*key)], mine, timer, **options)
        trials.sort(key=lambda trial: math.inf if trial.skipped else trial.ms)
        if not trials[0].skipped:
            configs.write_cache({key: trials[0].tile})
        yield key, trials


def report(key: Key, trials: Sequence[Trial], todo: Sequence[Problem]) -> str:
    """The trials of one key as text."""
    usable = [trial for trial in trials if not trial.skipped]
    table = next((trial for trial in usable if trial.tile == configs.default(key)), None)
    flops = statistics.geometric_mean(problem.flops for problem in todo)
    lines = [("tile", "warps", "stages", "ms", "TFLOP/s", "speed against the table's", "")]
    for trial in usable:
        tile = trial.tile
        blocks = f"{tile.BLOCK_M}x{tile.BLOCK_N}x{tile.BLOCK_K}"
        speed = f"{table.ms / trial.ms:.2f}" if table else "", "table" if trial is table else ""
        rate = f"{trial.ms:.4f}", f"{flops / trial.ms / 1e9:.1f}"
        lines.append((blocks, str(tile.num_warps), str(tile.num_stages), *rate, *speed))
    reasons = sorted(Counter(trial.skipped for trial in trials if trial.skipped).items())
    skipped = [f"skipped {count}: {reason[:200]}\n" for reason, count in reasons]
    return f"{' '.join(key)}\n{align(lines)}\n{''.join(skipped)}"


def parse_shape(text: str) -> Shape:
    """M,N,K of the command line."""
    try:
        m, n, k = (int(number) for number in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}, expected M,N,K") from None
    if min(m, n, k) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}, expected sizes of at least 1")
    return m, n, k


def main(argv: Sequence[str] | None = None) -> int:
    """Tune and print; 2 where there is no GPU to measure on."""
    parser = argparse.ArgumentParser("fastmlp.kernels.tune", description=(__doc__ or "").split("\n")[0])
    families = list(MATRIX_PROBLEMS)
    parser.add_argument("--family", nargs="+", choices=families, default=families)
    parser.add_argument("--dtype", nargs="+", choices=list(NUMERICS), default=["bf16", "tf32", "fp32"])
    parser.add_argument(
        "--shape", nargs="+", type=parse_shape, metavar="M,N,K",
        help="rows, output and input features of a layer",
    )  # fmt: skip
    arguments = parser.parse_args(argv)
    if "head" in arguments.family and any(n > MAX_CLASSES for _, n, _ in arguments.shape or ()):
        parser.error(f"--shape: a head has at most {MAX_CLASSES} output features; leave it out of --family")
    if INTERPRETED:
        parser.error("TRITON_INTERPRET is set: times would be the interpreter's; unset it")
    if not torch.cuda.is_available():
        parser.error("torch sees no GPU, and tiles are measured: run this on the machine that will train")
    arch = arch_of(torch.empty(0, device="cuda", dtype=torch.float32))
    todo = problems(arguments.family, arguments.dtype, arguments.shape, arch, "cuda")
    for key, trials in tune(todo, partial(do_bench, warmup=10, rep=40, return_mode="median")):
        print(report(key, trials, todo[key]), flush=True)
    print(f"winners are in {configs.cache_file()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
