"""A layer's backward, judged against float64 and against torch's own ops."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastmlp.activations import Act
from fastmlp.backends.base import BackwardOptions, LinearGrads, Scale, Undo
from fastmlp.backends.torch_backend import TorchBackend
from fastmlp.backends.triton_backend import TritonBackend
from tests.numerics import assert_as_good_as_torch


def exactly(value: Any) -> Any:
    """The same argument in float64."""
    if isinstance(value, Tensor):
        return value.double()
    if isinstance(value, Act):
        return value._replace(weight=exactly(value.weight))
    if isinstance(value, Undo):
        return value._replace(act=exactly(value.act), saved=exactly(value.saved))
    return Scale(*map(exactly, value)) if isinstance(value, Scale) else value


def check(grad: Tensor, x: Tensor, w: Tensor, **options: Any) -> LinearGrads:
    """Every gradient within twice the error of torch's own ops in the same dtype."""
    ours = TritonBackend().linear_backward(grad, x, w, BackwardOptions(**options))
    theirs = TorchBackend().linear_backward(grad, x, w, BackwardOptions(**options))
    exact_options = {k: exactly(v) for k, v in options.items()} | {"dtype": torch.float64}
    if options.get("bias_dtype"):
        exact_options["bias_dtype"] = torch.float64
    exactly_asked = BackwardOptions(**exact_options)
    exact = TorchBackend().linear_backward(exactly(grad), exactly(x), exactly(w), exactly_asked)
    for name, a, b, c in zip(LinearGrads._fields, ours, theirs, exact):
        assert (a is None) == (c is None), name
        if a is not None:
            b = b.float() if name == "slope" else b  # ours stays float32
            assert_as_good_as_torch(a, b, c, f"{name} {tuple(grad.shape)} x {tuple(w.shape)}")
    return ours
