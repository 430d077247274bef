"""Every case of the kernels natively: as near float64 as torch's own error allows, and the same bits twice.

Other processes compile the cases' kernels into Triton's cache, in the order in which this one runs them.
``python -m benchmarks.gpu.smoke KEY`` runs one case alone, for the sanitizers.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from functools import cache
from typing import Any, NamedTuple
from unittest import mock

import torch

from fastmlp.kernels.linear import backward as linear_backward
from fastmlp.kernels.offline import cases as problems
from fastmlp.kernels.offline import loss_cases, mlp_cases, training_cases
from fastmlp.kernels.offline.case import NUMERICS, Case

from ..measure import Row, new_row, reason
from ..numerics import error, excess
from .ahead import Ahead, compiler_error
from .calls import Call, watched
from .references import LAUNCHERS
from .worker import Bench

TOOLS = ("memcheck", "racecheck")
#: Seconds that a sanitizer may take for a case, and the characters of its output that are kept.
PATIENCE, KEPT = 30.0, 8000


class Key(NamedTuple):
    """A case's name."""

    family: str
    variant: str
    dtype: str

    def __str__(self) -> str:
        return "/".join(self)


def run(bench: Bench) -> None:
    """Compile and judge the cases, one of every family and dtype first, then one of every variant."""
    with _small(bench.toy), Ahead(bench) as ahead:
        keys = [_key(case) for case in _cases(bench.device, bench.toy)]
        rounds = [[key for key in one if not bench.has(str(key))] for one in in_rounds(keys)]
        tasks = {key: ahead.submit(launches, key) for one in rounds for key in one}
        failed = [key for one in rounds for key in _failing(bench, one, ahead, tasks)]
    for key in failed:
        watch(bench, key)


def _failing(bench: Bench, keys: Sequence[Key], ahead: Ahead, tasks: dict[Key, Future[None]]) -> list[Key]:
    """Measure these cases; returns those that compile but fail."""
    failing = []
    for case in _cases(bench.device, bench.toy) if keys else ():
        key = _key(case)
        if key in keys:
            ahead.wait([tasks[key]], str(key))
            problem = compiler_error(tasks[key])
            problem = f"does not compile: {problem}" if problem else ""
            if not measured(bench, key, case, problem):
                failing.append(key)
    return failing


def measured(bench: Bench, key: Key, case: Case, problem: str) -> bool:
    """Measure a case; False if it fails though it compiles. ``problem`` says why it does not compile."""
    try:
        row = bench.row(str(key), lambda: judge(key, case, problem))
    except SystemExit:  # CUDA's context is broken: a fresh process goes on, but only this one knows the case
        watch(bench, key, share=6)
        raise
    return row is None or "error" not in row or bool(problem)


def judge(key: Key, case: Case, problem: str = "") -> Row:
    """The row of a case: its worst error, and what is wrong."""
    row = new_row("kernels", key.variant, key.dtype, family=key.family)
    try:
        if problem:
            raise RuntimeError(problem)
        with watched(LAUNCHERS) as calls:
            case.run()
        return row | _verdict(calls)
    except Exception as error:
        return row | {"error": reason(error)}


def _verdict(calls: Sequence[Call]) -> Row:
    found: list[dict[str, Any]] = []
    wrong: list[str] = []
    repeatable = True
    for call in calls:
        again, torchs, exact = call.again(), call.torchs(), call.exact()
        for name, ours in call.ours.items():
            right, theirs = exact[name], torchs[name]
            if (ours is None) != (right is None):
                wrong.append(f"{name}: {'not asked for' if right is None else 'missing'}")
            if ours is None or right is None or theirs is None:
                continue
            if not _same_bits(ours, again[name]):
                repeatable = False
                wrong.append(f"{name}: not the same bits twice")
            theirs = theirs.to(ours.dtype)
            try:
                mine, bound = error(ours, right), call.allowed(ours, theirs, right)
            except AssertionError as problem:
                wrong.append(f"{name}: {problem}")
                continue
            if mine > bound:
                wrong.append(f"{name}: error {mine:.3e}, allowed {bound:.3e}")
            if math.isfinite(mine):
                found.append({"what": name, "error": mine, "allowed": bound, "torch": error(theirs, right)})
    worst = max(found, key=excess, default=None)
    row: Row = {"repeatable": repeatable}
    if worst:
        row |= {"error_norm": worst["error"], "torch_error": worst.pop("torch"), "allowed": worst["allowed"]}
        row["worst"] = worst
    if not (found or wrong):
        wrong.append("no result was judged")
    return row | {"error": "; ".join(wrong)} if wrong else row


def _same_bits(one: torch.Tensor, other: torch.Tensor | None) -> bool:
    return other is not None and torch.equal(*(t.reshape(-1).view(torch.uint8) for t in (one, other)))


def in_rounds(keys: Iterable[Key]) -> list[list[Key]]:
    """First one of every family and dtype, then one of every variant that is left, then the others."""
    left = list(keys)
    rounds: list[list[Key]] = []
    seen: set[Hashable] = set()
    kinds: tuple[Callable[[Key], Hashable], ...] = (
        lambda key: (key.family, key.dtype, "dtype"),
        lambda key: (key.family, key.variant, "variant"),
        lambda key: key,
    )
    for kind in kinds:
        chosen = []
        for key in left:
            if kind(key) not in seen:
                chosen.append(key)
                seen |= {of(key) for of in kinds}
        left = [key for key in left if key not in chosen]
        rounds.append(chosen)
    return rounds


def _key(case: Case) -> Key:
    return Key(case.family, case.variant, case.dtype)


def _cases(device: str, toy: bool) -> Iterator[Case]:
    """The cases, each made as it comes; a case has the same contents in every process."""
    torch.manual_seed(0)
    return toys(device) if toy else problems.cases(device)


def toys(device: str) -> Iterator[Case]:
    """A case of every family, small, ragged where it may be: together they launch every kernel."""
    bf16, fp32, tf32 = (NUMERICS[name] for name in ("bf16", "fp32", "tf32"))
    shape = 37, 10, 50
    yield Case("linear", "gelu", "bf16", problems.linear(bf16, shape, "gelu", device, keep_z=True))
    yield Case("linear", "affine", "fp32", problems.linear(fp32, shape, "relu", device, quantized="affine"))
    dropped = problems.backward(bf16, shape, "gelu", "relu", device, dropouts=(True, True))
    yield Case("linear_backward", "dropout", "bf16", dropped)
    split = problems.backward(fp32, (70, 5, 9), "prelu", "none", device, scale="params")
    yield Case("linear_backward", "long", "fp32", split)
    yield Case("matmul", "tanh", "bf16", problems.linear(bf16, (40, 24, 48), "tanh", device, by_tma=True))
    backward = problems.backward_tma(tf32, (40, 24, 48), "gelu", device)
    yield Case("matmul_backward", "gelu", "tf32", backward)
    smooth = loss_cases.head(bf16, (70, 10, 20), "relu", device, smoothing=0.1, keep_logits=True)
    yield Case("head", "smoothing", "bf16", smooth)
    yield Case("head", "mse", "fp32", loss_cases.head(fp32, (70, 7, 20), "tanh", device, loss="mse"))
    logits = loss_cases.cross_entropy(torch.float32, (40, 300, 1), device, weight=True)
    yield Case("cross_entropy", "weight", "fp32", logits)
    yield Case(
        "mse", "weight", "bf16", loss_cases.squared_error(torch.bfloat16, (40, 10), device, weight=True)
    )
    yield Case("mlp", "silu", "fp32", mlp_cases.mlp(fp32, (5, 17, 9, 3), 70, "silu", device=device))
    kind = training_cases.Kind((18, 16, 5), batch=32, rule="adam", act="tanh")
    for part in ("step", "epoch"):
        small = training_cases.problem(kind, torch.float32, "ieee", device=device, examples=40)
        yield Case(part, "adam", "fp32", getattr(small, part))
    mask = lambda: problems.dropout_mask(problems._dropout(device, 1), 40, 100)  # noqa: E731
    yield Case("dropout", "mask", "fp32", mask)


@contextmanager
def _small(toy: bool) -> Iterator[None]:
    """In a rehearsal few programs share an epoch, and a short batch counts as long."""
    if not toy:
        yield
        return
    with (
        mock.patch.object(training_cases, "num_sms", return_value=2),
        mock.patch.object(linear_backward, "_ROWS_PER_SPLIT", 16),
    ):
        yield


def launches(key: Key) -> None:
    """Launch what a case launches, on tensors without memory."""
    _dry_cases()[key].run()


@cache
def _dry_cases() -> dict[Key, Case]:
    return {_key(case): case for case in problems.cases()}


def watch(bench: Bench, key: Key, share: int = 2) -> None:
    """A row of what the sanitizers say about a case, alone in a fresh process.

    Each may take `PATIENCE`, and no more than the time left divided by ``share``.
    """

    def make() -> Row:
        row = new_row("sanitizer", str(key), said={})
        found = shutil.which("compute-sanitizer", path=f"{os.environ['PATH']}:/usr/local/cuda/bin")
        for tool in TOOLS:
            if found is None:
                row["missing"][tool] = "no compute-sanitizer on PATH or in /usr/local/cuda/bin"
                continue
            bench.note(f"{key}: {tool}")
            seconds = max(1.0, min(PATIENCE, bench.left() / share))
            command = [found, "--tool", tool, *_alone(key, bench.toy, seconds)]
            row["said"][tool] = _said(command, seconds)
        return row

    bench.row(f"{key} alone", make)


def _alone(key: Key, toy: bool, seconds: float) -> list[str]:
    options = ["--seconds", str(int(seconds) + 1), *(["--toy"] if toy else [])]
    return [sys.executable, "-m", __spec__.name, str(key), *options]


def _said(command: Sequence[str], seconds: float) -> str:
    """The command's output (if long, its beginning and end), and how it ended."""
    with tempfile.TemporaryFile() as file:  # something that outlives the command might hold a pipe open
        began = time.time()
        environment = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}  # nothing lies beside a tensor
        try:
            code = subprocess.run(
                command, stdout=file, stderr=subprocess.STDOUT, timeout=seconds, env=environment, check=False
            ).returncode
            ended = f"exit code {code} after {time.time() - began:.0f} s"
        except subprocess.TimeoutExpired:
            ended = f"ended after {seconds:.0f} s"
        file.seek(0)
        text = file.read().decode(errors="replace").strip()
    if len(text) > KEPT:
        text = f"{text[: KEPT // 2]}\n[...]\n{text[-KEPT // 2 :]}"
    return f"{text}\n{ended}"


def main(argv: Sequence[str] | None = None) -> int:
    """Judge one case; 0 if nothing is wrong with it."""
    parser = argparse.ArgumentParser(__spec__.name, description="one case of the kernels, alone")
    parser.add_argument("key", help="family/variant/dtype")
    parser.add_argument("--toy", action="store_true", help="as in a rehearsal, on interpreted kernels")
    parser.add_argument("--seconds", type=int, default=0, help="end after that many")
    arguments = parser.parse_args(argv)
    if arguments.seconds:
        signal.alarm(arguments.seconds)
    with _small(arguments.toy):
        for case in _cases("cpu" if arguments.toy else "cuda", arguments.toy):
            if str(_key(case)) == arguments.key:
                row = judge(_key(case), case)
                print(json.dumps(row))
                return int("error" in row)
    parser.error(f"{arguments.key}: no such case")


if __name__ == "__main__":
    sys.exit(main())
