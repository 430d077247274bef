"""Tile sizes: one table (``tiles.txt``) keyed by kernel family, architecture, precision and shape bucket.

A bucket depends on the layer's widths and never on the number of rows: a new batch size alone
neither retunes nor recompiles. Tiles that were measured ship as JSON and win over the table's;
`fastmlp.kernels.tune` measures this machine's own and keeps them in a cache file, which comes first.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastmlp.kernels import launch
from fastmlp.kernels.common.arguments import Blocks
from fastmlp.kernels.launch import arch_of, has_tma
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

    @property
    def options(self) -> dict[str, int]:
        """What else a launch with it is compiled with."""
        return {"num_warps": self.num_warps, "num_stages": self.num_stages}


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
# "matmul_backward" dX and dW alike; they exist where TMA and tensor cores do.
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
#: The most elements of a narrow weight; for a net that runs whole, the square of its widest hidden layer.
_NARROW = {"mlp": 64 * 64, "mlp_backward": 64 * 64}


def bucket(n: int, k: int, family: str = "") -> str:
    """The shape bucket of a weight of ``n`` rows and ``k`` columns."""
    return "narrow" if n * k <= _NARROW.get(family, 1 << 19) else "wide"


def precision_class(dtype: torch.dtype, precision: str) -> str:
    """The table's word for operands of ``dtype``, float32 ones multiplied in ``precision``."""
    return precision if dtype == torch.float32 else "half"


def tile_type(family: str) -> type[Tile]:
    """What tiles of ``family`` are made of."""
    return TmaTile if family in TMA_FAMILIES else Tile


def group_m(family: str) -> int:
    """GROUP_M of a family's tiles: the head and whole nets have one column of tiles."""
    return 1 if family == "head" or family in MLP_FAMILIES else 8


# In the interpreter a program costs far more than its arithmetic: few, larger tiles.
_INTERPRETED = (64, 64, 64, 2, 4, 1)


def _read_table(text: str) -> dict[Key, Tile]:
    """The rows of ``tiles.txt``, which says at its top how they are written."""
    found: dict[Key, Tile] = {}
    families: list[str] = []
    for line in text.splitlines():
        if line.startswith(" "):
            precision, buckets, *cells = line.split()
            by_arch = zip(ARCHITECTURES, cells)
            for family, bucket, (arch, cell) in product(families, buckets.split(","), by_arch):
                key = family, arch, precision, bucket
                assert key not in found, f"{key}: twice"
                if cell != "-":
                    found[key] = _parse_cell(family, cell)
        elif line and not line.startswith("#"):
            families = line.split()
    return found


def _parse_cell(family: str, cell: str) -> Tile:
    blocks, warps, stages, *epilogue = cell.split("/")
    m, n, k = map(int, blocks.split("x"))
    sizes = m, n, k, group_m(family), int(warps), int(stages)
    if not epilogue:
        return Tile(*sizes)
    return TmaTile(*sizes, int(epilogue[0].rstrip("s")), epilogue[0].endswith("s"))


TABLE = _read_table(Path(__file__).with_name("tiles.txt").read_text())


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


def for_weight(family: str, weight: Tensor, dtype: torch.dtype, precision: str) -> Tile:
    """The tile for products with ``weight`` (N, K) in ``dtype``, on the weight's device."""
    return lookup(family, arch_of(weight), precision_class(dtype, precision), *weight.shape)


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
    """The tuned tiles of the cache file, without damaged ones, of which it warns."""
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
