"""What torch is set to is what the kernels' products are in."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch

import fastmlp
from fastmlp import backends
from fastmlp.functional import mlp
from fastmlp.kernels.common.arguments import in_which
from fastmlp.kernels.launch import record_launches
from tests.compatibility.nets import TARGET, children, rows_of

GROUP = "AMP and dtypes"


@pytest.fixture
def _precision() -> Iterator[None]:
    """Whatever a test sets is as it was."""
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


def _legacy(on: bool) -> None:
    torch.backends.cuda.matmul.allow_tf32 = on


def _new(on: bool) -> None:
    torch.backends.cuda.matmul.fp32_precision = "tf32" if on else "ieee"


SWITCHES: dict[str, Callable[[bool], None]] = {
    "set_float32_matmul_precision('high')": lambda on: torch.set_float32_matmul_precision(
        "high" if on else "highest"
    ),
    "set_float32_matmul_precision('medium')": lambda on: torch.set_float32_matmul_precision(
        "medium" if on else "highest"
    ),
    "cuda.matmul.allow_tf32": _legacy,
    "cuda.matmul.fp32_precision": _new,
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(n, marks=pytest.mark.feature(GROUP, f"TF32: {n}", dtype="float32", backend="triton"))
        for n in SWITCHES
    ],
)
@pytest.mark.usefixtures("_precision")
def test_tf32(name: str, device: str) -> None:
    """Every kernel with a product is launched with what torch is set to, at once, and forth and back."""
    x, y = rows_of(torch.float32, device).requires_grad_(), torch.tensor(TARGET, device=device)
    net, loss = fastmlp.Sequential(*children(torch.float32, device)), fastmlp.CrossEntropyLoss()
    for on in (True, False):
        SWITCHES[name](on)
        with backends.use("triton"), record_launches() as launches:
            net.cross_entropy(x, y, loss)[0].backward()  # type: ignore[index]
            mlp(x, [net[0].weight, net[3].weight], plan="whole").sum().backward()
        found = [products[1] for products in (in_which(s.named) for s in launches) if products]
        assert len(found) >= 5
        assert set(found) == {"tf32" if on else "ieee"}
