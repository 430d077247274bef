"""The table of measurements: which row decides, what holds where there is none, and damaged files."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from fastmlp.kernels.tiles import configs, decisions
from fastmlp.kernels.tiles.decisions import DTYPES, OPS, Machine, Row

H100 = Machine("NVIDIA H100 80GB HBM3", "sm_90", 132)
TIMES = {"tma": [2e-3, 2.1e-3, 2.2e-3], "library": [1e-3, 1.1e-3, 3e-3], "pointer": [3e-3, 4e-3, 5e-3]}
VERSIONS = {"torch": "2.14.1", "triton": "3.8.0", "cuda": "13.0"}
ROW = Row(
    H100.device, "sm_90", "forward", "bf16", 4096, 4096, 1024, TIMES, VERSIONS, "2026-01-31", "python -m x"
)
SIZES = (ROW.m, ROW.n, ROW.k)


SHIPPED = decisions._SHIPPED


@pytest.fixture(autouse=True)
def cache_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, nothing that ships, and no answer remembered from another one."""
    monkeypatch.setenv("FASTMLP_CACHE_DIR", str(tmp_path / "cache"))
    (tmp_path / "nothing.json").write_text("{}")
    monkeypatch.setattr(decisions, "_SHIPPED", tmp_path / "nothing.json")
    decisions.forget()
    yield tmp_path / "cache" / "decisions.json"
    monkeypatch.undo()
    decisions.forget()


def won(row: Row, way: str) -> Row:
    return replace(row, seconds={way: [1.0, 1.0, 1.0], "pointer": [2.0, 2.0, 2.0]})


def first(*sizes: int, machine: Machine = H100, op: str = "forward", dtype: str = "bf16") -> str:
    return decisions.choose(machine, op, dtype, *sizes).order[0]


def test_a_measurement_decides_by_its_medians() -> None:
    assert decisions.choose(H100, "forward", "bf16", *SIZES) == (("tma", "pointer"), None)
    decisions.write([ROW])
    assert decisions.choose(H100, "forward", "bf16", *SIZES) == (("library", "tma", "pointer"), ROW)
    for op, dtype in (("backward", "bf16"), ("forward", "fp16"), ("backward_prologue", "bf16")):
        assert decisions.choose(H100, op, dtype, *SIZES).row is None


def test_a_row_serves_up_to_a_power_of_two_away() -> None:
    decisions.write([ROW])
    for near in ((8192, 4096, 1024), (1025, 4096, 1024), (2048, 8192, 512), (3000, 4000, 257)):
        assert decisions.choose(H100, "forward", "bf16", *near).row == ROW, near
    for far in ((8193, 4096, 1024), (1024, 4096, 1024), (4096, 16384, 1024), (4096, 4096, 256)):
        assert decisions.choose(H100, "forward", "bf16", *far).row is None, far


def test_the_nearest_row_decides() -> None:
    decisions.write(
        [won(ROW, "library"), won(replace(ROW, m=8192), "tma"), won(replace(ROW, m=8192, n=8192), "pointer")]
    )
    assert first(4096, 4096, 1024) == first(2048, 4096, 1024) == "library"
    assert first(8192, 4096, 1024) == first(16384, 4096, 1024) == "tma"


def test_this_device_comes_first_then_its_architecture() -> None:
    h200 = replace(ROW, device="NVIDIA H200")
    decisions.write([won(h200, "library")])
    assert first(*SIZES) == "library"
    assert first(*SIZES, machine=Machine("NVIDIA B200", "sm_100", 148)) == "tma", "another architecture"
    decisions.write([won(replace(ROW, m=8192), "pointer")])
    assert first(*SIZES) == "pointer", "of this device, though not as near"
    assert first(*SIZES, machine=H100._replace(device="NVIDIA H200")) == "library"


def test_the_users_rows_win_over_the_packages(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    shipped = tmp_path / "shipped.json"
    shipped.write_text(json.dumps({"any": asdict(won(ROW, "library"))}))
    monkeypatch.setattr(decisions, "_SHIPPED", shipped)
    decisions.forget()
    assert first(*SIZES) == "library"
    decisions.write([won(replace(ROW, m=8192), "pointer")])
    assert first(*SIZES) == "pointer"


def test_a_new_measurement_replaces_the_old(cache_file: Path) -> None:
    decisions.write([ROW, replace(ROW, op="backward")])
    decisions.write([won(ROW, "pointer")])
    assert first(*SIZES) == "pointer"
    assert decisions.choose(H100, "backward", "bf16", *SIZES).order[0] == "library"
    assert len(json.loads(cache_file.read_text())) == 2


def test_where_only_tma_ran_the_pointer_kernel_stands_by() -> None:
    decisions.write([replace(ROW, seconds={"tma": [1.0, 1.0, 1.0]})])
    assert decisions.choose(H100, "forward", "bf16", *SIZES).order == ("tma", "pointer")


def test_unmeasured() -> None:
    """TMA where the architecture and the precision have it, the weight is wide and the tiles many."""
    big = (8192, 8192, 8192)
    assert first(*big) == first(*big, op="backward") == first(*big, dtype="tf32") == "tma"
    assert first(*big, op="backward_prologue") == "pointer"
    assert first(*big, dtype="fp32") == first(*big, dtype="autocast") == "pointer"
    assert first(1 << 20, 256, 784) == "pointer", "a narrow weight"
    assert first(256, 2048, 2048) == "pointer", "16 tiles"
    assert first(16384, 1024, 1024) == "tma"
    assert first(16384, 1024, 1024, op="backward") == "pointer", "few tiles of dW over a long batch"
    for arch, expected in (
        ("sm_80", "pointer"),
        ("sm_89", "pointer"),
        ("gfx942", "pointer"),
        ("sm_100", "tma"),
        ("sm_120", "tma"),
        ("none", "pointer"),
        ("interpret", "pointer"),
    ):
        assert first(*big, machine=Machine("a GPU", arch, 132)) == expected, arch


def test_the_library_never_runs_unmeasured() -> None:
    for arch in configs.ARCHITECTURES:
        for op in OPS:
            for dtype in DTYPES:
                for m, n, k in ((1, 1, 1), (256, 256, 784), (4096, 4096, 4096), (60000, 128, 8192)):
                    order = decisions.choose(Machine("a GPU", arch, 132), op, dtype, m, n, k).order
                    assert order[-1] == "pointer"
                    assert "library" not in order


def test_what_ships_is_whole() -> None:
    """Nothing was measured on a GPU yet; rows that are added have to be."""
    entries = json.loads(SHIPPED.read_text())
    assert {row.key: asdict(row) for row in decisions._parsed(entries, SHIPPED)} == entries


BAD = {
    "fields": {"device": "x"},
    "op": asdict(ROW) | {"op": "sideways"},
    "contender": asdict(ROW) | {"seconds": {"magic": [1.0, 1.0, 1.0]}},
    "nothing": asdict(ROW) | {"seconds": {}},
    "order": asdict(ROW) | {"seconds": {"tma": [2.0, 1.0, 3.0]}},
    "infinite": asdict(ROW) | {"seconds": {"tma": [1.0, 2.0, float("inf")]}},
    "size": asdict(ROW) | {"m": 0},
    "text": "fast",
    "list": [],
    "contenders": asdict(ROW) | {"seconds": ["tma"]},
    "times": asdict(ROW) | {"seconds": {"tma": {"a": 1.0, "b": 2.0, "c": 3.0}}},
    "overflow": asdict(ROW) | {"seconds": {"tma": [1, 2, 10**400]}},
    "versions": asdict(ROW) | {"versions": ["2.14.1"]},
    "device": asdict(ROW) | {"device": 1},
}


@pytest.mark.parametrize("name", BAD)
def test_a_damaged_row_is_ignored_aloud(name: str, cache_file: Path) -> None:
    cache_file.parent.mkdir()
    cache_file.write_text(json.dumps({name: BAD[name], ROW.key: asdict(ROW)}))
    with pytest.warns(UserWarning, match=f"decisions.json: ignored '{name}', not a measurement"):
        assert first(*SIZES) == "library", "the good row beside it"


@pytest.mark.parametrize("text", ["", "{", "[1]", "\x00"])
def test_a_damaged_file_is_ignored_aloud(text: str, cache_file: Path) -> None:
    cache_file.parent.mkdir()
    cache_file.write_text(text)
    with pytest.warns(UserWarning, match="decisions.json: ignored"):
        assert first(*SIZES) == "tma"


def test_dtype_names() -> None:
    full, half, bf16 = torch.float32, torch.float16, torch.bfloat16
    given = (
        (bf16, bf16, "ieee"),
        (half, half, "ieee"),
        (full, full, "tf32"),
        (full, full, "ieee"),
        (full, bf16, "ieee"),
    )
    assert tuple(decisions.dtype_name(*one) for one in given) == DTYPES


def test_the_question_is_answered_from_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """The files are read once, a new batch size in the same power of two asks nothing, a write is seen."""
    asked: list[tuple[object, ...]] = []
    choose = decisions.choose
    monkeypatch.setattr(decisions, "choose", lambda *args: asked.append(args) or choose(*args))
    monkeypatch.setattr(decisions, "machine", lambda index: H100)
    x, w = torch.empty(3000, 1024, dtype=torch.bfloat16), torch.empty(4096, 1024, dtype=torch.bfloat16)

    def order(rows: int) -> tuple[str, ...]:
        return decisions.order("forward", x, w, torch.bfloat16, "ieee", rows)

    assert order(3000) == order(2049) == order(4096) == ("tma", "pointer")
    assert len(asked) == 1
    decisions.write([ROW])
    assert order(3000)[0] == "library"
    assert len(asked) == 2
    began = time.perf_counter()
    for _ in range(1000):
        order(3000)
    assert time.perf_counter() - began < 0.1  # 0.5 µs each; this says that no file is read


def test_force_wins_and_ends() -> None:
    x = torch.empty(4, 4)

    def fail() -> None:
        with decisions.force("library"):
            assert decisions.order("forward", x, x, x.dtype, "ieee", 4) == ("library",)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert decisions.order("forward", x, x, x.dtype, "ieee", 4) != ("library",)


def test_explain() -> None:
    said = decisions.explain(H100, "forward", "bf16", *SIZES)
    assert (
        said
        == f"forward 4096 x 1024 -> 4096 bf16 on {H100.device} (sm_90): tma else pointer; not measured there"
    )
    decisions.write([ROW])
    said = decisions.explain(H100, "forward", "bf16", 4000, 4096, 1024)
    assert "library else tma else pointer" in said
    assert "library 1.1 ms, tma 2.1 ms, pointer 4 ms" in said
    assert "4096 x 1024 -> 4096" in said
    assert "2026-01-31, cuda 13.0, torch 2.14.1, triton 3.8.0" in said
