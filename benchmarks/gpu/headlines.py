"""The table that everybody asks for: our times beside every peer's, each result compared with float64's."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import torch

from fastmlp.costs import devices
from fastmlp.costs.ceilings import Ceilings, measure_ceilings
from fastmlp.data import DataError, Images, load
from fastmlp.data.synthetic import synthetic

from .. import cases, epochs, peers, whole_net
from ..cases import A, Case
from ..measure import Effort, Row, measure
from ..numerics import products
from ..store import load as load_report
from .ahead import Ahead
from .worker import Bench

_FP32, _BF16, _FP16 = torch.float32, torch.bfloat16, torch.float16
#: What compiles for seconds before its first call: measured when every row has its first numbers.
_SLOW = (*peers.COMPILING, peers.JAX, peers.LIGER, peers.CUT, peers.TCNN, peers.TORCH_CHUNKS)
#: Never measured here: they take minutes.
_NEVER = (peers.AUTOTUNED, peers.BOOK, peers.BOOK_WORKERS)
_FIRST = Effort(rounds=31, seconds=0.4, without=(*_SLOW, *_NEVER), verify=True)
_SECOND = Effort(rounds=31, seconds=0.8, without=_NEVER, verify=True)
_REHEARSED = Effort(rounds=3, seconds=0.05, without=(*_SLOW, *_NEVER), verify=True)
_REHEARSED_CEILINGS = Ceilings(
    {1 << 20: 1e10}, dict.fromkeys(("float32", "tf32", "bfloat16", "float16"), 1e11), 1e-6
)


def run(bench: Bench) -> None:
    """Every row in a short version first; then again beside the peers that have to be compiled."""
    with Ahead(bench) as ahead:
        if not bench.toy:
            for place in range(len(list(_own_kernels()))):
                ahead.submit_call(_call, place)
        ceilings = _ceilings(bench)
        for full in (False, True) if not bench.toy else (False,):
            effort = _REHEARSED if bench.toy else _SECOND if full else _FIRST
            for case in headlines(bench):
                make = partial(_row, bench, case, ceilings, effort)
                if full:  # what goes wrong leaves the row that is there
                    bench.row(f"{case}, every peer", make, part="every peer")
                else:
                    bench.row(str(case), make, part=_part(case))


def _call(place: int) -> None:
    """Call ours of one row, so that its kernels are compiled."""
    case = list(_own_kernels())[place]
    with products(case.precision):
        case.on("cpu")[peers.OURS]().call()


def headlines(bench: Bench) -> Iterator[Case]:
    """The most important first."""
    yield from _small() if bench.toy else _large(_images(bench))


def _large(images: Images) -> Iterator[Case]:
    alone = list(_own_kernels())
    yield from alone[:2]
    for dtype in (_FP32, _BF16):
        yield epochs.resident(images, dtype)
    yield from alone[2:]
    yield cases.linear_cross_entropy(8192, 4096, 128256, _BF16)


def _own_kernels() -> Iterator[Case]:
    """Those that launch only our kernels, so that nothing large is computed where the GPU is stubbed."""
    for dtype in (_FP32, _BF16):
        yield cases.training_step(A, 256, dtype, tuple(peers.MODES), key=True)
    for side, kind in itertools.product((1024, 4096, 8192), ("bf16", "tf32", "fp16")):
        yield linear(side, kind)
    yield cases.cross_entropy(4096, 128256, _BF16, key=True)
    for kind, (widths, batch) in whole_net.NETS.items():
        for training in (False, True):
            yield whole_net.mlp(widths, batch, _BF16, training, kind, key=True)
    for batch, dtype in itertools.product((1, 4096), (_FP32, _BF16)):
        yield cases.inference(A, batch, dtype, key=True)


def _small() -> Iterator[Case]:
    """One of each kind, for a rehearsal."""
    widths = (16, 16, 10)
    yield cases.training_step(widths, 32, _FP32, key=True)
    train = synthetic(train=300, test=10)[0]
    images = Images(train.images[:, ::7, ::7].contiguous(), train.labels, train.classes, train.name)
    yield epochs.resident(images, _FP32, widths)
    for kind in ("bf16", "tf32", "fp16"):
        yield linear(32, kind)
    yield cases.cross_entropy(8, 100, _BF16, key=True)
    for training in (False, True):
        yield whole_net.mlp(widths, 16, _BF16, training, "policy", key=True)
    yield cases.inference(widths, 1, _FP32, key=True)
    yield cases.linear_cross_entropy(8, 16, 50, _BF16)


def linear(side: int, kind: str) -> Case:
    """A square layer in bf16, tf32 or fp16."""
    dtype = {"bf16": _BF16, "tf32": _FP32, "fp16": _FP16}[kind]
    case = cases.linear_relu((side, side, side), dtype, backward=False, modes=(peers.COMPILED,), key=True)
    return replace(case, tf32=kind == "tf32")


def _images(bench: Bench) -> Images:
    """Fashion-MNIST where it is at hand: an epoch takes as long with any other images of its shape."""
    try:
        return load(bench.data, print)[0] if bench.data is not None else synthetic()[0]
    except (DataError, ImportError) as error:
        print(f"{error}: the synthetic set instead")
        return synthetic()[0]


def _ceilings(bench: Bench) -> Ceilings:
    """Those that an earlier stage has measured."""
    try:
        found = load_report(bench.out)["ceilings"]
        return Ceilings(**found | {"copy": {int(size): rate for size, rate in found["copy"].items()}})
    except (OSError, ValueError, LookupError, TypeError):
        return measured_ceilings(bench)


def measured_ceilings(bench: Bench) -> Ceilings:
    """Measured now, and reported; made up in a rehearsal, whose times say nothing."""
    ceilings = _REHEARSED_CEILINGS if bench.toy else measure_ceilings(bench.device, quick=True)
    bench.tell(ceilings=ceilings.json())
    return ceilings


def _part(case: Case) -> str:
    return "epochs" if case.group == epochs.EPOCH else "cases"


def _row(bench: Bench, case: Case, ceilings: Ceilings, effort: Effort) -> Row:
    with products(case.precision):
        row = measure(case, bench.device, ceilings, effort, say=lambda what: bench.note(f"{case}: {what}"))
        row["foretold"] = foretold(case)
    return _without_broken_engines(bench, row) | {"part": _part(case)}


def foretold(case: Case) -> float:
    """Seconds by the vendor's numbers and `devices.LAUNCH`, before anything was measured here.

    Launches follow one another, and each takes its share of the work: exact where one stream, of memory or of
    products, bounds them all.
    """
    gpu, kind = devices.find(), devices.operand_kind(case.dtype)
    work = min((case.plans or {"": case.work}).values(), key=lambda one: gpu.seconds(*_streams(one), kind))
    return gpu.seconds(*_streams(work), kind) + (work.launches - 1) * gpu.launch


def _streams(work: cases.Work) -> tuple[int, int, int, int]:
    return work.operations, work.bytes, work.cached, 0


def _without_broken_engines(bench: Bench, row: Row) -> Row:
    """The row, without the times of engines whose training went wrong in its dtype."""
    if row["group"] != epochs.EPOCH:
        return row
    try:
        rows = load_report(bench.out)["rows"]
    except (OSError, ValueError):
        return row
    broken = {
        one.get("engine", "").partition("+")[0]
        for one in rows
        if one["part"] == "engines" and "error" in one and one.get("dtype") == row["dtype"]
    }
    names = {peers.OURS_ENGINES[engine] for engine in broken & peers.OURS_ENGINES.keys()}
    if not names:
        return row
    seconds = {name: timing for name, timing in row["seconds"].items() if name not in (*names, peers.OURS)}
    return row | {"seconds": seconds, "error": f"wrong in the stage «engines»: {', '.join(sorted(names))}"}
