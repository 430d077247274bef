"""What is bound by memory moves 16 bytes a thread where its tensors allow it."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import pytest

from fastmlp.kernels.compile import Row
from fastmlp.kernels.offline.resources import Resources
from tests.processes import output_of

ARCHITECTURES = ("sm_80", "sm_90")
#: Cases of every kernel that waits for memory, in every size of an element; and one whose rows are odd.
CASES = {
    "cross_entropy": ["1000 classes", "128256 classes probabilities", "image 19 classes sum"],
    "mse": ["10 outputs", "10 outputs weight", "10 outputs none"],
    "linear_backward": ["long", "long no-bias"],
    "mlp": ["64 x 8 relu"],
    "dropout": ["mask 1024"],
    "step": ["book sgd", "fours sgd"],
}
ODD = {"cross_entropy": ["50257 classes"]}
KERNELS = {
    "cross_entropy_forward_kernel": {"bf16", "fp16", "fp32"},
    "cross_entropy_backward_kernel": {"bf16", "fp16", "fp32"},
    "mse_forward_kernel": {"bf16", "fp16", "fp32"},
    "mse_backward_kernel": {"bf16", "fp16", "fp32"},
    "sum_splits_kernel": {"bf16", "fp16", "fp32", "tf32"},
    "dropout_mask_kernel": {"fp32"},
    "update_kernel": {"bf16", "fp16", "tf32", "fp32"},
}


@cache
def compiled() -> list[tuple[Row, dict[str, Any]]]:
    """The kernels of the cases, compiled for each architecture, and the sizes they were launched with."""
    code = f"""
import json
from dataclasses import asdict
from fastmlp.kernels.compile import compile_task, tasks
rows = []
for arch in {ARCHITECTURES}:
    for index, (row, launch) in enumerate(tasks(arch)):
        mine = [*{CASES}.get(row.family, ()), *{ODD}.get(row.family, ())]
        if row.variant in mine and row.kernel in {set(KERNELS)}:
            rows.append([asdict(compile_task(arch, index)), dict(num_warps=4) | dict(
                (name, value) for name, value in launch.options.items() if type(value) is int)])
print(json.dumps(rows))
"""
    found = []
    for row, sizes in json.loads(output_of(code, timeout=600, without=["TRITON_INTERPRET"])):
        used = row.pop("resources")
        assert used is not None, row["error"]
        for moves in ("loads", "stores"):
            used[moves] = {int(width): count for width, count in used[moves].items()}
        found.append((Row(**row, resources=Resources(**used)), sizes))
    return found


@pytest.mark.deep
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_sixteen_bytes_a_thread(arch: str) -> None:
    """As many such loads and stores as a block takes; what is narrower is a row's numbers, or a tail."""
    rows = [
        (row, sizes)
        for row, sizes in compiled()
        if row.arch == arch and row.variant not in ODD["cross_entropy"]
    ]
    found: dict[str, set[str]] = {}
    for row, sizes in rows:
        assert row.resources is not None
        assert row.needs_wide
        assert row.problems() == [], row
        found.setdefault(row.kernel, set()).add(row.dtype)
        if row.family in ("cross_entropy", "mse"):
            size = 4 if row.dtype == "fp32" else 2
            block = sizes.get("BLOCK") or sizes["BLOCK_M"] * sizes["BLOCK_C"]
            each = block * size // (16 * 32 * sizes["num_warps"])
            operands = 2 if row.family == "mse" or "probabilities" in row.variant else 1
            assert (row.resources.loads or {})[16] >= operands * each, row
            if "stores" in row.needs_wide:
                assert (row.resources.stores or {})[16] == each, row
        if row.kernel == "update_kernel":  # the weights' tile, and the parts of a split batch
            loads, stores = row.resources.loads or {}, row.resources.stores or {}
            assert min(loads[16], stores[16]) >= 4, row
            # dZ and X, of whatever width; for wgmma TF32 is transposed on its way, an element at a time
            if (arch, row.dtype) != ("sm_90", "tf32"):
                assert loads[16] >= 8, row
            assert row.dtype not in ("bf16", "fp16") or 2 not in loads, row
    assert found == KERNELS


@pytest.mark.deep
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_odd_rows_are_read_an_element_at_a_time(arch: str) -> None:
    rows = [row for row, _ in compiled() if row.arch == arch and row.variant in ODD["cross_entropy"]]
    assert {row.kernel for row in rows} == {"cross_entropy_forward_kernel", "cross_entropy_backward_kernel"}
    for row in rows:
        assert row.resources is not None
        assert not row.needs_wide
        assert row.resources.widest("loads") == 8  # the targets are of 8 bytes
        assert row.resources.widest("stores") <= 4
