"""The data of devices, how one is found, and the time of a launch."""

from __future__ import annotations

import pytest
import torch

from fastmlp.costs import devices
from fastmlp.costs.devices import DEVICES, Device, find, matching


def test_every_device_is_whole() -> None:
    for name, device in DEVICES.items():
        assert device.name == name
        assert set(device.rates) == {"ieee", "tf32", "half"}
        assert device.rates["ieee"] <= device.rates["tf32"] <= device.rates["half"]
        assert device.bandwidth < device.cache_bandwidth
        assert device.source


def test_the_h200_has_the_designs_ceilings() -> None:
    assert (DEVICES["h200"].bandwidth, DEVICES["h200"].rates["half"]) == (4.3e12, 790e12)
    assert "measured" in DEVICES["h200"].source


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA B200", "b200"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA GeForce RTX 4090", "rtx4090"),
        ("NVIDIA GeForce RTX 5090", "rtx5090"),
        ("AMD Instinct MI300X", "mi300x"),
        ("Some GPU of next year", "h200"),
    ],
)
def test_a_gpu_is_matched_by_its_name(name: str, found: str) -> None:
    assert matching(name).name == found


def test_find() -> None:
    assert find("H100").name == "h100"
    assert find("cpu").name == find(torch.device("cpu")).name == "cpu"
    if not torch.cuda.is_available():
        assert find().name == find("cuda:0").name == devices.DEFAULT
    for wrong in ("h300", "meta"):
        with pytest.raises(ValueError, match=f"device: expected one of a100, .* got '{wrong}'"):
            find(wrong)


def test_a_launch_is_as_long_as_its_slowest_stream() -> None:
    device = Device("x", 10.0, {"half": 100.0}, 4, 0, "", cache=40.0, launch=1.0)
    assert device.seconds(0, 20, 0, 0, "half") == 1 + 20 / 10
    assert device.seconds(0, 20, 160, 0, "half") == 1 + 160 / 40
    assert device.seconds(1000, 20, 160, 0, "half") == 1 + 1000 / 100
    # One program of four has a quarter of the products and of the cache, but any share of memory.
    assert device.seconds(1000, 20, 160, 1, "half") == 1 + 4 * 1000 / 100
    assert device.seconds(0, 20, 160, 1, "half") == 1 + 4 * 160 / 40
    assert device.seconds(0, 20, 160, 8, "half") == 1 + 160 / 40


def test_kinds_of_operands() -> None:
    assert devices.operand_kind(torch.bfloat16) == devices.operand_kind(torch.float16) == "half"
    before = torch.backends.cuda.matmul.fp32_precision
    try:
        for setting, kind in (("ieee", "ieee"), ("tf32", "tf32")):
            torch.backends.cuda.matmul.fp32_precision = setting
            assert devices.operand_kind(torch.float32) == kind
    finally:
        torch.backends.cuda.matmul.fp32_precision = before
    with pytest.raises(ValueError, match=r"dtype: expected float32, float16 or bfloat16, got torch\.float64"):
        devices.operand_kind(torch.float64)
