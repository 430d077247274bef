"""The cost of a model: what is counted, what is named as not counted, what is chosen and why."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fastmlp
from fastmlp.costs import plans
from fastmlp.modules.cost import Cost

_BF16 = torch.bfloat16


def relu_net(*widths: int) -> fastmlp.MLP:
    return fastmlp.MLP(widths[0], list(widths[1:]))


def total(cost: Cost, plan: str) -> tuple[int, ...]:
    work = cost.plans[plan].work
    return work.operations, work.bytes, work.launches, cost.plans[plan].kept


def test_widths_and_models_count_alike() -> None:
    widths = (32, 64, 64, 64, 4)
    layers = list(relu_net(*widths))
    ours = fastmlp.cost(widths, 4096, dtype=_BF16, device="h100")
    for model in (
        relu_net(*widths),
        nn.Sequential(*layers),
        nn.Sequential(nn.Flatten(), nn.Sequential(*layers[:3]), fastmlp.Sequential(*layers[3:])),
    ):
        found = fastmlp.cost(model, 4096, dtype=_BF16, device="h100")
        assert set(found.plans) == set(plans.PLANS)
        for plan in plans.PLANS:
            assert total(found, plan) == total(ours, plan)
            expected = plans.count(plan, plans.chain(widths), 4096, _BF16, 132)
            assert found.plans[plan] == expected
            assert found.seconds(plan) == expected.floor(found.device, "half")
        assert found.choices == ours.choices
        assert found.not_counted == ()


def test_the_issues_net() -> None:
    """Eight layers of width 64: one launch forward, at most three backward, and that is what is chosen."""
    found = fastmlp.cost((64,) * 9, 1 << 16, dtype=_BF16, device="h200")
    assert (len(found.plans["whole"].forward), len(found.plans["whole"].backward)) == (1, 3)
    (choice,) = found.choices
    assert (choice.chain, choice.plan) == ("64 (x 9)", "recompute")
    assert choice.why.startswith("floors: layers ")


def test_what_the_input_needs() -> None:
    net = relu_net(32, 64, 4)
    without, with_grad = (
        fastmlp.cost(net, 100, device="h200", input_grad=needed).plans["layers"].work.operations
        for needed in (False, True)
    )
    assert with_grad - without == 2 * 100 * 32 * 64


def test_a_dropout_is_part_of_a_layer_and_a_pass_of_eagers() -> None:
    net = nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Dropout(0.5), nn.Linear(30, 5))
    found = fastmlp.cost(net, 64, device="h200")
    names = [launch.name for launch in found.plans["layers"].launches]
    assert names == ["linear_act", "linear_act", "linear_backward", "linear_backward"]
    assert "whole" not in found.plans
    elements = 64 * 30
    passes = [one for one in found.plans["eager"].launches if one.name.startswith("dropout")]
    assert [one.bytes for one in passes] == [elements * (4 + 4 + 1)] * 2
    assert found.plans["layers"].work.operations == 2 * 64 * (2 * 20 * 30 + 3 * 30 * 5)
    net.eval()
    assert len(fastmlp.cost(net, 64, device="h200", training=False).choices) == 1


def test_what_is_not_counted_is_named() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = nn.Sequential(
                nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Softmax(1), nn.ReLU()
            )
            self.head = nn.Linear(16, 4)

    found = fastmlp.cost(Own(), 32, device="h200")
    # Behind a norm the width is known; behind what is not known it is not.
    assert found.not_counted == (
        "encoder.1 (BatchNorm1d)", "encoder.3 (Softmax)", "encoder.4 (ReLU)",
    )  # fmt: skip
    names = [launch.name for launch in found.plans["layers"].forward]
    assert names == ["linear_act", "relu", "addmm"]
    assert "not counted: encoder.3 (Softmax)" in str(found)


def test_a_linear_act_is_a_chain_of_one() -> None:
    found = fastmlp.cost(fastmlp.LinearAct(20, 30, activation="gelu"), 64, device="h200")
    assert [launch.name for launch in found.plans["layers"].launches] == ["linear_act", "linear_backward"]
    assert found.plans["layers"].kept == 4 * 64 * 30  # Z
    assert "one layer leaves nothing" in found.choices[0].why


def test_frozen_layers_go_by_layers() -> None:
    """As a call does, whose kernels a layer skip the gradients that nobody wants."""
    net = nn.Sequential(*(f for _ in range(8) for f in (nn.Linear(64, 64), nn.ReLU())))
    assert fastmlp.cost(net, 256, device="h200").choices[0].plan != "layers"
    net[0].weight.requires_grad_(False)
    assert fastmlp.cost(net, 256, device="h200").choices[0].why == "no gradients of frozen layers"
    assert fastmlp.cost(net, 256, device="h200", training=False).choices[0].plan == "whole"


def test_learned_slopes_are_counted() -> None:
    net = nn.Sequential(nn.Linear(20, 30), nn.PReLU(30), nn.Linear(30, 5))
    found = fastmlp.cost(net, 64, device="h200")
    layers = [plans.Dense(20, 30, act="prelu", keeps_z=True, slopes=30), plans.Dense(30, 5)]
    for plan in plans.PLANS:
        assert found.plans[plan] == plans.count(plan, layers, 64, torch.float32, 132)


def test_on_a_cpu_torchs_own_ops_run() -> None:
    found = fastmlp.cost((784, 256, 10), 256, device=torch.device("cpu"))
    assert set(found.plans) == {"eager"}
    assert found.choices[0].plan == "eager"
    assert found.seconds("eager") > 1e-4


def test_the_table() -> None:
    found = fastmlp.cost((784, 256, 10), 256, device="h200")
    lines = str(found).splitlines()
    assert lines[0] == "forward + backward, batch 256, float32 (ieee) on h200"
    assert lines[1].split("  ")[0] == "plan"
    assert len({len(line) for line in lines[1:4]}) == 1
    assert lines[2].split()[:4] == ["eager", "3", "+", "6"]
    assert "at most 64 in ieee products" in lines[4]
    assert "kept" not in str(fastmlp.cost((784, 256, 10), 256, training=False))


@pytest.mark.parametrize(
    ("arguments", "options", "error", "text"),
    [
        (((784, 10), 0), {}, ValueError, "batch: expected a positive number of rows, got 0"),
        (((784, 10), 2.5), {}, ValueError, "batch: .* got 2.5"),
        (((784,), 8), {}, ValueError, r"model: expected two positive widths at least, got \[784\]"),
        (((784, -1), 8), {}, ValueError, "model: expected two positive widths"),
        (("784", 8), {}, TypeError, "model: expected an nn.Module or a sequence of widths, got str"),
        (((8, 8), 8), {"dtype": torch.float64}, ValueError, "dtype: .* got torch.float64"),
        (((8, 8), 8), {"device": "h300"}, ValueError, "device: expected one of a100, .* got 'h300'"),
    ],
)
def test_errors_name_the_argument(arguments, options, error, text) -> None:
    with pytest.raises(error, match=text):
        fastmlp.cost(*arguments, **options)


def test_a_quantized_input_is_named() -> None:
    net = fastmlp.Sequential(fastmlp.Dequantize(1 / 255), nn.Flatten(), nn.Linear(16, 16), nn.Linear(16, 4))
    found = fastmlp.cost(net, 32, device="h200")
    assert found.not_counted == ("0 (Dequantize)",)
    (choice,) = found.choices
    assert choice.plan == "layers"
    assert "quantized" in choice.why
