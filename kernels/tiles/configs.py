"""Tile sizes as data: one table keyed by kernel family, architecture, precision and shape bucket.

A bucket depends on the layer's widths and never on the number of rows: a new batch size alone
neither retunes nor recompiles. Rows that were measured ship as JSON and win over those below;
`fastmlp.kernels.tune` measures this machine's own and keeps them in a cache file, which comes first.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from fastmlp.kernels import launch
from fastmlp.kernels.common.arguments import Blocks
from fastmlp.kernels.launch import has_tma
from fastmlp.kernels.tiles import cache as cache_files


@dataclass(frozen=True)
class Tile:
    """The tile of a matrix kernel (output BLOCK_M x BLOCK_N, reduction BLOCK_K) and how it is run."""

    BLOCK_M: int
    BLOCK_N: int
    BLOCK_K: int
    GROUP_M: int = 8
    num_warps: int = 4
    num_stages: int = 3

    def blocks(self, reduction: int, precision: str) -> Blocks:
        """As one argument of a kernel whose products are sums over ``reduction`` elements."""
        even = reduction % self.BLOCK_K == 0
        return Blocks(self.BLOCK_M, self.BLOCK_N, self.BLOCK_K, self.GROUP_M, even, precision)


@dataclass(frozen=True)
class TmaTile(Tile):
    """The tile of the kernel that TMA feeds."""

    SUBTILES: int = 1  # its epilogue's parts, a power of two
    WARP_SPECIALIZE: bool = False  # loads, products and epilogue by warps of their own; Triton: sm_100 alone


# (family, architecture, precision, bucket). A family is a kernel: "linear" is the forward, the
# tiles of dX and dW in "linear_backward" are alike (f' in its prologue takes registers, so that has a
# family of its own), "extra" is what takes yet more of them (an affine quantized input; a dropout's mask in
# the backward's epilogue), "head" is the classifier head, "update" dW with the optimizer behind it, "epoch"
# the persistent kernel, all of whose phases have one tile. "matmul" is the forward by TMA,
# "matmul_backward" dX and dW alike; they are there where TMA and tensor cores are.
Key = tuple[str, str, str, str]

TMA_FAMILIES = ("matmul", "matmul_backward")
#: Of nets that run whole: up to 128 wide, or wider.
MLP_FAMILIES = ("mlp", "mlp_backward", "mlp_wide", "mlp_wide_backward", "mlp_gradients")
FAMILIES = (
    "linear", "linear_extra", "linear_backward", "linear_backward_prologue", "linear_backward_extra",
    "head", "update", "epoch", *TMA_FAMILIES, *MLP_FAMILIES,
)  # fmt: skip
ARCHITECTURES = ("sm_80", "sm_90", "sm_100", "sm_120", "gfx942")
PRECISIONS = ("half", "tf32", "ieee")  # half: fp16 and bf16 operands
BUCKETS = ("narrow", "wide")
#: The most elements of a narrow weight; of a net that runs whole, of its widest hidden layer's square.
_NARROW = {"mlp": 64 * 64, "mlp_backward": 64 * 64}


def bucket(n: int, k: int, family: str = "") -> str:
    """The shape bucket of a weight of ``n`` rows and ``k`` columns."""
    return "narrow" if n * k <= _NARROW.get(family, 1 << 19) else "wide"


def precision_class(dtype: torch.dtype, precision: str) -> str:
    """The table's word for operands of ``dtype``, float32 ones multiplied in ``precision``."""
    return precision if dtype == torch.float32 else "half"


def _rows() -> Iterator[tuple[Key, Tile]]:
    """The table, written by what differs: chosen by count and compiler report, not yet by timing.

    Narrow layers get small tiles, so that a batch of 256 still fills many multiprocessors; wide
    ones the largest that neither spill nor overflow the shared memory (`fastmlp.kernels.compile`).
    float32 without tensor cores is limited by registers, hence its smaller tiles.
    """
    for arch in ARCHITECTURES:
        amd = arch == "gfx942"  # 64 KB of shared memory, and its pipeliner wants two stages
        small_smem = arch in ("sm_120", "gfx942")
        hopper_up = arch in ("sm_90", "sm_100")  # wgmma and tcgen05 take 64 rows at least
        stages = 2 if amd else 3
        for family in FAMILIES[:5]:
            forward = "backward" not in family
            yield (family, arch, "half", "narrow"), Tile(64 if hopper_up else 32, 32, 64, 8, 4, stages)
            yield (family, arch, "half", "wide"), Tile(128, 128, 32 if small_smem else 64, 8, 8, stages)
            yield (family, arch, "tf32", "narrow"), Tile(64 if hopper_up else 32, 32, 32, 8, 4, stages)
            yield (
                (family, arch, "tf32", "wide"),
                Tile(128, 128 if forward and not small_smem else 64, 32, 8, 8, 2 if small_smem else stages),
            )
            yield (family, arch, "ieee", "narrow"), Tile(32, 32, 32, 8, 4, 2)
            yield (family, arch, "ieee", "wide"), Tile(64, 64, 16, 8, 8, 2)
        # The head's BLOCK_N is its classes. 16 rows, so that a batch of 256 fills 16 multiprocessors.
        for bucket in BUCKETS:
            yield (
                ("head", arch, "half", bucket),
                Tile(16, 0, 32, 1, 4, 2) if amd else Tile(16, 0, 64, 1, 8, 2),
            )
            yield ("head", arch, "tf32", bucket), Tile(16, 0, 32, 1, 4, 2)
            yield ("head", arch, "ieee", bucket), Tile(16, 0, 16, 1, 8, 2)
        # The optimizer's state is as large as the accumulator: smaller tiles than a plain dW's. 64 x 32
        # makes 108 tiles of 784-256-10, so that each program of the persistent kernel can keep one.
        yield ("update", arch, "half", "narrow"), Tile(64, 32, 64, 8, 8, stages)
        yield (
            ("update", arch, "half", "wide"),
            Tile(128 if arch in ("sm_80", "sm_90") else 64, 64, 64, 8, 8, stages),
        )
        yield ("update", arch, "tf32", "narrow"), Tile(64, 32, 16 if arch == "sm_120" else 32, 8, 8, 2)
        yield ("update", arch, "ieee", "narrow"), Tile(64, 32, 16, 8, 8, 2)
        yield (
            ("epoch", arch, "half", "narrow"),
            Tile(64, 32, 32, 8, 8, 3)
            if arch == "sm_90"
            else Tile(64, 32, 16, 8, 8, 1 if arch == "sm_80" else stages),
        )
        yield ("epoch", arch, "half", "wide"), Tile(64, 32, 32, 8, 8, stages)
        yield ("epoch", arch, "tf32", "narrow"), Tile(64, 32, 16, 8, 8, 2)
        yield (
            ("epoch", arch, "ieee", "narrow"),
            {"sm_80": Tile(32, 16, 16, 8, 4, 2), "sm_120": Tile(32, 32, 16, 8, 8, 2)}.get(
                arch, Tile(32, 16, 32, 8, 8, 2)
            ),
        )
        for precision in ("tf32", "ieee"):
            yield ("update", arch, precision, "wide"), Tile(64, 64, 16, 8, 8, 2)
            yield ("epoch", arch, precision, "wide"), Tile(64, 32, 16, 8, 8, 2)
    # With the tiles above these spilled in the compiler's report.
    yield ("linear", "sm_100", "half", "wide"), Tile(128, 128, 32, 8, 8, 4)
    yield ("linear_backward_prologue", "sm_120", "half", "wide"), Tile(128, 64, 32, 8, 8, 3)
    for bucket in BUCKETS:
        yield ("head", "sm_90", "ieee", bucket), Tile(16, 0, 32, 1, 16, 2)
    yield ("linear_backward_prologue", "sm_80", "half", "wide"), Tile(128, 128, 32, 8, 8, 4)
    yield ("linear_backward_prologue", "sm_90", "half", "wide"), Tile(128, 64, 64, 8, 8, 3)
    for arch in ("sm_80", "sm_90", "sm_100", "sm_120"):
        rows, reduction = 64 if arch == "sm_100" else 128, 64 if arch in ("sm_90", "sm_100") else 32
        yield ("linear_backward_extra", arch, "half", "wide"), Tile(rows, 64, reduction, 8, 8, 3)
    for family in ("linear", "linear_extra"):
        yield (family, "sm_120", "ieee", "narrow"), Tile(32, 32, 16, 8, 4, 2)
    yield ("linear_extra", "sm_120", "ieee", "wide"), Tile(64, 32, 16, 8, 4, 2)
    yield ("linear_extra", "sm_120", "tf32", "wide"), Tile(64, 64, 32, 8, 4, 2)
    yield ("linear_extra", "sm_100", "half", "narrow"), Tile(64, 32, 32, 8, 4, 3)
    yield ("linear_extra", "sm_120", "half", "narrow"), Tile(32, 32, 64, 8, 4, 2)
    yield ("linear_backward", "sm_80", "half", "wide"), Tile(128, 128, 32, 8, 8, 4)
    yield ("update", "sm_80", "tf32", "wide"), Tile(64, 64, 32, 8, 8, 2)
    yield ("linear_backward", "sm_100", "half", "narrow"), Tile(64, 64, 32, 8, 8, 4)
    yield ("linear_backward_prologue", "sm_100", "half", "narrow"), Tile(64, 32, 32, 8, 8, 4)
    for family in ("linear_backward", "linear_backward_prologue"):
        yield (family, "sm_120", "half", "narrow"), Tile(32, 32, 32, 8, 4, 4)


def _tma_rows() -> Iterator[tuple[Key, TmaTile]]:
    """The largest tiles that the compiler's report passes.

    On sm_90 two warp groups share 128 x 256 accumulators. On sm_100 tensor memory holds two such tiles: one
    is finished and stored while the next is computed. An epilogue in quarters leaves registers for every
    activation, and shared memory for a fourth stage. sm_120 has 99 KB of it.
    """
    for family in TMA_FAMILIES:
        for arch, specialize in (("sm_90", False), ("sm_100", True)):
            yield (family, arch, "half", "narrow"), TmaTile(128, 128, 64, 8, 8, 3, 2, specialize)
            yield (family, arch, "half", "wide"), TmaTile(128, 256, 64, 8, 8, 4, 4, specialize)
            for bucket in BUCKETS:
                yield (family, arch, "tf32", bucket), TmaTile(128, 128, 32, 8, 8, 3, 2, specialize)
        for bucket in BUCKETS:
            yield (family, "sm_120", "half", bucket), TmaTile(128, 128, 32, 8, 8, 3, 2)
            yield (family, "sm_120", "tf32", bucket), TmaTile(128, 64, 32, 8, 8, 2, 2)


def _mlp_rows() -> Iterator[tuple[Key, Tile]]:
    """Whole nets: the largest tiles that neither spill nor overflow the shared memory.

    BLOCK_N is a block of features, BLOCK_K one of the input's; in mlp_gradients of examples. Two stages load
    the next layer's weights while this one multiplies. Past 128 features those registers hold activations.
    """
    for arch in ARCHITECTURES:
        blackwell = arch == "sm_100"
        small_smem = arch in ("sm_120", "gfx942")
        hopper_up = arch in ("sm_90", "sm_100")
        for family in MLP_FAMILIES[:2]:
            backward = family.endswith("backward")
            first = 32 if blackwell or small_smem else 64
            yield (family, arch, "half", "narrow"), Tile(64, 64, first, 1, 4, 2)
            step = 32 if small_smem or (blackwell and not backward) else 64
            amd = arch == "gfx942" and backward  # with 4 warps each thread may have 512 registers
            yield (
                (family, arch, "half", "wide"),
                Tile(64, 64, 32, 1, 4, 1) if amd else Tile(64, 128, step, 1, 8, 2),
            )
            one = arch == "sm_80" and backward
            yield (family, arch, "tf32", "narrow"), Tile(64, 64, 32, 1, 4, 1 if one or small_smem else 2)
            if one:
                yield (family, arch, "tf32", "wide"), Tile(64, 32, 32, 1, 8, 1)
            else:
                one = small_smem or (blackwell and not backward)
                yield (family, arch, "tf32", "wide"), Tile(64, 64, 32, 1, 4 if amd else 8, 1 if one else 2)
            for bucket in BUCKETS:
                yield (family, arch, "ieee", bucket), Tile(32, 64, 16, 1, 8, 2 if backward else 1)
        for bucket in BUCKETS:
            for family in MLP_FAMILIES[2:4]:
                side = 64 if arch == "sm_90" and family.endswith("backward") else 128
                yield (
                    (family, arch, "half", bucket),
                    Tile(64, side, 32, 1, 8, 1)
                    if hopper_up
                    else Tile(32, 64, 32, 1, 8, 1)
                    if arch != "gfx942"
                    else Tile(16, 64, 32, 1, 4, 1),
                )
                yield (family, arch, "tf32", bucket), Tile(16, 32, 16, 1, 8, 1)  # see WHOLE_WIDTHS: not used
                yield (family, arch, "ieee", bucket), Tile(16, 32, 16, 1, 8, 1)
            warps = 8 if small_smem else 4
            yield ("mlp_gradients", arch, "half", bucket), Tile(64, 64, 32, 1, warps, 2)
            yield ("mlp_gradients", arch, "tf32", bucket), Tile(64, 64, 32, 1, 4 if arch == "sm_80" else 8, 2)
            yield ("mlp_gradients", arch, "ieee", bucket), Tile(32, 32, 16, 1, 4, 2)
    # With the tiles above these spilled in the compiler's report.
    yield ("mlp", "sm_100", "half", "narrow"), Tile(64, 64, 64, 1, 8, 2)
    yield ("mlp_backward", "sm_100", "half", "narrow"), Tile(64, 64, 32, 1, 8, 2)
    yield ("mlp_backward", "sm_90", "half", "wide"), Tile(64, 64, 32, 1, 4, 2)
    yield ("mlp_backward", "sm_100", "half", "wide"), Tile(64, 128, 32, 1, 8, 1)
    yield ("mlp", "sm_90", "ieee", "narrow"), Tile(32, 32, 16, 1, 8, 1)
    for bucket in BUCKETS:
        yield ("mlp_gradients", "sm_100", "half", bucket), Tile(64, 64, 32, 1, 8, 2)


def tile_type(family: str) -> type[Tile]:
    """What tiles of ``family`` are made of."""
    return TmaTile if family in TMA_FAMILIES else Tile


# In the interpreter a program costs far more than its arithmetic: few, larger tiles.
_INTERPRETED = (64, 64, 64, 2, 4, 1)

TABLE: dict[Key, Tile] = dict(_rows()) | dict(_tma_rows()) | dict(_mlp_rows())


def exists(family: str, arch: str, precision: str) -> bool:
    """Whether ``arch`` has such a kernel: all but those that TMA feeds are everywhere."""
    return family not in TMA_FAMILIES or (
        has_tma(arch) and (family, nearest(arch), precision, BUCKETS[0]) in TABLE
    )


def lookup(family: str, arch: str, precision: str, n: int, k: int) -> Tile:
    """The tile for ``family`` on ``arch``: from the tuner's cache, else `default`."""
    tried = _override
    if tried is not None and tried[0] == family:
        return tried[1]
    return _lookup(family, arch, precision, bucket(n, k, family))


_override: tuple[str, Tile] | None = None


@contextmanager
def override(family: str, tile: Tile) -> Iterator[None]:
    """Every lookup for ``family`` inside the ``with`` block gives ``tile``: how the tuner tries one."""
    global _override
    before, _override = _override, (family, tile)
    launch.forget()
    try:
        yield
    finally:
        _override = before
        launch.forget()


@cache
def _lookup(family: str, arch: str, precision: str, bucket: str) -> Tile:
    if arch == "interpret":
        return TmaTile(*_INTERPRETED, SUBTILES=4) if family in TMA_FAMILIES else Tile(*_INTERPRETED)
    key = family, arch, precision, bucket
    return read_cache().get(key) or default(key)


def default(key: Key) -> Tile:
    """The package's tile: a shipped one that was measured on that very architecture, else the table's."""
    family, arch, precision, bucket = key
    return shipped().get(key) or TABLE[family, nearest(arch), precision, bucket]


@cache
def shipped() -> dict[Key, Tile]:
    """The measured tiles that come with the package: none so far."""
    return _parsed(json.loads(_SHIPPED.read_text()), _SHIPPED)


def nearest(arch: str) -> str:
    """The table's architecture that stands closest below ``arch``."""
    if arch in ARCHITECTURES:
        return arch
    if not arch.startswith("sm_"):
        return "gfx942"
    number = int("".join(c for c in arch if c.isdigit()))
    if 80 < number < 90:
        return "sm_120"  # consumer Ampere and Ada: sm_80's instructions, 99 KB of shared memory
    below = [a for a in ARCHITECTURES if a.startswith("sm_") and int(a[3:]) <= number]
    return below[-1] if below else "sm_80"


def cache_file() -> Path:
    """Where the tuner keeps its tiles."""
    return cache_files.path(_FILE)


def read_cache() -> dict[Key, Tile]:
    """The tuned tiles of the cache file; without those, and with a warning, that are damaged."""
    return _parsed(cache_files.read(_FILE), cache_file())


def write_cache(tiles: dict[Key, Tile]) -> Path:
    """Add ``tiles`` to the cache file, atomically, and use them from now on in this process."""
    path = cache_files.update(_FILE, lambda kept: entries(_parsed(kept, cache_file()) | tiles))
    forget()
    return path


def entries(tiles: dict[Key, Tile]) -> dict[str, Any]:
    """``tiles`` as the files have them."""
    return {"/".join(key): asdict(tile) for key, tile in tiles.items()}


def forget() -> None:
    """Read the files again at the next lookup."""
    shipped.cache_clear()
    _lookup.cache_clear()
    launch.forget()


def _parsed(entries: dict[str, Any], file: Path) -> dict[Key, Tile]:
    found = cache_files.parsed(entries, _parse, "a tile", file)
    return {tuple(key.split("/")): tile for key, tile in found.items()}  # type: ignore[misc]


def _parse(key: str, entry: Any) -> Tile:
    family, _, _, _ = key.split("/")
    tile = tile_type(family)(**entry)
    sizes = asdict(tile)
    if not isinstance(sizes.pop("WARP_SPECIALIZE", False), bool):
        raise TypeError("WARP_SPECIALIZE is neither true nor false")
    for name, value in sizes.items():
        power = type(value) is int and (name in ("GROUP_M", "num_stages") or value & (value - 1) == 0)
        if not (power and (0 if name == "BLOCK_N" else 1) <= value <= 1024):  # the head's BLOCK_N is 0
            raise ValueError(f"{name} is {value!r}")
    return tile


_FILE = "tiles.json"
_SHIPPED = Path(__file__).with_name(_FILE)
