"""Numbers as a reader sees them: in the tables, on the page and on the terminal."""

from __future__ import annotations


def time(timing: dict[str, float]) -> str:
    """The median with its quartiles, in the median's unit."""
    unit, scale = _unit(timing["median"])
    median, low, high = (_digits(timing[name] * scale) for name in ("median", "low", "high"))
    return f"{median} {unit} ({low}-{high})"


def seconds(value: float) -> str:
    """A duration: 1.6 ms."""
    unit, scale = _unit(value)
    return f"{_digits(value * scale)} {unit}"


def size(count: float) -> str:
    """Bytes: 64 KiB."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.4g} {unit}"
        count /= 1024
    return f"{count:.3g} GiB"


def count(value: int) -> str:
    """1Ki for 1024, 1000 as it is."""
    for unit, name in ((1 << 20, "Mi"), (1 << 10, "Ki")):
        if value % unit == 0:
            return f"{value // unit}{name}"
    return str(value)


def precision(dtype: str) -> str:
    """A dtype in short: fp32."""
    return {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}.get(dtype, dtype)


def _digits(value: float) -> str:
    """Three digits, but no power of ten."""
    return f"{value:.3g}" if value < 999.5 else f"{value:.0f}"


def _unit(seconds: float) -> tuple[str, float]:
    return ("s", 1.0) if seconds >= 1 else ("ms", 1e3) if seconds >= 1e-3 else ("µs", 1e6)
