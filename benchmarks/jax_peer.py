"""The JAX peer: the same MLP, batch, loss and SGD under ``jax.jit``. Imported only where JAX is measured."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Sequence
from typing import Any

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # the GPU is torch's as well

import jax
import jax.numpy as jnp
import torch
from jax import lax

from .timing import Run

#: A call of `training_step` makes several steps, which share its dispatch as in an epoch's scan.
_OPERATIONS = 10**10  # roughly, per call
_MOST_STEPS = 32
Params = list[tuple[jax.Array, jax.Array]]


def has_gpu() -> bool:
    """Whether JAX sees a GPU."""
    return jax.default_backend() == "gpu"


def _device(device: str) -> Any:
    return jax.devices("gpu" if device == "cuda" else "cpu")[0]


def _dtype(dtype: torch.dtype) -> Any:
    kinds = {torch.float32: jnp.float32, torch.bfloat16: jnp.bfloat16, torch.float16: jnp.float16}
    return kinds[dtype]


def _put(tensor: torch.Tensor, device: str) -> jax.Array:
    """The values of a tensor as a JAX array."""
    tensor = tensor.detach().cpu()
    if tensor.dtype == torch.bfloat16:
        return jax.device_put(tensor.float().numpy(), _device(device)).astype(jnp.bfloat16)
    return jax.device_put(tensor.numpy(), _device(device))


def _jit(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """``jax.jit`` with torch's float32 products: TF32 only where torch uses it too."""
    precision = "tensorfloat32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "highest"
    return jax.jit(jax.default_matmul_precision(precision)(function), **options)


def _params(widths: Sequence[int], device: str, dtype: Any = jnp.float32) -> Params:
    """torch's initial weights, so that all peers start alike."""
    layers = [torch.nn.Linear(k, n) for k, n in itertools.pairwise(widths)]
    pairs = ((_put(layer.weight, device), _put(layer.bias, device)) for layer in layers)
    return [(weight.astype(dtype), bias.astype(dtype)) for weight, bias in pairs]


def _forward(params: Params, x: jax.Array, dtype: Any) -> jax.Array:
    """Products in ``dtype``, parameters as they are: what autocast does."""
    x = x.astype(dtype)
    for i, (weight, bias) in enumerate(params):
        x = x @ weight.astype(dtype).T + bias.astype(dtype)
        if i < len(params) - 1:
            x = jax.nn.relu(x)
    return x


def _loss(logits: jax.Array, y: jax.Array) -> jax.Array:
    """Cross-entropy with labels, the squared error with anything else."""
    logits = logits.astype(jnp.float32)
    if not jnp.issubdtype(y.dtype, jnp.integer):
        return jnp.mean((logits - y) ** 2)
    picked = jnp.take_along_axis(logits, y[:, None], axis=1)[:, 0]
    return jnp.mean(jax.nn.logsumexp(logits, axis=1) - picked)


def _step(params: Params, x: jax.Array, y: jax.Array, lr: float, dtype: Any) -> tuple[Params, jax.Array]:
    value, grads = jax.value_and_grad(lambda p: _loss(_forward(p, x, dtype), y))(params)
    return jax.tree.map(lambda p, g: p - lr * g, params, grads), value


def _calls(function: Callable[..., Any], *arguments: Any) -> Run:
    """Calls of ``function`` on the same arguments; the first, made here, compiles it."""
    result = [function(*arguments)]

    def call() -> None:
        result[0] = function(*arguments)

    return Run(call, wait=lambda: jax.block_until_ready(result[0]), result=lambda: result[0])


def _loop(function: Callable[[Params], tuple[Params, Any]], params: Params, steps: int = 1) -> Run:
    """Calls of ``function`` on the parameters that it returned."""
    state = [*function(params)]

    def call() -> None:
        state[:] = function(state[0])

    return Run(call, steps=steps, wait=lambda: jax.block_until_ready(state[0]))


def linear_relu(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor, grad: torch.Tensor | None) -> Run:
    """relu(x wᵀ + b), and with ``grad`` the three gradients."""
    device = x.device.type
    operands = [_put(t, device) for t in (x, w, b)]

    def forward(x: jax.Array, w: jax.Array, b: jax.Array) -> jax.Array:
        return jax.nn.relu(x @ w.T + b)

    if grad is None:
        return _calls(_jit(forward), *operands)
    both = _jit(lambda grad, *operands: jax.vjp(forward, *operands)[1](grad))
    return _calls(both, _put(grad, device), *operands)


def cross_entropy(logits: torch.Tensor, target: torch.Tensor) -> Run:
    """Loss and gradient of the logits."""
    device = logits.device.type
    function = _jit(jax.value_and_grad(_loss))
    return _calls(function, _put(logits, device), _put(target.int(), device))


def inference(widths: Sequence[int], x: torch.Tensor) -> Run:
    """The forward pass, all in ``x``'s dtype."""
    device, dtype = x.device.type, _dtype(x.dtype)
    forward = _jit(lambda p, x: _forward(p, x, dtype))
    return _calls(forward, _params(widths, device, dtype), _put(x, device))


def gradients(widths: Sequence[int], x: torch.Tensor, grad: torch.Tensor) -> Run:
    """Forward, and from ``grad`` the gradients of parameters and input, all in ``x``'s dtype."""
    device, dtype = x.device.type, _dtype(x.dtype)
    both = _jit(lambda grad, p, x: jax.vjp(lambda p, x: _forward(p, x, dtype), p, x)[1](grad))
    return _calls(both, _put(grad, device), _params(widths, device, dtype), _put(x, device))


def training_step(
    widths: Sequence[int], x: torch.Tensor, y: torch.Tensor, lr: float, dtype: torch.dtype, operations: int
) -> Run:
    """SGD steps on one batch, several of them in a ``lax.scan``."""
    device, kind = x.device.type, _dtype(dtype)
    inputs, labels = _put(x, device), _put(y if y.is_floating_point() else y.int(), device)
    count = max(1, min(_MOST_STEPS, _OPERATIONS // operations))

    def steps(params: Params, inputs: jax.Array, labels: jax.Array) -> tuple[Params, jax.Array]:
        return lax.scan(lambda p, _: _step(p, inputs, labels, lr, kind), params, length=count)

    function = _jit(steps, donate_argnums=0)
    return _loop(lambda p: function(p, inputs, labels), _params(widths, device), count)


def epoch(
    widths: Sequence[int],
    images: torch.Tensor,
    labels: torch.Tensor,
    batch: int,
    lr: float,
    dtype: torch.dtype,
) -> Run:
    """An epoch in one call: a permutation, a ``lax.scan`` over the full batches, then the short one."""
    device, kind = images.device.type, _dtype(dtype)
    x, y = _put(images, device), _put(labels.int(), device)
    count, full = len(labels), len(labels) // batch

    def whole(params: Params, key: jax.Array, x: jax.Array, y: jax.Array) -> tuple[Params, Any]:
        key, draw = jax.random.split(key)
        order = jax.random.permutation(draw, count)

        def step(params: Params, rows: jax.Array) -> tuple[Params, jax.Array]:
            params, value = _step(params, x[rows].astype(jnp.float32) / 255, y[rows], lr, kind)
            return params, value * len(rows)

        params, losses = lax.scan(step, params, order[: full * batch].reshape(full, batch))
        total = losses.sum()
        if full * batch < count:
            params, last = step(params, order[full * batch :])
            total += last
        return params, (key, total / count)

    function = _jit(whole, donate_argnums=(0, 1))
    state = {"key": jax.device_put(jax.random.key(0), _device(device))}

    def one(params: Params) -> tuple[Params, float]:
        params, (state["key"], loss) = function(params, state["key"], x, y)
        return params, float(loss)  # the epoch's one read, as `fit`'s

    return _loop(one, _params(widths, device))
