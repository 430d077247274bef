"""The table of tiles and the tuner's cache file."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
import torch

from fastmlp.kernels.tiles import configs
from fastmlp.kernels.tiles.configs import Tile, TmaTile

TILE = Tile(16, 32, 64, 4, 2, 5)
KEY = ("linear", "sm_90", "half", "narrow")


SHIPPED = configs._SHIPPED


@pytest.fixture(autouse=True)
def cache_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, nothing that ships, and no answer remembered from another one."""
    monkeypatch.setenv("FASTMLP_CACHE_DIR", str(tmp_path / "cache"))
    ship(monkeypatch, tmp_path, "{}")
    yield tmp_path / "cache" / "tiles.json"
    monkeypatch.undo()
    configs.forget()


def test_the_table_covers_everything() -> None:
    keys = itertools.product(configs.FAMILIES, configs.ARCHITECTURES, configs.PRECISIONS, configs.BUCKETS)
    assert {key for key in keys if configs.exists(*key[:3])} == set(configs.TABLE)


def test_what_tma_feeds_is_there_where_tma_and_tensor_cores_are() -> None:
    for family in configs.TMA_FAMILIES:
        found = {
            key
            for key in itertools.product(
                ("sm_80", "sm_89", "sm_90", "sm_103", "sm_121", "gfx942"), configs.PRECISIONS
            )
            if configs.exists(family, *key)
        }
        assert found == set(itertools.product(("sm_90", "sm_103", "sm_121"), ("half", "tf32")))


def test_tiles_of_tma_have_fields_of_their_own() -> None:
    key, tile = ("matmul", "sm_100", "half", "wide"), TmaTile(64, 64, 64, 8, 4, 2, 4, True)
    for family, arch, *_ in configs.TABLE:
        assert type(configs.lookup(family, arch, "half", 1, 1)) is configs.tile_type(family)
    assert vars(configs.TABLE[key]).keys() - vars(TILE).keys() == {"SUBTILES", "WARP_SPECIALIZE"}
    configs.write_cache({key: tile})
    assert configs.lookup("matmul", "sm_100", "half", 4096, 4096) == tile
    specialized = {key[1] for key, tile in configs.TABLE.items() if getattr(tile, "WARP_SPECIALIZE", False)}
    assert specialized == {"sm_100"}, "where Triton has it"


def test_tiles_are_powers_of_two_that_a_matrix_product_takes() -> None:
    for key, tile in configs.TABLE.items():
        sizes = (
            (tile.BLOCK_M, tile.BLOCK_K) if key[0] == "head" else (tile.BLOCK_M, tile.BLOCK_N, tile.BLOCK_K)
        )
        for size in sizes:
            assert size >= 16, key
            assert size & (size - 1) == 0, key


@pytest.mark.parametrize(
    ("arch", "expected"),
    [
        ("sm_80", "sm_80"),
        ("sm_86", "sm_120"),  # 99 KB of shared memory, as sm_120
        ("sm_89", "sm_120"),
        ("sm_90", "sm_90"),
        ("sm_90a", "sm_90"),
        ("sm_100", "sm_100"),
        ("sm_103", "sm_100"),
        ("sm_121", "sm_120"),
        ("gfx950", "gfx942"),
        ("sm_75", "sm_80"),
    ],
)
def test_nearest(arch: str, expected: str) -> None:
    assert configs.nearest(arch) == expected


def test_buckets_depend_on_the_weight_alone() -> None:
    assert configs.bucket(256, 784) == "narrow"
    assert configs.bucket(512, 1024) == "narrow"  # 2¹⁹ elements: the last narrow one
    assert configs.bucket(512, 1025) == "wide"
    assert configs.bucket(4096, 4096) == "wide"


def test_precision_class() -> None:
    assert configs.precision_class(torch.bfloat16, "ieee") == "half"
    assert configs.precision_class(torch.float16, "ieee") == "half"
    assert configs.precision_class(torch.float32, "tf32") == "tf32"
    assert configs.precision_class(torch.float32, "ieee") == "ieee"


def test_the_cache_wins_over_the_table_at_once() -> None:
    before = configs.lookup("linear", "sm_90", "half", 256, 784)
    assert before == configs.TABLE[KEY]
    configs.write_cache({KEY: TILE})
    assert configs.lookup("linear", "sm_90", "half", 256, 784) == TILE
    assert configs.lookup("linear", "sm_90", "half", 4096, 4096) == configs.TABLE[(*KEY[:3], "wide")]
    assert configs.lookup("linear_backward", "sm_90", "half", 256, 784) != TILE


def test_the_cache_keeps_what_it_had(cache_file: Path) -> None:
    other = ("linear", "sm_80", "tf32", "wide")
    configs.write_cache({KEY: TILE})
    configs.write_cache({other: Tile(64, 64, 32)})
    assert configs.read_cache() == {KEY: TILE, other: Tile(64, 64, 32)}
    left = sorted(path.name for path in cache_file.parent.iterdir())
    assert left == ["tiles.json", "tiles.json.lock"], "a temporary file is left"


def test_a_tuned_tile_of_another_gpu_is_not_used() -> None:
    """sm_86's tiles are sm_86's: neither sm_80 nor the table row that sm_86 falls back to sees them."""
    configs.write_cache(
        {("linear", "sm_86", "half", "narrow"): TILE, ("linear", "??", "half", "narrow"): TILE}
    )
    assert configs.lookup("linear", "sm_86", "half", 256, 784) == TILE
    for arch in configs.ARCHITECTURES:
        assert (
            configs.lookup("linear", arch, "half", 256, 784)
            == configs.TABLE["linear", arch, "half", "narrow"]
        )


_SIZES = '"BLOCK_M": 64, "BLOCK_N": 64'


@pytest.mark.parametrize(
    "text",
    [
        *("", "{", "[1, 2]", '{"a/b/c/d": 3}', '{"a/b/c/d": {"BLOCK_Q": 1}}', "\x00", "[" * 100_000),
        *(f'{{"linear/sm_90/half": {{{_SIZES}, "BLOCK_K": 32}}}}', f'{{"{"/".join(KEY)}": [64, 64, 64]}}'),
        *(
            f'{{"{"/".join(KEY)}": {{{_SIZES}, "BLOCK_K": {k}}}}}'
            for k in ('"64"', "48", "-64", "0", "64.0", 1 << 40)
        ),
    ],
)
def test_a_damaged_cache_is_ignored_aloud(text: str, cache_file: Path) -> None:
    cache_file.parent.mkdir()
    cache_file.write_text(text)
    with pytest.warns(UserWarning, match="tiles.json: ignored"):
        assert configs.lookup("linear", "sm_90", "half", 256, 784) == configs.TABLE[KEY]
    with pytest.warns(UserWarning, match="tiles.json: ignored"):
        configs.write_cache({KEY: TILE})
    assert configs.read_cache() == {KEY: TILE}


def test_a_damaged_tile_is_ignored_alone(cache_file: Path) -> None:
    configs.write_cache({KEY: TILE})
    kept = json.loads(cache_file.read_text())
    cache_file.write_text(json.dumps(kept | {"linear/sm_80/half/narrow": {"BLOCK_M": 64}}))
    with pytest.warns(UserWarning, match="tiles.json: ignored 'linear/sm_80/half/narrow', not a tile"):
        assert configs.lookup("linear", "sm_90", "half", 256, 784) == TILE


def ship(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str) -> None:
    file = tmp_path / "shipped" / "tiles.json"
    file.parent.mkdir(exist_ok=True)
    file.write_text(text)
    monkeypatch.setattr(configs, "_SHIPPED", file)
    configs.forget()


def test_the_cache_then_what_ships_then_the_table(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    other = Tile(64, 64, 32)
    ship(monkeypatch, tmp_path, json.dumps(configs.entries({KEY: TILE})))
    assert configs.lookup("linear", "sm_90", "half", 256, 784) == configs.default(KEY) == TILE
    for arch, bucket in (("sm_90", "wide"), ("sm_80", "narrow"), ("sm_121", "narrow")):
        key = ("linear", arch, "half", bucket)
        assert configs.default(key) == configs.TABLE["linear", configs.nearest(arch), "half", bucket]
    configs.write_cache({KEY: other})
    assert configs.lookup("linear", "sm_90", "half", 256, 784) == other
    assert configs.default(KEY) == TILE


def test_a_damaged_tile_that_ships_is_ignored_aloud(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ship(monkeypatch, tmp_path, json.dumps({"/".join(KEY): {"BLOCK_M": 48, "BLOCK_N": 32, "BLOCK_K": 32}}))
    with pytest.warns(UserWarning, match="tiles.json: ignored 'linear/sm_90/half/narrow', not a tile"):
        assert configs.lookup("linear", "sm_90", "half", 256, 784) == configs.TABLE[KEY]


def test_what_ships_is_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing was measured on a GPU yet; tiles that are added must be ones, and of kernels that there are."""
    monkeypatch.setattr(configs, "_SHIPPED", SHIPPED)
    configs.forget()
    assert configs.entries(configs.shipped()) == json.loads(SHIPPED.read_text())
    assert all((key[0], configs.nearest(key[1]), *key[2:]) in configs.TABLE for key in configs.shipped())


def test_override_wins_and_ends() -> None:
    configs.write_cache({KEY: TILE})

    def fail() -> None:
        with configs.override("linear", Tile(64, 64, 64)):
            assert configs.lookup("linear", "interpret", "half", 1, 1) == Tile(64, 64, 64)
            assert configs.lookup("linear", "sm_90", "half", 1, 1) == Tile(64, 64, 64)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert configs.lookup("linear", "sm_90", "half", 1, 1) == TILE
