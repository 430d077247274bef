"""The offline compilation report: what it reads, what it lets pass, and what it must not."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fastmlp.activations import NAMES
from fastmlp.kernels import compile as report
from fastmlp.kernels.compile import Row, align
from fastmlp.kernels.offline import cases as module_of_cases
from fastmlp.kernels.offline import training_cases
from fastmlp.kernels.offline.case import NUMERICS
from fastmlp.kernels.offline.cases import MATRIX_PROBLEMS, cases
from fastmlp.kernels.offline.resources import ARCHITECTURES, Resources
from fastmlp.kernels.tiles import configs
from fastmlp.kernels.training.optimizers import RULES
from tests.processes import output_of

GOOD = Row(
    "sm_90",
    "linear",
    "linear_act_kernel",
    "narrow relu",
    "bf16",
    "64x32x64 w4 s3",
    needs_tensor_cores=True,
    resources=Resources(48, 0, 36864, {"wgmma.mma_async": 4}),
)
assert GOOD.resources is not None
SPILLS = replace(GOOD, resources=replace(GOOD.resources, local=8))
TOO_LARGE = replace(GOOD, resources=replace(GOOD.resources, shared=227 * 1024 + 1))
NO_TENSOR_CORES = replace(GOOD, resources=replace(GOOD.resources, tensor_cores={}))
TMA = replace(GOOD, needs_tma=True, resources=replace(GOOD.resources, tma=6))
NO_TMA = replace(TMA, resources=GOOD.resources)
TORN = replace(GOOD, resources=replace(GOOD.resources, torn_sums=2))
NO_SPECIALIZATION = replace(TMA, needs_specialization=True)
WIDE = replace(
    GOOD, needs_wide="loads stores", resources=replace(GOOD.resources, loads={16: 2}, stores={16: 1})
)
NARROW_LOADS = replace(WIDE, resources=replace(WIDE.resources, loads={8: 4, 2: 1}))
NO_STORES = replace(WIDE, resources=replace(WIDE.resources, stores={}))
BROKEN = replace(GOOD, resources=None, error="CompilationError: no")


def test_a_good_kernel_passes() -> None:
    assert GOOD.problems() == []
    assert replace(NO_TENSOR_CORES, needs_tensor_cores=False).problems() == []
    full = replace(GOOD.resources, shared=ARCHITECTURES["sm_90"].shared_limit)
    assert replace(GOOD, resources=full).problems() == []
    assert TMA.problems() == []
    assert WIDE.problems() == []


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (SPILLS, "8 bytes of local memory"),
        (TOO_LARGE, "232449 bytes of shared memory, the limit is 232448"),
        (replace(TOO_LARGE, arch="gfx942"), "the limit is 65536"),
        (NO_TENSOR_CORES, "no tensor-core instruction"),
        (NO_TMA, "no TMA instruction"),
        (NO_SPECIALIZATION, "no specialized warps"),
        (TORN, "2 sums of products that lanes may round differently"),
        (NARROW_LOADS, "no loads of 16 bytes"),
        (NO_STORES, "no stores of 16 bytes"),
        (BROKEN, "does not compile: CompilationError: no"),
    ],
)
def test_the_gate(
    row: Row, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One bad row among good ones is marked, counted, and makes the exit code 1."""
    monkeypatch.setattr(report, "INTERPRETED", False)
    monkeypatch.setattr(report, "tasks", lambda arch: [(replace(GOOD, arch=arch), None)] * 2)

    def run(rows: list[Row]) -> tuple[int, str]:
        monkeypatch.setattr(report, "compile_all", lambda todo, jobs: iter(rows))
        code = report.main(["--arch", row.arch])
        return code, capsys.readouterr().out

    good = replace(GOOD, arch=row.arch)
    assert run([good, good])[0] == 0
    code, out = run([good, row])
    assert code == 1
    (marked,) = [line for line in out.splitlines() if "<--" in line]
    assert said in marked
    assert "1 FAIL" in out


@pytest.mark.parametrize(
    ("resources", "said", "worse"),
    [
        ({}, "1 of 1 as before, 0 worse", 0),
        ({"registers": 44}, "registers 48 -> 44", 0),
        ({"registers": 49}, "registers 48 -> 49 <-- worse", 1),
        ({"local": 8}, "local 0 -> 8 <-- worse", 1),
        ({"shared": 40960}, "shared 36864 -> 40960 <-- worse", 1),
        ({"shared": 32768, "registers": 40}, "registers 48 -> 40; shared 36864 -> 32768", 0),
        ({"tensor_cores": {}}, "tensor_cores {'wgmma.mma_async': 4} -> {} <-- worse", 1),
        ({"tensor_cores": {"wgmma.mma_async": 8}}, "{'wgmma.mma_async': 4} -> {'wgmma.mma_async': 8}", 0),
        ({"tma": 0}, "tma 6 -> 0 <-- worse", 1),
        ({"torn_sums": 1}, "torn_sums 0 -> 1 <-- worse", 1),
        ({"loads": {8: 4}}, "loads {16: 2} -> {8: 4} <-- worse", 1),
        ({"loads": {16: 1, 4: 2}}, "loads {16: 2} -> {16: 1, 4: 2}", 0),
        ({"stores": {4: 1}}, "1 of 1 as before, 0 worse", 0),  # of which the report before does not know
        (None, "CompilationError: no <-- worse", 1),
    ],
)
def test_against_an_earlier_report(
    resources: dict[str, Any] | None,
    said: str,
    worse: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A kernel is found again by its name; what is worse makes the exit code 1."""
    before, file = replace(TMA, needs_tma=False), tmp_path / "before.json"
    before = replace(before, resources=replace(before.resources, loads={16: 2}))
    report._write_json(file, [before, replace(before, arch="sm_80")])
    assert report.read_json(file)[0] == before
    now = BROKEN if resources is None else replace(before, resources=replace(before.resources, **resources))
    monkeypatch.setattr(report, "INTERPRETED", False)
    monkeypatch.setattr(report, "tasks", lambda arch: [(GOOD, None)])
    monkeypatch.setattr(report, "compile_all", lambda todo, jobs: iter([now]))
    code = report.main(["--arch", "sm_90", "--against", str(file)])
    out = " ".join(capsys.readouterr().out.partition("Since")[2].split())
    assert said in out
    assert f"{worse} worse" in out
    assert code == int(bool(worse))


def test_kernels_of_one_name_are_told_apart() -> None:
    """And those that are there no more, or for the first time, are named."""
    other = replace(GOOD, resources=replace(GOOD.resources, registers=200))
    gone, new = replace(GOOD, variant="tanh"), replace(GOOD, variant="silu")
    said, worse = report.compare([GOOD, other, gone], [GOOD, other, new])
    assert worse == 0
    assert re.search(r"tanh .* gone\n.* silu .* new\n2 of 2 as before, 0 worse$", said)


def run_report(
    *arguments: str, cache: Path | None = None, interpret: bool = False
) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["FASTMLP_CACHE_DIR"] = str(cache or "/nonexistent")
    if interpret:
        environment["TRITON_INTERPRET"] = "1"
    command = [sys.executable, "-m", "fastmlp.kernels.compile", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


@pytest.mark.deep
def test_report(tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    words = ["linear narrow relu bf16", "linear narrow relu fp32", "matmul wide relu bf16", "10 classes bf16"]
    sums = [
        "narrow prologue=gelu fp32",
        "10 outputs mse relu fp32",
    ]  # of products, one to a lane: see `product`
    done = run_report("--arch", "sm_90", "gfx942", "-k", *words, *sums, "--json", str(file))
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"linear_act_kernel +narrow relu +bf16 .* 0 .*wgmma\.mma_async \d", done.stdout)
    assert re.search(r"matmul_kernel +wide relu .* wgmma\.mma_async \d+, TMA \d+$", done.stdout, re.M)
    assert re.search(r"^sm_90: 7 kernels, \d+ registers at most, 0 spill, .*, all pass$", done.stdout, re.M)
    kernels = json.loads(file.read_text())["kernels"]
    assert [(k["arch"], k["kernel"], k["dtype"]) for k in kernels] == [
        (arch, kernel, dtype)
        for arch in ("sm_90", "gfx942")
        for kernel, dtype in (
            ("linear_act_kernel", "bf16"),
            ("linear_act_kernel", "fp32"),
            ("linear_backward_kernel", "fp32"),
            *[("matmul_kernel", "bf16")] * (arch == "sm_90"),  # there is no TMA elsewhere
            ("head_kernel", "fp32"),
            ("cross_entropy_forward_kernel", "bf16"),
            ("cross_entropy_backward_kernel", "bf16"),
        )
    ]
    for kernel in kernels:
        assert 8 < kernel["resources"]["registers"] < 512
        assert kernel["problems"] == []
    half, full = kernels[0], kernels[1]
    assert half["resources"]["shared"] > 0
    assert half["needs_tensor_cores"]
    assert not full["needs_tensor_cores"]
    assert [kernel["kernel"] for kernel in kernels if kernel["needs_tma"]] == ["matmul_kernel"]
    assert "v_mfma" in kernels[7]["resources"]["tensor_cores"]


@pytest.mark.deep
def test_bad_tiles_fail(tmp_path: Path) -> None:
    """What a launcher would look up is what is compiled: a tuner's bad tiles are found out.

    One does not fit the shared memory, one does not compile; the rest of the report goes on.
    """
    tiles = {
        "linear/sm_90/half/narrow": {"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": 128, "num_stages": 8},
        "linear/sm_90/half/wide": {"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": 8},
    }
    (tmp_path / "tiles.json").write_text(json.dumps(tiles))
    words = ["linear narrow relu bf16", "linear wide relu bf16", "linear narrow relu fp32"]
    done = run_report("--arch", "sm_90", "-k", *words, cache=tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    lines = [line for line in done.stdout.splitlines() if "<--" in line]
    assert len(lines) == 2
    assert "bytes of shared memory, the limit is 232448" in next(ln for ln in lines if "64x64x128" in ln)
    assert "does not compile" in next(ln for ln in lines if "64x64x8" in ln)
    assert "3 kernels" in done.stdout
    assert "2 FAIL" in done.stdout
    assert f"tiles of {tmp_path}" in done.stdout


@pytest.mark.deep
def test_torn_sums_are_found(tmp_path: Path) -> None:
    """A sum of squares, one to a lane, in what Triton makes of it for both vendors; and as we write it."""
    script = tmp_path / "sums.py"
    script.write_text("""
import triton
import triton.language as tl
from triton.compiler import ASTSource
from fastmlp.kernels.common.device import product
from fastmlp.kernels.offline.resources import ARCHITECTURES, torn_sums
@triton.jit
def squares(x_ptr, OURS: tl.constexpr):
    x = tl.load(x_ptr + tl.arange(0, 32)[:, None] * 32 + tl.arange(0, 32)[None, :])
    tl.store(x_ptr, tl.sum(tl.sum(product(x, x) if OURS else x * x, 1), 0))
def torn(arch, ours):
    source = ASTSource(squares, {"x_ptr": "*fp32", "OURS": "constexpr"}, {"OURS": ours})
    target = ARCHITECTURES[arch].target
    compiled = triton.compile(source, target, {"num_warps": 1024 // target.warp_size})
    return torn_sums(compiled.asm["llir"])
if __name__ == "__main__":
    print([(torn(arch, False) > 0, torn(arch, True)) for arch in ("sm_80", "gfx942")])
""")
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == str([(True, 0)] * 2), done.stderr


@pytest.mark.deep
@pytest.mark.parametrize(
    ("arch", "words"),
    [
        ("sm_90", ["head 256 outputs mse relu fp32", "epoch ragged adam tanh no-bias bf16"]),
        ("sm_90", ["step deep adam silu bf16", "step deep affine adam bf16"]),
        ("sm_80", ["step deep sgd tf32"]),
        ("sm_100", ["narrow prologue=gelu", "narrow prologue=silu"]),
        ("sm_100", ["wide dropout prologue=gelu epilogue=tanh bf16", "wide affine prologue=gelu"]),
    ],
    ids=str,
)
def test_what_spilled_with_one_triton(arch: str, words: list[str]) -> None:
    """With 3.6 where 3.8 had registers enough, or the other way round; `make oldest` runs this with both."""
    done = run_report("--arch", arch, "-k", *words)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.deep
def test_a_compiler_that_crashes_is_one_row(tmp_path: Path) -> None:
    script = tmp_path / "crash.py"
    script.write_text("""
import os
from dataclasses import replace
from fastmlp.kernels import compile as report
ROWS = [report.Row("sm_90", "family", str(i), "", "", "", False) for i in range(4)]
def compile_task(arch, index):
    if index == 1:
        os.abort()
    return replace(ROWS[index], error="fine")
report.compile_task = compile_task
report.tasks = lambda arch: [(row, None) for row in ROWS]
if __name__ == "__main__":
    print([(r.kernel, r.error) for r in report.compile_all([("sm_90", i) for i in range(4)], 2)])
""")
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True)
    expected = [("0", "fine"), ("1", "the compiler crashed"), ("2", "fine"), ("3", "fine")]
    assert done.stdout.strip() == str(expected), done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--arch", "sm_70"], "invalid choice: 'sm_70'"),
        (["--jobs", "0"], "--jobs: 0, expected at least 1"),
        (["--arch", "sm_90", "-k", "no such case"], "no case has any of these words"),
        (["--against", "/nowhere"], "--against: /nowhere is no report"),
        (["--against", __file__], "is no report"),
    ],
)
def test_wrong_arguments(
    arguments: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(report, "INTERPRETED", False)
    monkeypatch.setattr(report, "tasks", lambda arch: [(GOOD, None)])
    try:
        code = report.main(arguments)
    except SystemExit as stopped:
        code = stopped.code
    assert code == 2
    assert said in capsys.readouterr().err


@pytest.mark.deep
def test_the_interpreter_is_refused() -> None:
    done = run_report("--arch", "sm_90", interpret=True)
    assert done.returncode == 2
    assert "TRITON_INTERPRET is set" in done.stderr


@pytest.mark.deep
def test_every_kernel_has_a_case() -> None:
    """A kernel that nobody compiles is a kernel that breaks unseen."""
    code = """
import importlib, json, pkgutil
import fastmlp.kernels
from triton import JITFunction
from fastmlp.kernels.compile import tasks
kernels = set()
for module in pkgutil.walk_packages(fastmlp.kernels.__path__, "fastmlp.kernels."):
    for name, value in vars(importlib.import_module(module.name)).items():
        if name.endswith("_kernel") and isinstance(value, JITFunction):
            kernels.add(name)
print(json.dumps([sorted(kernels), sorted({row.kernel for row, _ in tasks("sm_90")})]))
"""
    kernels, compiled = json.loads(output_of(code, timeout=600, without=["TRITON_INTERPRET"]))
    assert kernels == compiled
    assert "linear_backward_kernel" in kernels


def test_cases_cover_activations_and_precisions() -> None:
    every = list(cases())
    assert len({(c.family, c.variant, c.dtype) for c in every}) == len(every), "two cases have one name"
    without = {"update", "epoch", *configs.TMA_FAMILIES, *configs.MLP_FAMILIES}
    for family in set(MATRIX_PROBLEMS) - without:
        name = family.removesuffix("_prologue").removesuffix("_extra")
        mine = [case for case in every if case.family == name]
        assert {case.dtype for case in mine} == set(NUMERICS)
        words = {word for case in mine if case.dtype == "bf16" for word in re.split(r"[ =]", case.variant)}
        assert set(NAMES) - {"none"} <= words | ({"prelu"} if family == "head" else set()), family
    assert set(MATRIX_PROBLEMS) == set(configs.FAMILIES)


def test_cases_cover_tma(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not {case.family for case in cases()} & set(configs.TMA_FAMILIES), "the interpreter has no TMA"
    monkeypatch.setattr(module_of_cases, "arch_of", lambda _: "sm_90")
    every = [case for case in cases() if case.family in configs.TMA_FAMILIES]
    assert len({(c.family, c.variant, c.dtype) for c in every}) == len(every), "two cases have one name"
    for family in configs.TMA_FAMILIES:
        mine = [case for case in every if case.family == family]
        assert {case.dtype for case in mine} == {"bf16", "fp16", "tf32"}
        words = {word for case in mine for word in case.variant.split()}
        assert set(NAMES) - {"none", "prelu"} <= words, family


def test_cases_cover_the_training_engine() -> None:
    """Both ways to run a net in every dtype, and every rule, with and without a copy of the weights."""
    every = list(training_cases.problems())
    assert {dtype for _, dtype, _ in every} == {"bf16", "fp16", "tf32", "fp32"}
    assert {problem.recipe.rule for _, _, problem in every} == set(RULES)
    assert {problem.recipe.pdl for _, _, problem in every} == {True, False}
    families = {(case.family, case.dtype) for case in cases()}
    assert {(f, d) for f in ("step", "epoch") for d in ("bf16", "fp16", "tf32", "fp32")} <= families


def test_align() -> None:
    text = align([("name", "n", "ms", ""), ("a", "10", "1.5", ""), ("bcdef", "", "20.25", "<-- no")])
    assert text.splitlines() == ["name    n     ms", "a      10    1.5", "bcdef      20.25  <-- no"]
