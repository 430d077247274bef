"""How every test judges a result: against float64, and against torch's own error."""

from __future__ import annotations

import torch
from torch import Tensor


def error(value: Tensor, exact: Tensor) -> float:
    """‖value - exact‖ / ‖exact‖ in float64 (absolute where exact is 0); NaN and inf must match in place."""
    value, exact = value.detach().double().cpu(), exact.detach().double().cpu()
    assert value.shape == exact.shape, f"shape {tuple(value.shape)}, expected {tuple(exact.shape)}"
    odd = ~torch.isfinite(exact)
    assert torch.equal(value[odd].nan_to_num(7.0), exact[odd].nan_to_num(7.0)), "non-finite elements differ"
    value, exact = value[~odd], exact[~odd]
    if value.numel() == 0:
        return 0.0
    norm = exact.norm().item()
    return (value - exact).norm().item() / (norm if norm > 0 else 1.0)


def assert_as_good_as_torch(
    ours: Tensor, torchs: Tensor, exact: Tensor, what: str = "", roundings: int = 1
) -> None:
    """Our error is at most twice torch's own in the same dtype, plus ``roundings`` of that dtype.

    A chain rounds twice a layer, forward and backward. A rounding counts half an epsilon, and more on
    few elements, where sums may cancel and torch's error can be 0 by luck.
    """
    assert ours.dtype == torchs.dtype, f"{what}: dtype {ours.dtype}, torch gives {torchs.dtype}"
    rounding = torch.finfo(ours.dtype).eps * (0.5 + 8 / max(exact.numel(), 1) ** 0.5)
    bound = 2 * error(torchs, exact) + roundings * rounding
    mine = error(ours, exact)
    assert mine <= bound, f"{what}: error {mine:.3e}, allowed {bound:.3e}"
