"""Compile every kernel for every architecture, with no GPU, and report what each one takes.

``python -m fastmlp.kernels.compile --arch sm_80 sm_90 sm_100 sm_120 gfx942``

The real launchers run on tensors without memory, so what is compiled is what production would
launch: its tiles (a tuner's cache included) and its specializations. The exit code is 1 if a
kernel does not compile, spills registers, needs more shared memory than there is, multiplies 16-bit or
TF32 matrices without tensor cores, lacks the TMA or the specialized warps that its launch asks for, moves
global memory by less than 16 bytes a thread where that is what it waits for and its tensors allow it, or
sums products across lanes in a way that leaves other bits in other lanes; with ``--against`` an earlier
report, also if it takes more than it took there.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
import triton
from triton import knobs
from triton.tools.tensor_descriptor import TensorDescriptor

from fastmlp.kernels.common.arguments import in_which
from fastmlp.kernels.launch import INTERPRETED, Launch, dry_run, record_launches
from fastmlp.kernels.offline.resources import ARCHITECTURES, Resources, read
from fastmlp.kernels.tiles import configs


@dataclass(frozen=True)
class Row:
    """One kernel of one case on one architecture: what it takes, or why it did not compile."""

    arch: str
    family: str
    kernel: str
    variant: str
    dtype: str
    tile: str
    needs_tensor_cores: bool
    resources: Resources | None = None
    error: str = ""
    needs_tma: bool = False
    needs_specialization: bool = False
    needs_wide: str = ""  # "loads", "stores" or both of global memory

    def problems(self) -> list[str]:
        """What is wrong with the kernel; empty if nothing is."""
        if self.resources is None:
            return [f"does not compile: {self.error}"]
        found, limit = [], ARCHITECTURES[self.arch].shared_limit
        if self.resources.local:
            found.append(f"{self.resources.local} bytes of local memory a thread")
        if self.resources.shared > limit:
            found.append(f"{self.resources.shared} bytes of shared memory, the limit is {limit}")
        if self.needs_tensor_cores and not self.resources.tensor_cores:
            found.append("no tensor-core instruction")
        if self.needs_tma and not self.resources.tma:
            found.append("no TMA instruction")
        if self.needs_specialization and not self.resources.warp_specialized:
            found.append("no specialized warps")
        if self.resources.torn_sums:
            found.append(f"{self.resources.torn_sums} sums of products that lanes may round differently")
        for moves in self.needs_wide.split():
            if not self.resources.widest(moves) >= 16:
                found.append(f"no {moves} of 16 bytes")
        return found

    def changes(self, before: Row) -> list[str]:
        """What it takes now that differs from ``before``."""
        was, now = before.resources, self.resources
        if was is None or now is None:
            return [self.error or "compiles now"] if was is not now else []
        unknown = {name for name in ("loads", "stores") if vars(was)[name] is None}
        return [
            f"{name} {vars(was)[name]} -> {vars(now)[name]}"
            for name in vars(now)
            if vars(was)[name] != vars(now)[name] and name not in unknown
        ]

    def is_worse(self, before: Row) -> bool:
        """Whether it takes more than ``before``, or does without instructions that were there."""
        was, now = before.resources, self.resources
        if was is None or now is None:
            return was is not None and now is None
        return (
            -(-now.registers // 8) > -(-was.registers // 8)  # a thread gets them by eights
            or now.local > was.local
            or now.shared > was.shared
            or (now.tensor_memory or 0) > (was.tensor_memory or 0)
            or not was.tensor_cores.keys() <= now.tensor_cores.keys()
            or now.tma < was.tma
            or now.warp_specialized < was.warp_specialized
            or now.torn_sums > was.torn_sums
            or any(now.widest(moves) < was.widest(moves) for moves in ("loads", "stores"))
        )


@contextmanager
def specializations() -> Iterator[list[str]]:
    """Collect, instead of compiling, what `warmup` would compile: a key for each kernel it lacks."""
    keys: list[str] = []

    def hook(*, key: str, fn: Any, **_: Any) -> bool:
        keys.append(f"{fn.module}.{fn.name}{key}")
        return True  # compiles nothing

    before = knobs.runtime.jit_cache_hook
    knobs.runtime.jit_cache_hook = hook
    try:
        yield keys
    finally:
        knobs.runtime.jit_cache_hook = before


#: Kernels bound by memory, and what they are to move in wide pieces.
_WIDE = {
    "cross_entropy_forward_kernel": "loads",
    "cross_entropy_backward_kernel": "loads stores",
    "mse_forward_kernel": "loads",
    "mse_backward_kernel": "loads stores",
    "sum_splits_kernel": "loads stores",
    "dropout_mask_kernel": "stores",
    "update_kernel": "loads stores",
}


def warmup(launch: Launch) -> Any:
    """What `launch.launch` would compile for ``launch``, compiled."""
    return launch.kernel.warmup(*launch.args, grid=launch.grid, **launch.options, enable_fp_fusion=True)


@cache
def tasks(arch: str) -> list[tuple[Row, Launch]]:
    """The launches to compile for ``arch``, each specialization once, and their rows to be filled in."""
    from fastmlp.kernels.offline.cases import cases  # imports every kernel

    found: dict[str, tuple[Row, Launch]] = {}
    with dry_run(ARCHITECTURES[arch].target), specializations() as keys:
        for case in cases():
            with record_launches() as launches:
                case.run()
            for one in launches:
                keys.clear()
                warmup(one)
                row = Row(
                    arch,
                    case.family,
                    one.name,
                    case.variant,
                    case.dtype,
                    _tile(one),
                    _needs_tensor_cores(one),
                    needs_tma=any(isinstance(argument, TensorDescriptor) for argument in one.args),
                    needs_specialization=bool(getattr(one.options.get("TILE"), "WARP_SPECIALIZE", False)),
                    # A program of AMD's has twice the threads for the same block: some have 8 bytes each.
                    needs_wide=_WIDE.get(one.name, "") if case.wide and arch.startswith("sm_") else "",
                )
                found.setdefault(keys[0], (row, one))
    return list(found.values())


def _tile(launch: Launch) -> str:
    """The launch's blocks, warps and stages, in brief."""
    tile = launch.options.get("TILE")
    sizes = launch.options if tile is None else tile._asdict()
    blocks = "x".join(str(v) for k, v in sizes.items() if k.startswith("BLOCK"))
    stages = f" s{launch.options['num_stages']}" if "num_stages" in launch.options else ""
    return f"{blocks} w{launch.options.get('num_warps', 4)}{stages}"


def _needs_tensor_cores(launch: Launch) -> bool:
    """Whether the launch multiplies matrices that tensor cores take."""
    dtype, precision = in_which(launch.named) or ("", "")
    return precision == "tf32" or dtype in ("fp16", "bf16")


def compile_task(arch: str, index: int) -> Row:
    """Compile one of `tasks`; an error is kept in the row."""
    row, one = tasks(arch)[index]
    try:
        with dry_run(ARCHITECTURES[arch].target):
            return replace(row, resources=read(warmup(one)))
    except Exception as error:
        return replace(row, error=" ".join(f"{type(error).__name__}: {error}".split())[-300:])


def compile_all(todo: Sequence[tuple[str, int]], jobs: int) -> Iterator[Row]:
    """The row of every (architecture, index into its tasks), compiled by ``jobs`` processes."""
    while todo:
        done = 0
        # A compiler's crash takes a whole pool down; one process then goes on, to show which kernel did it.
        with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
            futures = [pool.submit(compile_task, *one) for one in todo]
            try:
                for future in futures:
                    yield future.result()
                    done += 1
            except BrokenProcessPool:
                if jobs == 1:
                    arch, index = todo[done]
                    yield replace(tasks(arch)[index][0], error="the compiler crashed")
                    done += 1
        jobs, todo = 1, todo[done:]


# Loads and stores of global memory: bytes a thread x how many.
HEADER = (*"kernel case dtype tile regs spill shared % loads stores".split(), "tensor cores", "")


def align(lines: Sequence[Sequence[str]]) -> str:
    """Lines of cells as columns, numbers to the right; the first line is the header."""
    columns = list(zip(*lines))
    widths = [max(map(len, column)) for column in columns]
    numeric = [all(c.replace(".", "").isdigit() or not c for c in column[1:]) for column in columns]
    return "\n".join(
        "  ".join(c.rjust(w) if right else c.ljust(w) for c, w, right in zip(line, widths, numeric)).rstrip()
        for line in lines
    )


def _cells(row: Row) -> tuple[str, ...]:
    name = (row.kernel, row.variant, row.dtype, row.tile)
    mark = "; ".join(row.problems())
    mark = mark and f"<-- {mark}"
    if row.resources is None:
        return (*name, *[""] * 7, mark)
    used = row.resources
    cores = [f"{kind} {count}" for kind, count in used.tensor_cores.items()]
    if used.tensor_memory:
        cores.append(f"tmem {used.tensor_memory}")
    if used.tma:
        cores.append(f"TMA {used.tma}")
    if used.warp_specialized:
        cores.append("specialized warps")
    percent = round(100 * used.shared / ARCHITECTURES[row.arch].shared_limit)
    sizes = map(str, (used.registers, used.local, used.shared, percent))
    moves = (" ".join(f"{w}x{n}" for w, n in (each or {}).items()) for each in (used.loads, used.stores))
    return *name, *sizes, *moves, ", ".join(cores), mark


def summary(arch: str, rows: Sequence[Row]) -> str:
    """One line for an architecture."""
    compiled = [row.resources for row in rows if row.resources]
    failing = sum(bool(row.problems()) for row in rows)
    return (
        f"{arch}: {len(rows)} kernels, "
        f"{max((r.registers for r in compiled), default=0)} registers at most, "
        f"{sum(bool(r.local) for r in compiled)} spill, "
        f"{max((r.shared for r in compiled), default=0)} of {ARCHITECTURES[arch].shared_limit} "
        f"bytes shared at most, {'all pass' if not failing else f'{failing} FAIL'}"
    )


def _write_json(path: Path, rows: Sequence[Row]) -> None:
    report = {
        "triton": triton.__version__,
        "torch": torch.__version__,
        "kernels": [{**asdict(row), "problems": row.problems()} for row in rows],
    }
    path.write_text(json.dumps(report, indent=1))


def read_json(path: Path) -> list[Row]:
    """The rows of an earlier report."""
    rows = []
    for kernel in json.loads(path.read_text())["kernels"]:
        del kernel["problems"]
        used = kernel.pop("resources")
        for moves in ("loads", "stores"):  # whose numbers JSON made strings
            if used and used.get(moves) is not None:
                used[moves] = {int(width): count for width, count in used[moves].items()}
        rows.append(Row(**kernel, resources=used and Resources(**used)))
    return rows


def compare(before: Sequence[Row], after: Sequence[Row]) -> tuple[str, int]:
    """The kernels whose needs have changed, and how many of them are worse."""
    was, now = _by_name(before), _by_name(after)
    both = [name for name in now if name in was]
    changed = [name for name in both if now[name].changes(was[name])]
    worse = [name for name in changed if now[name].is_worse(was[name])]
    lines: list[tuple[str, ...]] = [("arch", "kernel", "case", "dtype", "tile", "then -> now", "")]
    for name in changed:
        mark = "<-- worse" if name in worse else ""
        lines.append((*name[:5], "; ".join(now[name].changes(was[name])), mark))
    lines += [(*name[:5], "gone", "") for name in was if name not in now]
    lines += [(*name[:5], "new", "") for name in now if name not in was]
    said = f"{len(both) - len(changed)} of {len(both)} as before, {len(worse)} worse"
    return f"{align(lines)}\n{said}" if lines[1:] else said, len(worse)


def _by_name(rows: Sequence[Row]) -> dict[tuple[str, ...], Row]:
    """A case can compile a kernel more than once: the first of them, the second, ..."""
    seen: Counter[tuple[str, ...]] = Counter()
    named: dict[tuple[str, ...], Row] = {}
    for row in rows:
        name = (row.arch, row.kernel, row.variant, row.dtype, row.tile)
        seen[name] += 1
        named |= {(*name, str(seen[name])): row}
    return named


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("fastmlp.kernels.compile", description=(__doc__ or "").split("\n")[0])
    known = list(ARCHITECTURES)
    parser.add_argument("--arch", nargs="+", choices=known, default=known, help="default: all of them")
    parser.add_argument(
        "-k", "--family", nargs="+", metavar="WORD", default=[""], dest="words",
        help="only cases whose family, variant or dtype has one of these words in it",
    )  # fmt: skip
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report there as well")
    parser.add_argument("--against", type=Path, metavar="FILE", help="such a report: say what changed since")
    arguments = parser.parse_args(argv)
    if arguments.jobs < 1:
        parser.error(f"--jobs: {arguments.jobs}, expected at least 1")
    try:
        arguments.before = read_json(arguments.against) if arguments.against else []
    except (OSError, ValueError, LookupError, TypeError) as error:
        parser.error(f"--against: {arguments.against} is no report ({error})")
    if INTERPRETED:
        parser.error("TRITON_INTERPRET is set, under which nothing is compiled: unset it")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Print the report; 0 if every kernel passes, 1 if one does not, 2 for wrong usage."""
    arguments = _arguments(argv)
    started = time.perf_counter()
    todo = [
        (arch, index)
        for arch in dict.fromkeys(arguments.arch)
        for index, (row, _) in enumerate(tasks(arch))
        if _has(row, arguments.words)
    ]
    if not todo:
        print(f"no case has any of these words: {' '.join(arguments.words)}", file=sys.stderr)
        return 2
    rows = list(compile_all(todo, min(arguments.jobs, len(todo))))
    by_arch = {arch: [row for row in rows if row.arch == arch] for arch in dict.fromkeys(arguments.arch)}
    for arch, mine in by_arch.items():
        print(f"{arch}\n{align([HEADER, *map(_cells, mine)])}\n")
    print("\n".join(summary(arch, mine) for arch, mine in by_arch.items()))
    tiles = f", tiles of {configs.cache_file()}" if configs.read_cache() else ""
    print(f"{len(rows)} kernels in {time.perf_counter() - started:.0f} s, Triton {triton.__version__}{tiles}")
    if arguments.json:
        _write_json(arguments.json, rows)
    worse = 0
    if arguments.against:
        then = [row for row in arguments.before if row.arch in by_arch and _has(row, arguments.words)]
        said, worse = compare(then, rows)
        print(f"\nSince {arguments.against}:\n{said}")
    return int(bool(worse) or any(row.problems() for row in rows))


def _has(row: Row, words: Sequence[str]) -> bool:
    return any(word in f"{row.family} {row.variant} {row.dtype}" for word in words)


if __name__ == "__main__":
    sys.exit(main())
