"""Measure on this machine's GPU which way a layer's products go fastest, and keep it.

``python -m fastmlp.backends.decide --dtype bf16 tf32 --shape 8192,8192,8192``

Each way is the Triton backend's own call, forced that way, so that what is timed is what would run:
ReLU and a bias, all gradients. The ways take turns, so that a drifting clock meets all alike.
"""

from __future__ import annotations

import argparse
import datetime
import shlex
import statistics
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
import triton
from triton.testing import do_bench

from fastmlp.activations import TABLE, Act
from fastmlp.backends.base import NOTHING, BackwardOptions, Undo
from fastmlp.backends.triton_backend import TritonBackend
from fastmlp.kernels.launch import INTERPRETED
from fastmlp.kernels.offline.case import NUMERICS, Run, Shape
from fastmlp.kernels.tiles import decisions
from fastmlp.kernels.tiles.decisions import CONTENDERS, LIBRARY, OPS, Machine, Row
from fastmlp.kernels.tune import Timer, alike, parse_shape, tensors_of

#: A row serves sizes up to a power of two away: these reach from 65 examples to 32,768 and from widths of 129
#: to 8192.
SHAPES: tuple[Shape, ...] = (
    *((m, n, k) for m in (256, 2048, 16384) for n in (512, 4096) for k in (512, 4096)),
    (8192, 8192, 8192),
)
ROUNDS = 11
_RELU = Act(TABLE["relu"])


def problem(op: str, dtype: str, shape: Shape, device: str) -> Run:
    """A call of the Triton backend on random matrices: ``op`` of a layer of ``shape`` (M, N, K)."""
    storage, compute, _ = NUMERICS[dtype]
    m, n, k = shape

    def random(*sizes: int, dtype: torch.dtype = compute) -> torch.Tensor:
        return torch.randn(sizes, device=device, dtype=torch.float32).to(dtype)

    backend, x = TritonBackend(), random(m, k)
    weight, bias = random(n, k, dtype=storage).mul_(k**-0.5), random(n, dtype=storage)
    if op == "forward":
        return lambda: backend.linear_act(x, weight, bias, _RELU, False, compute)
    grad, undone = random(m, n), op == "backward_prologue"
    after = Undo(_RELU, random(m, n).relu_()) if undone else NOTHING
    options = BackwardOptions(compute, after, before=Undo(_RELU, x), bias_dtype=storage)
    return lambda: backend.linear_backward(grad, x, weight, options)


def measure(
    op: str,
    dtype: str,
    shape: Shape,
    timer: Timer,
    machine: Machine,
    device: str = "cuda",
    rounds: int = ROUNDS,
    command: str = "",
    say: Callable[[str], object] = lambda way: None,
) -> tuple[Row | None, dict[str, str]]:
    """Time every way in turns: the row, and why a way is not in it. No row where none of them ran.

    ``say`` is told a way before it is tried.
    """
    run = problem(op, dtype, shape, device)
    skipped: dict[str, str] = {}
    results: dict[str, list[torch.Tensor]] = {}
    for way in CONTENDERS:
        say(way)
        try:
            with decisions.force(way):
                results[way] = tensors_of(run())
        except Exception as error:  # the arguments do not fit, or the kernel does not run here
            skipped[way] = f"{type(error).__name__}: {error}".split("\n")[0]
    judge = LIBRARY if LIBRARY in results else next(iter(results), "")  # cuBLAS is not ours
    usable = [way for way, result in results.items() if alike(result, results[judge])]
    skipped |= {way: f"another result than {judge}'s" for way in results if way not in usable}
    samples: dict[str, list[float]] = {way: [] for way in usable}
    for turn in range(rounds):
        first = turn % max(len(usable), 1)
        for way in usable[first:] + usable[:first]:
            say(way)
            with decisions.force(way):
                samples[way].append(timer(run) / 1e3)
    if not usable:
        return None, skipped
    seconds = {way: _quartiles(times) for way, times in samples.items()}
    versions = {
        "torch": torch.__version__,
        "triton": triton.__version__,
        "cuda": str(torch.version.cuda or torch.version.hip),
    }
    today = datetime.date.today().isoformat()
    return Row(machine.device, machine.arch, op, dtype, *shape, seconds, versions, today, command), skipped


def _quartiles(times: Sequence[float]) -> list[float]:
    return statistics.quantiles(times, n=4, method="inclusive") if len(times) > 1 else [*times] * 3


def decide(
    todo: Iterable[tuple[str, str, Shape]], timer: Timer, machine: Machine, **options: Any
) -> Iterator[str]:
    """Measure each (op, dtype, shape), keep its row in the cache file at once, and say what it decides."""
    for op, dtype, shape in todo:
        row, skipped = measure(op, dtype, shape, timer, machine, **options)
        if row is not None:
            decisions.write([row])
        notes = "".join(f"\n  {way} skipped: {reason[:160]}" for way, reason in skipped.items())
        yield decisions.explain(machine, op, dtype, *shape) + notes


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; 2 where there is no GPU to measure on."""
    parser = argparse.ArgumentParser("fastmlp.backends.decide", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--op", nargs="+", choices=OPS, default=list(OPS))
    parser.add_argument("--dtype", nargs="+", choices=list(NUMERICS), default=["bf16", "tf32"])
    parser.add_argument(
        "--shape", nargs="+", type=parse_shape, metavar="M,N,K", default=SHAPES,
        help="rows, output and input features of a layer",
    )  # fmt: skip
    arguments = parser.parse_args(argv)
    if INTERPRETED:
        parser.error("TRITON_INTERPRET is set: times would be the interpreter's; unset it")
    if not torch.cuda.is_available():
        parser.error("torch sees no GPU, and this measures: run it on the machine that will train")
    command = shlex.join(
        ["python", "-m", "fastmlp.backends.decide", *(sys.argv[1:] if argv is None else argv)]
    )
    timer = partial(do_bench, warmup=5, rep=20, return_mode="median")
    for dtype in arguments.dtype:
        before = torch.backends.cuda.matmul.fp32_precision
        torch.backends.cuda.matmul.fp32_precision = "tf32" if dtype == "tf32" else "ieee"
        try:
            todo = [(op, dtype, shape) for op in arguments.op for shape in arguments.shape]
            for line in decide(todo, timer, decisions.machine(), command=command):
                print(line, flush=True)
        finally:
            torch.backends.cuda.matmul.fp32_precision = before
    print(f"measurements are in {decisions.path()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
