"""The kernel that TMA feeds, against float64 and torch's own ops; what it takes, and what it does not."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fastmlp.activations import NAMES, NONE, TABLE, Act
from fastmlp.backends.base import BackwardOptions, Scale, Undo
from fastmlp.backends.triton_backend import TritonBackend
from fastmlp.kernels.common import arguments
from fastmlp.kernels.launch import record_launches
from fastmlp.kernels.linear import tma as linear_tma
from fastmlp.kernels.linear.tma import backward_misfit, forward_misfit, linear_act_tma
from fastmlp.kernels.tiles import decisions
from tests.gradients import check
from tests.kernels.test_launch import natively
from tests.numerics import assert_as_good_as_torch
from tests.problems import DTYPES, SIZES, activation, vector

ROWS = (*SIZES, 200)  # 200: four tiles
WIDTHS = (8, 16, 40, 64, 72, 128, 136, 200)  # what TMA takes in 16 bits; in float32 4 less is as good


@pytest.fixture(autouse=True)
def _by_tma():
    if torch.cuda.is_available() and torch.cuda.get_device_capability()[0] < 9:
        pytest.skip("this GPU has no TMA")
    precision = torch.backends.cuda.matmul.fp32_precision
    if torch.cuda.is_available():
        torch.backends.cuda.matmul.fp32_precision = "tf32"  # in the interpreter it multiplies exactly
    with decisions.force("tma"):
        yield
    torch.backends.cuda.matmul.fp32_precision = precision


def precision(dtype: torch.dtype, device: str) -> str:
    return "tf32" if dtype == torch.float32 and device == "cuda" else "ieee"


def width(rng: random.Random, dtype: torch.dtype) -> int:
    return rng.choice(WIDTHS) - (4 if dtype == torch.float32 else 0)


def block(rng: random.Random, rows: int, cols: int, dtype: torch.dtype, device: str) -> Tensor:
    """Standard normal (rows, cols) as TMA can fetch it: contiguous, part of wider rows, or transposed."""
    each = 16 // dtype.itemsize
    layout = rng.choice(["contiguous", "wider", "transposed" if rows % each == 0 else "contiguous"])
    if layout == "wider":
        return torch.randn(rows + 3, cols + 2 * each, device=device).to(dtype)[2:-1, each:-each]
    if layout == "transposed":
        return torch.randn(cols, rows, device=device).to(dtype).t()
    return torch.randn(rows, cols, device=device).to(dtype)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_random_forward(name: str, dtype: torch.dtype, seed: int, device: str) -> None:
    """81 problems: values of Y and Z, never worse than twice torch's error."""
    rng = random.Random(f"{name}{dtype}{seed}")
    m, n, k = rng.choice(ROWS), width(rng, dtype), width(rng, dtype)
    x, w = block(rng, m, k, dtype, device), block(rng, n, k, dtype, device)
    bias = vector(rng, n, dtype, device) if rng.random() < 0.7 else None
    act, keep_z = activation(rng, name, n, dtype, device), rng.random() < 0.7
    with record_launches() as launches:
        y, z = TritonBackend().linear_act(x, w, bias, act, keep_z, dtype)
    assert [launch.name for launch in launches] == ["matmul_kernel"]

    z_torch = F.linear(x, w, bias)
    z_exact = F.linear(x.double(), w.double(), None if bias is None else bias.double())
    exact = act._replace(weight=None if act.weight is None else act.weight.double())
    assert (z is not None) == keep_z
    if z is not None:
        assert_as_good_as_torch(z, z_torch, z_exact, f"z {(m, n, k)}")
    assert_as_good_as_torch(y, act(z_torch), exact(z_exact), f"y {(m, n, k)}")


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", [name for name in NAMES if name != "prelu"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_random_backward(name: str, dtype: torch.dtype, seed: int, device: str) -> None:
    """72 problems: every epilogue, layouts, missing parts, scale; one launch for dX, one for dW and db."""
    rng = random.Random(f"{name}{dtype}{seed}")
    m, n, k = rng.choice(ROWS), width(rng, dtype), width(rng, dtype)
    previous = activation(rng, name, k, dtype, device)
    saved = torch.randn(m, k, device=device).to(dtype)
    scaled, parts = rng.random() < 0.4, rng.choice([(True, True), (True, True), (True, False), (False, True)])
    options = {
        "before": Undo(previous, None if name == "none" else previous(saved)),
        "scale": Scale(torch.randn((), device=device), torch.tensor(7.0, device=device)) if scaled else None,
        "scale_input": scaled and rng.random() < 0.5,
        "need_input": parts[0],
        "need_params": parts[1],
        "bias_dtype": rng.choice([None, dtype, torch.float32]),
        "dtype": dtype,
    }
    if options["bias_dtype"] != dtype and dtype != torch.float32:
        options["bias_dtype"] = None  # torch's own sum is in the gradient's dtype
    grad, x, w = (block(rng, *size, dtype, device) for size in ((m, n), (m, k), (n, k)))
    with record_launches() as launches:
        check(grad, x, w, **options)
    assert [launch.name for launch in launches] == ["matmul_kernel"] * sum(parts)


def test_more_tiles_than_programs(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each program takes several tiles, and db's come after those of dW, on the programs left idle."""
    x, grad, w = (torch.randn(s, device=device) for s in ((150, 200), (150, 264), (264, 200)))
    options = {"before": Undo(Act(TABLE["tanh"]), x.tanh()), "bias_dtype": x.dtype}
    tiles = {"forward": 3 * 5, "dX": 3 * 4, "dW": 5 * 4} if device == "cpu" else {}
    for programs in (1, 3, 7, 132):
        monkeypatch.setattr(linear_tma, "num_sms", lambda index, programs=programs: programs)
        with record_launches() as launches:
            y, _ = TritonBackend().linear_act(x, w, None, NONE, False, x.dtype)
            check(grad, x, w, dtype=x.dtype, **options)
        assert_as_good_as_torch(y, F.linear(x, w), F.linear(x.double(), w.double()))
        for launch, count in zip(launches, tiles.values()):
            assert launch.grid == (min(programs, count),)


def test_twice_gives_the_same_bits(device: str) -> None:
    x, grad, w = (torch.randn(s, device=device) for s in ((150, 136), (150, 72), (72, 136)))
    options = BackwardOptions(x.dtype, bias_dtype=x.dtype)
    first, again = (TritonBackend().linear_backward(grad, x, w, options) for _ in range(2))
    assert all(a is b or torch.equal(a, b) for a, b in zip(first, again))


@pytest.mark.parametrize("value", [float("inf"), float("nan"), 0.0])
@pytest.mark.parametrize("name", ["relu", "sigmoid"])
def test_special_values_stay_in_their_row(name: str, value: float, device: str) -> None:
    """What lies beyond an edge is fetched as zeros: it makes no NaN of an infinity."""
    x, w = torch.ones(5, 12, device=device), torch.ones(20, 12, device=device)
    x[3] = value
    act = Act(TABLE[name])
    y, _ = linear_act_tma(x, w, None, arguments.activation(name), False, x.dtype, precision(x.dtype, device))
    torch.testing.assert_close(y, act(F.linear(x, w)), equal_nan=True)
    options: dict[str, Any] = {"before": Undo(act, x), "bias_dtype": x.dtype}
    grad = torch.ones(5, 20, device=device)
    check(grad, torch.ones(5, 12, device=device), w, dtype=x.dtype, **options)


def halves(rows: int, cols: int, device: str) -> Tensor:
    return torch.zeros(rows, cols, dtype=torch.bfloat16, device=device)


def test_what_the_forward_takes(device: str) -> None:
    x, w, half = halves(5, 16, device), halves(24, 16, device), torch.bfloat16

    def misfit(x: Tensor, w: Tensor, dtype: torch.dtype = half) -> str:
        return str(forward_misfit(x, w, dtype, "ieee"))

    assert misfit(x, w) == "None"
    assert misfit(halves(5, 32, device)[:, 8:24], w) == "None"
    assert misfit(x, halves(16, 24, device).t()) == "None"
    assert misfit(x, w.float()) == "weight: torch.float32, computed in torch.bfloat16"
    assert misfit(x.float(), w) == "input: torch.float32, computed in torch.bfloat16"
    assert "input: rows or memory" in misfit(halves(5, 32, device)[:, 1:17], w)  # the address
    assert "input: rows or memory" in misfit(halves(5, 20, device)[:, :16], w)  # the rows
    assert "input: rows or memory" in misfit(halves(16, 5, device).t(), w)  # the columns, which are its rows
    assert "output: rows or memory" in misfit(x, halves(20, 16, device))
    assert "input: neither" in misfit(halves(5, 32, device)[:, ::2], w)
    assert "input: neither" in misfit(x[:1].expand(5, 16), w)


def test_what_the_backward_takes(device: str) -> None:
    grad, x, w, half = halves(5, 24, device), halves(5, 16, device), halves(24, 16, device), torch.bfloat16

    def misfit(grad: Tensor, x: Tensor, w: Tensor, saved: Tensor | None = None, act: str = "none") -> str:
        return str(backward_misfit(grad, x, w, saved, half, "ieee", act))

    assert misfit(grad, x, w) == misfit(grad, x, w, x) == "None"
    assert "undone" in misfit(grad, x, w, act="relu")
    assert "transposed" in misfit(grad, x, w, halves(16, 5, device).t())
    assert "saved: torch.float32" in misfit(grad, x, w, x.float())
    assert "grad: neither" in misfit(halves(1, 1, device).expand(5, 24), x, w)
    assert "input: rows or memory" in misfit(grad, halves(5, 12, device), halves(24, 12, device))
    # Rows that are cut off a wider matrix are fine to read, but their gradient's own would not be.
    cut = halves(5, 16, device)[:, :12], halves(24, 16, device)[:, :12]
    assert "gradient: rows or memory" in misfit(grad, *cut)


@pytest.mark.deep
def test_architectures_and_compilations() -> None:
    """Who has the kernel; and that a new batch size compiles nothing, nor do new widths."""
    told = natively("""
from fastmlp.kernels.linear.tma import forward_misfit
from fastmlp.kernels.offline.resources import ARCHITECTURES
half, meta = torch.bfloat16, {"device": "meta"}
misfits = {}
for name in ("sm_90", "sm_80", "gfx942"):
    with dry_run(ARCHITECTURES[name].target):
        for dtype, precision in ((half, "ieee"), (torch.float32, "tf32"), (torch.float32, "ieee")):
            x, w = torch.empty(64, 64, dtype=dtype, **meta), torch.empty(64, 64, dtype=dtype, **meta)
            misfits[f"{name} {dtype} {precision}"] = forward_misfit(x, w, dtype, precision)
counts = {}
with dry_run(SM_90), specializations() as keys:
    for m in (1, 2, 16, 31, 4096, 60000):
        for n, k in ((4096, 4096), (1024, 1032)):
            with record_launches() as launches:
                cases.linear(cases.NUMERICS["bf16"], (m, n, k), by_tma=True)()
                cases.backward_tma(cases.NUMERICS["bf16"], (m, n, k))()
            for nth, one in enumerate(launches):
                keys.clear()
                warmup(one)
                counts.setdefault(nth, set()).update(keys)
print(json.dumps({"misfits": misfits, "counts": [len(found) for found in counts.values()]}))
""")
    assert told["counts"] == [1, 1, 1]
    no = {what: said for what, said in told["misfits"].items() if said}
    assert set(told["misfits"]) - set(no) == {"sm_90 torch.bfloat16 ieee", "sm_90 torch.float32 tf32"}
    assert no["sm_80 torch.bfloat16 ieee"] == "sm_80 has no TMA"
    assert "without TF32" in no["sm_90 torch.float32 ieee"]
