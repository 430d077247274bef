"""The one door: what it records, what it pretends, and that a new batch size never recompiles."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

import pytest
import torch
import triton
import triton.language as tl

from fastmlp.kernels import launch as door
from fastmlp.kernels.launch import launch, observe, record_launches
from tests.processes import output_of


@triton.jit
def add_one_kernel(x_ptr, n, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(x_ptr + i, tl.load(x_ptr + i, mask=i < n, other=0.0) + 1, mask=i < n)


def add_one(x: torch.Tensor) -> None:
    launch(add_one_kernel, (1,), x, len(x), BLOCK=16)


def test_launches_are_recorded_and_run(device: str) -> None:
    x = torch.zeros(5, device=device)
    add_one(x)  # outside: not counted
    with record_launches() as launches:
        add_one(x)
        add_one(x)
    add_one(x)
    assert [one.name for one in launches] == ["add_one_kernel"] * 2
    assert launches[0].grid == (1,)
    assert launches[0].args[0] is x
    assert launches[0].args[1] == 5
    assert launches[0].options == {"BLOCK": 16}
    assert x.tolist() == [4.0] * 5


@triton.jit
def fill_kernel(x_ptr, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(x_ptr + i, tl.full((BLOCK,), ROWS, tl.float32))


def test_threads_launch(device: str) -> None:
    """The interpreter, which knows of one program at a time in the whole process, does them one by one."""

    def filled(rows: int) -> bool:
        x = torch.zeros(rows, 16, device=device)
        launch(fill_kernel, (rows,), x, ROWS=rows, BLOCK=16)
        return bool((x == rows).all())

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(4) as pool:
            assert all(pool.map(filled, [10, 11, 12, 13] * 10))
    finally:
        sys.setswitchinterval(interval)


def test_recordings_nest(device: str) -> None:
    x = torch.zeros(5, device=device)
    with record_launches() as outer:
        add_one(x)
        with record_launches() as inner:
            add_one(x)
    assert (len(outer), len(inner)) == (2, 1)


def test_observers_go_when_something_raises() -> None:
    before = list(door._observers)

    def fail() -> None:
        with record_launches(), observe(lambda _: None):
            assert len(door._observers) == len(before) + 2
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert door._observers == before


# What follows compiles, which the interpreter, chosen when Triton is imported, cannot.

PRELUDE = """
import json
import triton
jit = triton.jit
def specializing_jit(fn=None, **options):
    options["do_not_specialize"] = [n for n in options.get("do_not_specialize", ()) if n not in SPECIALIZED]
    return (lambda f: jit(f, **options)) if fn is None else jit(fn, **options)
triton.jit = specializing_jit  # before the kernels are imported
import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from fastmlp.kernels import launch
from fastmlp.kernels.compile import specializations, warmup
from fastmlp.kernels.launch import dry_run, record_launches
from fastmlp.kernels.offline import cases, loss_cases

SM_90 = GPUTarget("cuda", 90, 32)
"""


def natively(code: str, specialized: Sequence[str] = ()) -> dict[str, Any]:
    """Run ``code`` in a process without the interpreter; what its last line prints, as JSON.

    ``specialized``: arguments that are to be taken out of the kernels' ``do_not_specialize``.
    """
    whole = f"SPECIALIZED = {list(specialized)}\n{PRELUDE}{code}"
    return json.loads(output_of(whole, timeout=600, without=["TRITON_INTERPRET"]).splitlines()[-1])


@pytest.mark.deep
def test_dry_run_launches_nothing_and_restores_the_driver() -> None:
    told = natively("""
before, x = driver._active, torch.empty(3, device="meta")
archs = []
try:
    with dry_run(SM_90), record_launches() as launches:
        archs.append(launch.arch_of(x))
        cases.linear(cases.NUMERICS["bf16"], (5, 6, 7))()
        raise ZeroDivisionError
except ZeroDivisionError:
    pass
restored = [driver._active is before, not launch._dry]
with dry_run(GPUTarget("hip", "gfx942", 64)):
    archs.append(launch.arch_of(x))
print(json.dumps({"launches": len(launches), "archs": archs, "restored": restored}))
""")
    assert told == {"launches": 1, "archs": ["sm_90", "gfx942"], "restored": [True, True]}


COUNT = """
def layer(act, previous, **options):
    def run(m, numerics):
        cases.linear(numerics, (m, 256, 784), act, keep_z=act in ("gelu", "prelu"))()
        cases.backward(numerics, (m, 256, 784), act, previous, **options)()
        cases.backward(numerics, (m, 10, 256), "none", "relu", **options)()
    return run

def head(act, **options):
    return lambda m, numerics: loss_cases.head(numerics, (m, 10, 256), act, **options)()

def loss(classes, **options):
    return lambda m, numerics: loss_cases.cross_entropy(numerics.storage, (m, classes, 1), **options)()

def squared(**options):
    return lambda m, numerics: loss_cases.squared_error(numerics.storage, (m, 10), **options)()

problems = {
    "relu": layer("relu", "none"),
    "gelu, scaled": layer("gelu", "gelu", scale="params"),
    "prelu": layer("prelu", "none"),
    "head": head("relu"),
    "head, evaluation": head("none", need_grad=False, keep_logits=True),
    "10 classes": loss(10),
    "1000 classes": loss(1000, smoothing=0.1),
    "loss of each row": loss(10, reduction="none"),
    "probabilities": loss(10, probabilities=True),
    "head, squared error": head("relu", loss="mse"),
    "squared error": squared(),
    "squared error of each element": squared(reduction="none", weight=True),
    "squared error, strided": squared(strided=True),
}
counts = {}  # problem, dtype, kernel and which of that kernel's launches: specializations
with dry_run(SM_90), specializations() as keys:
    for problem, run in problems.items():
        for dtype in ("bf16", "fp32"):
            seen = {}
            for m in (1, 2, 7, 16, 31, 96, 256, 1000, 4096, 60000):
                with record_launches() as launches:
                    run(m, cases.NUMERICS[dtype])
                times = {}
                for one in launches:
                    times[one.name] = times.get(one.name, 0) + 1
                    keys.clear()
                    warmup(one)
                    seen.setdefault((one.name, times[one.name]), set()).update(keys)
            for (kernel, nth), found in seen.items():
                counts[f"{problem}; {dtype}; {kernel}; {nth}"] = len(found)
print(json.dumps(counts))
"""


def test_a_new_batch_size_never_recompiles() -> None:
    """Ten batch sizes, with tails, one row, and batches long enough to be split: one kernel each."""
    counts = natively(COUNT)
    kernels = {what.split("; ")[2] for what in counts}
    assert kernels == {
        "linear_act_kernel",
        "linear_backward_kernel",
        "sum_splits_kernel",
        "head_kernel",
        "cross_entropy_forward_kernel",
        "cross_entropy_backward_kernel",
        "finish_loss_kernel",
        "mse_forward_kernel",
        "mse_backward_kernel",
    }
    again = {what: count for what, count in counts.items() if count != 1}
    assert not again, f"compiled again for another batch size: {again}"


@pytest.mark.deep
def test_the_count_sees_an_argument_that_is_specialized() -> None:
    """The test above can fail: with ``M`` specialized on, every kernel that is given it compiles again."""
    counts = natively(COUNT, specialized=["M"])
    again = {what.split("; ")[2] for what, count in counts.items() if count > 1}
    assert again == {"linear_act_kernel", "linear_backward_kernel", "head_kernel"}


def test_launch_if_compiles_what_it_does_not_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel that only a long batch needs is compiled with the first short one, and once."""

    class Kernel:
        __name__ = "kernel"
        calls: ClassVar[list[str]] = []

        def warmup(self, *args: object, **options: object) -> None:
            self.calls.append("compiled")

        def __getitem__(self, grid: object) -> Callable[..., None]:
            return lambda *args, **options: self.calls.append("launched")

    monkeypatch.setattr(door, "INTERPRETED", False)
    kernel, x = Kernel(), torch.ones(1)
    for needed in (False, False, True):
        door.launch_if(needed, kernel, (1,), x, 1, BLOCK=4)
    assert kernel.calls == ["compiled", "launched"]
