"""A small report as it is stored, with every kind of row."""

from __future__ import annotations

from typing import Any

from benchmarks import accuracy, cases
from benchmarks.machine import describe
from benchmarks.peers import EAGER, GRAPH, JAX, OURS
from fastmlp.costs.ceilings import Ceilings

CEILINGS = Ceilings({1 << 20: 1e10}, {"float32": 1e11, "bfloat16": 1e11}, 1e-6)


def timing(median: float) -> dict[str, float]:
    return {"median": median, "low": 0.9 * median, "high": 1.1 * median, "rounds": 5}


def row(part: str, group: str, label: str, dtype: str = "float32", **more: Any) -> dict[str, Any]:
    """Ours takes 1 ms, eager 2 ms, JAX 0.5 ms, the floor is 0.4 ms."""
    found = {
        "part": part,
        "key": f"{group}, {label}, {dtype}",
        "group": group,
        "label": label,
        "dtype": dtype,
        "important": part != "sweeps",
        "floor": 0.4e-3,
        "seconds": {OURS: timing(1e-3), EAGER: timing(2e-3), JAX: timing(0.5e-3)},
        "missing": {GRAPH: "needs a GPU"},
    }
    return found | more


def host_row(**more: Any) -> dict[str, Any]:
    """A call of ours takes half of eager's time."""
    return {
        "part": "host",
        "key": "host: a call, no grad",
        "group": "host",
        "label": "a call, no grad",
        "dtype": "float32",
        "floor": 2.5e-6,
        "seconds": {OURS: timing(1e-5), EAGER: timing(2e-5)},
        "launches": {OURS: 1, EAGER: 2},
        "added": 2.5e-6,
        "must": 1.5,
        "stretch": None,
        "missing": {},
    } | more


def report() -> dict[str, Any]:
    widths = cases.name(cases.A)
    runs = [{"seed": seed, "seconds": [0.5, 1.0 + seed / 10], "accuracy": [0.86, 0.885]} for seed in range(2)]
    return {
        "machine": describe("cpu") | {"commit": "abc1234"},
        "ceilings": {"copy": {"65536": 5e10}, "matmul": {"float32": 2e11}, "launch": 3e-7},
        "rows": [
            row("cases", cases.STEP, f"{widths}, batch 256"),
            row("cases", cases.CROSS_ENTROPY, "256 x 10", seconds={OURS: timing(2e-3), EAGER: timing(1e-3)}),
            row("cases", cases.CROSS_ENTROPY, "4096 x 1000", seconds={}, error="fastmlp: RuntimeError: no"),
            *(
                row("sweeps", cases.STEP, f"{widths}, batch {x}", sweep="batch", x=x, memory={OURS: 1 << 20})
                for x in (1, 4, 16)
            ),
            {
                "part": "accuracy",
                "key": f"{accuracy.GROUP}: best recipe",
                "group": accuracy.GROUP,
                "label": "best recipe",
                "description": str(accuracy.BEST),
                "runs": {"fastmlp, float32": runs, "eager, float32": runs},
                "missing": {},
            },
        ],
        "stops": {"batch": "batch 64: a call would take about 4 s (limit 2)"},
        "left_out": ["sweeps: depth"],
    }
