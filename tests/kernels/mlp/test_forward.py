"""A whole network in one kernel forward and at most three backward, against float64 and torch's own ops."""

from __future__ import annotations

import itertools
import random

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fastmlp.activations import NAMES, TABLE, Act
from fastmlp.kernels.launch import record_launches
from fastmlp.kernels.mlp.backward import Gradients, mlp_backward
from fastmlp.kernels.mlp.forward import MAX_WIDTH, Net, mlp_forward
from tests.numerics import assert_as_good_as_torch
from tests.problems import DTYPES, SIZES, activation, matrix, vector

_OUTPUTS = [name for name in NAMES if name != "prelu"]


def draw(
    rng: random.Random, name: str, dtype: torch.dtype, device: str, widths: list[int] | None = None
) -> tuple[Tensor, Net, list[Act]]:
    """An input, a network of 2 to 6 layers, and the activation of each."""
    widths = widths or [rng.choice(SIZES) for _ in range(rng.randint(3, 7))]
    depth = len(widths) - 1
    x = matrix(rng, rng.choice(SIZES), widths[0], dtype, device)
    weights = [torch.randn(n, k, device=device).div(k**0.5).to(dtype) for k, n in itertools.pairwise(widths)]
    biases = [torch.randn(n, device=device).to(dtype) if rng.random() < 0.7 else None for n in widths[1:]]
    hidden = activation(rng, name, 1, dtype, device)
    slopes = [
        vector(rng, rng.choice([1, n]), dtype, device).contiguous() if name == "prelu" else None
        for n in widths[1:-1]
    ]
    out = activation(rng, rng.choice(_OUTPUTS), 1, dtype, device)
    net = Net(
        weights,
        biases,
        slopes,
        name,
        hidden.slope,
        out.name,
        out.slope,
        not hidden.saves_output,
        dtype,
        "ieee",
    )
    return x, net, [*(hidden._replace(weight=s) for s in slopes), out][:depth]


def reference(
    x: Tensor, net: Net, acts: list[Act], grad: Tensor, dtype: torch.dtype
) -> tuple[Tensor, list[Tensor]]:
    """Output and gradients by torch's ops in ``dtype``: input, then weight, bias and slopes of each layer."""

    def leaf(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor.detach().to(dtype).requires_grad_()

    h = first = leaf(x)
    leaves = [first]
    for weight, bias, act in zip(net.weights, net.biases, acts):
        parameters = [leaf(weight), leaf(bias), leaf(act.weight)]
        h = act._replace(weight=parameters[2])(F.linear(h, *parameters[:2]))
        leaves += [t for t in parameters if t is not None]
    return h, list(torch.autograd.grad(h, leaves, grad.to(dtype)))


def in_order(found: Gradients, net: Net) -> list[Tensor]:
    """Ours in the reference's order."""
    grads: list[Tensor] = [found.input]  # type: ignore[list-item]
    for i, ((of_weight, of_bias), start) in enumerate(zip(found.layers(net.widths), net.offsets)):
        grads += [of_weight] if net.biases[i] is None else [of_weight, of_bias]
        slope = net.slope_weights[i] if i < len(net.slope_weights) else None
        if slope is not None:
            assert found.slopes is not None
            total = found.slopes[start : start + len(of_bias)]
            grads.append((total.sum().view(1) if slope.numel() == 1 else total).to(slope.dtype))
    return grads


def check(x: Tensor, net: Net, acts: list[Act], recompute: bool, what: str) -> None:
    grad = torch.randn(len(x), net.widths[-1], device=x.device).to(x.dtype)
    keeps = not acts[-1].saves_output
    y, saved, z = mlp_forward(x, net, save=not recompute, keep_z=keeps)
    out_saved = None if net.out_act == "none" else (z if keeps else y)
    found = mlp_backward(grad, x, net, saved, out_saved, need_input=True, need_params=True)
    theirs, their_grads = reference(x, net, acts, grad, x.dtype)
    exact, exact_grads = reference(x, net, acts, grad, torch.float64)
    roundings = 2 * len(net.weights)
    assert_as_good_as_torch(y, theirs, exact, f"y {what}", roundings=roundings)
    for i, (a, b, c) in enumerate(zip(in_order(found, net), their_grads, exact_grads, strict=True)):
        assert_as_good_as_torch(a, b, c, f"gradient {i} {what}", roundings=roundings)


@pytest.mark.few(9)
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_random_network(name: str, dtype: torch.dtype, seed: int, device: str) -> None:
    """54 networks: output and every gradient, kept or recomputed."""
    rng = random.Random(f"{name}{dtype}{seed}")
    x, net, acts = draw(rng, name, dtype, device)
    check(x, net, acts, rng.random() < 0.4, f"{name} {net.widths} {net.out_act} seed {seed}")


@pytest.mark.few(3)
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize(
    "widths",
    [(300, 256, 250, 3), (2, 256, 1), (7, 129, 256, 300), (1, 1, 1), (16, *[64] * 7, 3), (3, *[20] * 31, 2)],
    ids=str,
)
def test_widths_and_depths(widths: tuple[int, ...], device: str) -> None:
    """The widest hidden layers, inputs and outputs beyond a block, single features, 32 layers."""
    rng = random.Random(str(widths))
    x, net, acts = draw(rng, "tanh", torch.float32, device, list(widths))
    check(x[:40], net, acts, len(widths) % 2 == 0, str(widths))


@pytest.mark.deep
def test_an_eight_layer_net_is_one_launch_and_at_most_three(device: str) -> None:
    """Width 64: 1 forward; 2 backward, and 3 where a long batch is split."""
    x, net, _ = draw(random.Random(0), "relu", torch.float32, device, [16, *[64] * 7, 4])
    for rows, backward in ((40, 2), (1030, 3)):
        x = torch.randn(rows, 16, device=device)
        with record_launches() as launches:
            _, saved, _ = mlp_forward(x, net, save=True, keep_z=False)
        assert [one.name for one in launches] == ["mlp_forward_kernel"]
        grad = torch.randn(rows, 4, device=device)
        with record_launches() as launches:
            mlp_backward(grad, x, net, saved, None if net.out_act == "none" else grad, need_input=True,
                         need_params=True)  # fmt: skip
        assert len(launches) == backward, [one.name for one in launches]


@pytest.mark.few(1)
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("name", ["gelu", "prelu"])
def test_a_long_batch_is_split_in_a_fixed_order(name: str, device: str) -> None:
    """1030 rows, a ragged last split: right, and the same bits twice."""
    rng = random.Random(name)
    _, net, acts = draw(rng, name, torch.float32, device, [5, 20, 30, 3])
    x = torch.randn(1030, 5, device=device)
    check(x, net, acts, False, name)
    grad, out = torch.randn(1030, 3, device=device), torch.rand(1030, 3, device=device)
    runs = [mlp_backward(grad, x, net, None, out, need_input=True, need_params=True) for _ in range(2)]
    for a, b in zip(*(in_order(run, net) for run in runs)):
        assert torch.equal(a, b)


def test_stride_0_input_and_gradient(device: str) -> None:
    _, net, acts = draw(random.Random(3), "silu", torch.float32, device, [6, 17, 17, 4])
    x = torch.randn(1, 6, device=device).expand(50, 6)
    keeps = not acts[-1].saves_output
    y, saved, z = mlp_forward(x, net, save=True, keep_z=keeps)
    grad = torch.ones((), device=device).expand(50, 4)
    out_saved = None if net.out_act == "none" else (z if keeps else y)
    found = mlp_backward(grad, x, net, saved, out_saved, need_input=True, need_params=True)
    exact, exact_grads = reference(x, net, acts, grad, torch.float64)
    torch.testing.assert_close(y.double(), exact, rtol=1e-5, atol=1e-6)
    for a, b in zip(in_order(found, net), exact_grads):
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-5)


def test_infinities_stay_in_their_row(device: str) -> None:
    x, net, acts = draw(random.Random(1), "relu", torch.float32, device, [8, 20, 20, 5])
    x = torch.randn(33, 8, device=device)
    x[7, 3] = float("inf")
    net = net._replace(biases=[None] * 3)
    y, _, _ = mlp_forward(x, net, save=False, keep_z=False)
    theirs, _ = reference(x, net, acts, torch.zeros_like(y), torch.float32)
    torch.testing.assert_close(y, theirs.detach(), equal_nan=True, rtol=1e-5, atol=1e-5)
    assert torch.isfinite(y[:7]).all()
    assert torch.isfinite(y[8:]).all()


def test_inference_writes_the_output_alone(device: str) -> None:
    x, net, _ = draw(random.Random(2), "gelu", torch.float32, device, [8, MAX_WIDTH, 3])
    with record_launches() as launches:
        y, saved, z = mlp_forward(x, net, save=False, keep_z=False)
    assert saved is None
    assert z is None
    written = [a for a in launches[0].args if isinstance(a, Tensor) and a.data_ptr() == y.data_ptr()]
    assert len(written) == 1


def test_what_needs_no_gradient_is_not_computed(device: str) -> None:
    x, net, _ = draw(random.Random(4), "relu", torch.float32, device, [8, 20, 20, 5])
    grad = torch.randn(len(x), 5, device=device)
    net = net._replace(out_act="none")
    with record_launches() as launches:
        found = mlp_backward(grad, x, net, None, None, need_input=True, need_params=False)
    assert len(launches) == 1
    assert found.input is not None
    assert found.params is None
    found = mlp_backward(grad, x, net, None, None, need_input=False, need_params=True)
    assert found.input is None
    assert len(found.layers(net.widths)) == 3


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan"), 1e30, -1e30, 0.0])
@pytest.mark.parametrize("name", _OUTPUTS)
def test_special_values(name: str, value: float, device: str) -> None:
    """As torch's, through a hidden and an output activation."""
    one = torch.ones(1, 1, device=device)
    act = Act(TABLE[name], 0.1 if name == "leaky_relu" else 0.0)
    net = Net(
        [one, one], [None, None], [None], name, act.slope, name, act.slope, False, torch.float32, "ieee"
    )
    y, _, _ = mlp_forward(value * one, net, save=False, keep_z=False)
    torch.testing.assert_close(y, act(act(value * one)), equal_nan=True, rtol=1e-6, atol=1e-37)
