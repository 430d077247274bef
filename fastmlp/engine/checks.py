"""What a batch must look like, checked before anything is written."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastmlp.backends.base import SquaredError
from fastmlp.engine.network import Network
from fastmlp.engine.rules import wants_closure
from fastmlp.functional.quantized import INTEGERS

_PLAIN = (Tensor, nn.Parameter)
_HALVES = (torch.bfloat16, torch.float16)


def check_batch(network: Network, x: Tensor, y: Tensor, rows: Tensor | None, dtype: torch.dtype) -> Tensor:
    """x as rows of features (N, K), for products in ``dtype``.

    Raises:
        ValueError: shapes that do not fit.
        TypeError: dtypes that do not.
        RuntimeError: another device than the parameters'.
    """
    features, device = network.widths[0], network.layers[0].weight.device
    if network.flatten and x.dim() > 2:
        x = x.flatten(1)
    if x.dim() != 2 or x.shape[1] != features:
        raise ValueError(f"x: expected (N, {features}), got {tuple(x.shape)}")
    regression = isinstance(network.options, SquaredError)
    targets = (len(x), network.widths[-1]) if regression else (len(x),)
    if y.shape != targets:
        what = "a number for each output" if regression else "a class index"
        raise ValueError(f"y: expected {targets}, {what} for each row of x, got {tuple(y.shape)}")
    # As with torch, features may differ from the parameters in dtype only under autocast.
    own = network.layers[0].weight.dtype
    if network.scale is not None:
        if x.dtype not in (*INTEGERS, own):
            raise TypeError(f"x: expected torch.uint8 or torch.int8 to dequantize, got {x.dtype}")
    elif x.dtype not in (torch.uint8, own) and not (x.dtype in _HALVES and dtype in _HALVES):
        raise TypeError(f"x: expected torch.uint8 or {own} as the parameters, got {x.dtype}")
    if y.dtype != (own if regression else torch.int64):
        raise TypeError(f"y: expected {own if regression else torch.int64}, got {y.dtype}")
    if rows is not None and (rows.dim() != 1 or rows.dtype != torch.int64):
        raise ValueError(f"rows: expected (B,) torch.int64, got {tuple(rows.shape)} {rows.dtype}")
    for tensor, name in ((x, "x"), (y, "y"), (rows, "rows")):
        if tensor is not None and tensor.device != device:
            raise RuntimeError(f"{name}: expected on {device} as the parameters, got {tensor.device}")
    return x


def batch_problem(network: Network, x: Tensor, y: Tensor) -> str | None:
    """Why no engine runs batches like x, y, which the model and its loss themselves may take; or None."""
    if (
        type(x) not in _PLAIN
        or type(y) not in _PLAIN
        or x.layout != torch.strided
        or y.layout != torch.strided
    ):
        return "the batch is no ordinary tensors"
    if x.requires_grad or y.requires_grad:
        return "the batch wants a gradient"
    if x.dim() != 2 and not (network.flatten and x.dim() > 2) and x.shape[-1:] == network.widths[:1]:
        return "the batch is not rows of features"
    if y.dtype == torch.int64 and y.dim() == 1:
        return None
    whole = y.shape == (*x.shape[:1], network.widths[-1])
    if isinstance(network.options, SquaredError):
        other = whole and y.dtype != network.layers[0].weight.dtype and takes_any_number()
        return f"the targets are {y.dtype}" if other else None
    if whole and y.is_floating_point():
        return "the targets are probabilities"
    return "the targets are torch.uint8" if y.dtype == torch.uint8 and y.shape == x.shape[:1] else None


@cache
def takes_any_number() -> bool:
    """Whether this torch's squared error has a gradient where its two sides differ in dtype."""
    with torch.inference_mode(False), torch.enable_grad():
        x = torch.zeros((), device="cpu", dtype=torch.float32, requires_grad=True)
        try:
            F.mse_loss(x, x.detach().double()).backward()
        except RuntimeError:
            return False
    return True


def require_called(value: object, name: str, kind: str) -> None:
    """Check that ``value``, the argument ``name``, is a module or a function, of ``kind``'s arguments.

    Raises:
        ValueError: it is something else, such as a module's class.
    """
    if isinstance(value, type):
        what = f"expected a {name}, got the class {value.__name__}; {value.__name__}() makes one"
        raise ValueError(f"{name}: {what}")
    if not callable(value):
        raise ValueError(f"{name}: expected a module or a function of {kind}, got {value!r}")


def require_optimizer(optimizer: object) -> None:
    """Check that it is one.

    Raises:
        ValueError: it is something else, such as an optimizer's class.
    """
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise ValueError(
            f"optimizer: expected one over the net's parameters, such as torch.optim.Adam(net.parameters()), "
            f"got {optimizer!r}"
        )


def check_parts(model: object, loss: object, optimizer: object) -> None:
    """Check that a step can be made of them; anything that behaves like an optimizer will do.

    Raises:
        ValueError: one is not, such as a class.
    """
    require_called(model, "model", "the features")
    require_called(loss, "loss", "(outputs, targets)")
    if isinstance(optimizer, type) or not hasattr(optimizer, "param_groups"):
        require_optimizer(optimizer)


def check_optimizer(
    model: nn.Module, loss: nn.Module, optimizer: torch.optim.Optimizer, dtype: torch.dtype
) -> None:
    """Check that a step changes something of the net, or of a loss that learns.

    Raises:
        ValueError: not one of the optimizer's parameters is theirs; or it evaluates the loss itself, which
            ``torch.amp.GradScaler`` cannot scale.
    """
    if dtype == torch.float16 and wants_closure(optimizer):
        raise ValueError(
            f"dtype: expected float32 or bfloat16 for {type(optimizer).__name__}, which evaluates the loss "
            "itself, got torch.float16"
        )
    if not (isinstance(model, nn.Module) and isinstance(loss, nn.Module)):  # of a function nothing is known
        return
    held = [p for group in optimizer.param_groups for p in group["params"]]
    known = {id(p) for module in (model, loss) for p in module.parameters()}
    if known.isdisjoint(map(id, held)):
        raise ValueError(
            f"optimizer: expected one over the net's parameters, but none of its {len(held)} is the net's"
        )
