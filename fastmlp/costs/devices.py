"""What named devices can do at most, as data, and the least time that a launch takes on one.

The numbers are the vendors' peaks for dense operands with float32 sums, unless ``source`` says that they were
measured. No vendor states what a launch costs: `LAUNCH` is assumed for every GPU.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass
from pathlib import Path

import torch

from fastmlp.compiling import constant

#: Seconds from one kernel's end to the next one's start in a stream; assumed, between 2 and 3 µs.
LAUNCH = 2.5e-6
#: The L2 cache's bandwidth over the memory's, where the vendor states none; assumed (an A100's is 3.5).
CACHE_FACTOR = 3
_KIB = 1 << 10


@dataclass(frozen=True)
class Device:
    """The ceilings of one device."""

    name: str
    bandwidth: float  # bytes a second through memory
    rates: dict[str, float]  # operations a second of matrix products: of "ieee", "tf32" and "half" operands
    sms: int  # multiprocessors, compute units, cores
    shared: int  # bytes of shared memory that one program may take; 0 where there is none
    source: str
    cache: float | None = None  # bytes a second through the last cache that all share
    launch: float = LAUNCH

    @property
    def cache_bandwidth(self) -> float:
        """Bytes a second through the last cache that all multiprocessors share."""
        return self.cache or CACHE_FACTOR * self.bandwidth

    def seconds(self, operations: int, moved: int, cached: int, programs: int, kind: str) -> float:
        """The least time of one launch: its slowest stream, and the launch itself.

        Args:
            operations: of matrix products.
            moved: bytes through memory.
            cached: bytes through the cache, what is read several times counted each time.
            programs: of the grid: fewer than multiprocessors leave some idle. 0: as many as it takes.
            kind: of the products' operands, a key of ``rates``.
        """
        share = min(1.0, programs / self.sms) if programs else 1.0
        streams = (
            moved / self.bandwidth,
            cached / (share * self.cache_bandwidth),
            operations / (share * self.rates[kind]),
        )
        return max(streams) + self.launch


DEVICES: dict[str, Device] = {
    device.name: device
    for device in (
        Device(
            "a100", 2.039e12, {"ieee": 19.5e12, "tf32": 156e12, "half": 312e12}, 108, 163 * _KIB,
            "NVIDIA A100 whitepaper and datasheet, SXM 80 GB; L2: 5120 bytes a clock at 1.41 GHz",
            cache=5120 * 1.41e9,
        ),
        Device(
            "h100", 3.35e12, {"ieee": 66.9e12, "tf32": 494.7e12, "half": 989.4e12}, 132, 227 * _KIB,
            "NVIDIA H100 whitepaper, SXM5; L2: assumed an A100's bytes a clock, at 1.83 GHz",
            cache=5120 * 1.83e9,
        ),
        Device(
            "h200", 4.3e12, {"ieee": 66.9e12, "tf32": 494.7e12, "half": 790e12}, 132, 227 * _KIB,
            "memory (of 4.8 TB/s) and half products (of 989.4 TFLOP/s) measured with torch's own copy and "
            "matmul, not with fastmlp; the others as the H100's",
            cache=5120 * 1.83e9,
        ),
        Device(
            "b200", 8e12, {"ieee": 80e12, "tf32": 1.1e15, "half": 2.25e15}, 148, 227 * _KIB,
            "NVIDIA Blackwell architecture brief, HGX B200; L2 assumed",
        ),
        Device(
            "rtx4090", 1.008e12, {"ieee": 82.6e12, "tf32": 82.6e12, "half": 165.2e12}, 128, 99 * _KIB,
            "NVIDIA Ada architecture whitepaper; L2 assumed",
        ),
        Device(
            "rtx5090", 1.792e12, {"ieee": 104.8e12, "tf32": 104.8e12, "half": 209.5e12}, 170, 99 * _KIB,
            "NVIDIA RTX Blackwell architecture whitepaper; L2 assumed",
        ),
        Device(
            "mi300x", 5.3e12, {"ieee": 163.4e12, "tf32": 653.7e12, "half": 1307.4e12}, 304, 64 * _KIB,
            "AMD CDNA 3 whitepaper and MI300X datasheet; L2: 2 KB a clock and die, 8 dies at 2.1 GHz",
            cache=8 * 2048 * 2.1e9,
        ),
        Device(
            "cpu", 29.2e9, {"ieee": 158e9, "tf32": 158e9, "half": 403e9}, 2, 0,
            "measured: benchmarks/results/cpu-amd-epyc-2 (two cores); a launch is an op's dispatch",
            cache=142e9, launch=0.5e-6,
        ),
    )
}  # fmt: skip
#: What stands in for a GPU that is not here, or not in the table.
DEFAULT = "h200"


def find(device: str | torch.device | None = None) -> Device:
    """The data of ``device``: a name of `DEVICES`, or a torch.device (or its string).

    A GPU is matched by its name, as is, for None, the one at hand. Where there is none, or none that the
    table knows, the `DEFAULT` stands in.

    Raises:
        ValueError: a string that is neither.
    """
    if isinstance(device, str) and device.lower() in DEVICES:
        return DEVICES[device.lower()]
    try:
        where = torch.device("cuda" if device is None else device)
    except (RuntimeError, TypeError):
        where = None
    if where is None or where.type not in ("cpu", "cuda"):
        raise ValueError(f"device: expected one of {', '.join(DEVICES)} or a torch.device, got {device!r}")
    if where.type == "cpu":
        return DEVICES["cpu"]
    return matching(torch.cuda.get_device_name(where)) if torch.cuda.is_available() else DEVICES[DEFAULT]


def matching(name: str) -> Device:
    """The data of a GPU by what its driver calls it, such as "NVIDIA H100 80GB HBM3"."""
    squeezed = name.lower().replace(" ", "")
    return next((DEVICES[known] for known in DEVICES if known in squeezed), DEVICES[DEFAULT])


@constant  # torch.compile guards the setting itself
def operand_kind(dtype: torch.dtype) -> str:
    """Which of a device's rates products in ``dtype`` run at; float32 obeys torch's TF32 setting.

    Raises:
        ValueError: a dtype that the kernels do not compute in.
    """
    if dtype in (torch.float16, torch.bfloat16):
        return "half"
    if dtype != torch.float32:
        raise ValueError(f"dtype: expected float32, float16 or bfloat16, got {dtype}")
    return "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"


def processor() -> str:
    """What the CPU calls itself."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or "unknown processor"
