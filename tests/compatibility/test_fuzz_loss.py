"""Cross-entropy, alone or with the layer before it, on whatever Hypothesis thinks of, against torch's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from fastmlp import backends, functional
from fastmlp.backends.base import LossOptions
from fastmlp.functional import Layer
from tests.fuzzing import ERRORS, LAYOUTS, SEEDS, fuzz, judge, sprinkle, tensor
from tests.references import cross_entropy as reference


@pytest.fixture(params=["torch", "triton", "auto"])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Also what runs by default; on a CPU small problems then go the ways of large ones."""
    monkeypatch.setattr("fastmlp.functional.loss._CPU_ELEMENTS", 1)
    monkeypatch.setattr("fastmlp.functional.loss._CPU_CLASSES", 11)
    monkeypatch.setattr("fastmlp.functional.loss._MANY_ROWS", 4)
    monkeypatch.setattr("fastmlp.functional.linear_loss._CPU_ELEMENTS", 1)
    monkeypatch.setattr("fastmlp.autograd.tile_sizes._LEAST", 0)
    with backends.use(request.param):
        yield request.param


class Case(NamedTuple):
    """A loss: what it is of, and its arguments."""

    rows: int = 3  # -1: logits of one dimension
    classes: int = 4
    more: tuple[int, ...] = ()
    layout: str = "contiguous"
    scale: float = 1.0
    special: str = "none"
    row: str = "usual"  # what one whole row is filled with
    target: str = "index"
    ignored: str = "none"
    weight: str = "none"
    reduction: str = "mean"
    smoothing: float = 0.0
    z_loss: float = 0.0
    upstream: float = 1.0
    seed: int = 0


ROWS = {
    "usual": None,
    "-inf": float("-inf"),
    "inf": float("inf"),
    "nan": float("nan"),
    "high": 1e4,
    "low": -1e4,
}
SPECIAL = st.sampled_from(["none"] * 3 + ["nan", "inf", "-inf", "both", "zeros", "denormal", "large"])

# No z_loss where nobody defines it: 0 / 0 plus z / 0, and what torch refuses without one.
CASES = st.builds(
    Case,
    rows=st.sampled_from([-1, 0, 1, 2, 3, 5, 9]),
    classes=st.sampled_from([1, 2, 3, 10, 17, 33, 512, 517]),
    more=st.sampled_from([(), (), (), (1,), (3,), (2, 3), (0,)]),
    layout=LAYOUTS,
    scale=st.sampled_from([1.0, 1.0, 30.0, 1e4]),
    special=SPECIAL,
    row=st.sampled_from(["usual"] * 3 + list(ROWS)),
    target=st.sampled_from(["index", "index", "uint8", "probabilities", "zeros", "one-hot"]),
    ignored=st.sampled_from(["none", "some", "all", "a class"]),
    weight=st.sampled_from(["none", "none", "some", "some zeros", "zeros"]),
    reduction=st.sampled_from(["mean", "sum", "none"]),
    smoothing=st.sampled_from([0.0, 0.0, 0.1, 1.0]),
    z_loss=st.sampled_from([0.0, 0.0, 0.01]),
    upstream=st.sampled_from([1.0, -0.5, 0.0, 3.0]),
    seed=SEEDS,
).map(lambda c: c._replace(z_loss=0.0) if "zero" in c.weight or c.target == "uint8" else c)


def targets(case: Case, shape: tuple[int, ...], dtype: torch.dtype, device: str) -> tuple[Tensor, int]:
    """The target of logits of this shape, and ignore_index."""
    rows = shape[:0] + shape[1:] if case.rows < 0 else (shape[0], *shape[2:])
    axis = 0 if case.rows < 0 else 1
    index = torch.randint(min(case.classes, 200), rows, device=device)
    if case.target == "one-hot":
        return F.one_hot(index, case.classes).movedim(-1, axis).to(dtype), -100
    if case.target in ("probabilities", "zeros"):
        p = torch.randn(shape, device=device).softmax(axis)
        return (p if case.target == "probabilities" else p * (p > p.mean())).to(dtype), -100
    if case.ignored == "a class":
        ignore = 0
    else:
        ignore = 255 if case.target == "uint8" else -100
        if case.ignored == "some":
            index[torch.rand(rows, device=device) < 0.5] = ignore
        elif case.ignored == "all":
            index.fill_(ignore)
    return index.to(torch.uint8 if case.target == "uint8" else torch.int64), ignore


def class_weights(case: Case, dtype: torch.dtype, device: str) -> Tensor | None:
    if case.weight == "none":
        return None
    weight = torch.rand(case.classes, device=device).to(dtype)
    if case.weight == "some zeros":
        weight[::2] = 0
    return weight if case.weight != "zeros" else weight.zero_()


def fill(logits: Tensor, case: Case) -> Tensor:
    """Some special values, and a row of them."""
    value = ROWS[case.row]
    if value is not None and logits.numel():
        (logits if case.rows < 0 else logits[0]).fill_(value)
    return sprinkle(logits, case.special)


def loss_and_gradients(loss: Tensor, inputs: list[Tensor | None], case: Case) -> list[Tensor | None]:
    torch.manual_seed(case.seed + 1)
    upstream = torch.full_like(loss, case.upstream)
    if loss.dim():
        upstream = upstream * torch.randint(3, loss.shape, device=loss.device)
    wanted = [t for t in inputs if t is not None]
    return [loss, *torch.autograd.grad(loss, wanted, upstream)]


def check_loss(case: Case, dtype: torch.dtype, device: str, equal: bool) -> None:
    torch.manual_seed(case.seed)
    shape = (case.classes,) if case.rows < 0 else (case.rows, case.classes, *case.more)
    scale = min(case.scale, 1e3) if dtype == torch.float16 else case.scale
    logits = fill(tensor(shape, case.layout, dtype, device, scale), case).requires_grad_()
    target, ignore = targets(case, shape, dtype, device)
    weight = class_weights(case, dtype, device)
    options = {
        "ignore_index": ignore,
        "reduction": case.reduction,
        "label_smoothing": case.smoothing,
        "z_loss": case.z_loss,
    }

    def ours(cast):
        return loss_and_gradients(functional.cross_entropy(logits, target, weight, **options), [logits], case)

    def theirs(cast):
        x = cast(logits)
        return loss_and_gradients(reference(x, cast(target), cast(weight), **options), [x], case)

    judge(ours, theirs, equal and case.z_loss == 0)


@pytest.mark.feature("Fuzzing", "cross-entropy: arguments, targets, layouts, special values")
@fuzz(15)
@given(case=CASES)
@example(case=Case(special="both", row="inf", ignored="all", reduction="sum"))  # NaN in an ignored row
@example(case=Case(5, 517, (3,), target="uint8"))  # which torch refuses in images
@example(case=Case(5, 2, target="uint8", weight="some", smoothing=0.1))  # and here
@example(case=Case(1, 3, smoothing=1.0, special="-inf", weight="some zeros", reduction="none"))  # 0 * inf
@example(case=Case(3, 3, ignored="a class", weight="zeros", smoothing=0.1))  # a mean over no weight
@example(case=Case(5, 17, weight="some", z_loss=0.01))  # the weight is the loss' alone
@example(case=Case(-1, 517, layout="expanded", smoothing=0.1, z_loss=0.01))  # to be rounded once
def test_cross_entropy(case: Case, backend: str, dtype: torch.dtype, device: str) -> None:
    check_loss(case, dtype, device, equal=backend == "torch" or dtype == torch.float64)


@pytest.mark.feature("Fuzzing", "cross-entropy: a target that is no class")
@fuzz(6)
@given(
    case=CASES.filter(lambda c: c.target == "index" and c.rows > 0 and c.more == () and c.smoothing < 1),
    wrong=st.sampled_from([-1, -101, 600, 10**12]),
)
def test_wrong_target(case: Case, wrong: int, backend: str, dtype: torch.dtype, device: str) -> None:
    """torch's error; by a kernel, which cannot raise, NaN."""
    torch.manual_seed(case.seed)
    logits = tensor((case.rows, case.classes), case.layout, dtype, device)
    target, ignore = targets(case, logits.shape, dtype, device)
    target[0] = wrong
    arguments = {"ignore_index": ignore, "reduction": case.reduction, "label_smoothing": case.smoothing}
    if device == "cuda" and dtype == torch.float64:
        pytest.skip("torch's own op on a GPU ends the process")
    if backend == "triton" and dtype != torch.float64:
        found = functional.cross_entropy(logits, target, **arguments)
        assert (found[0] if case.reduction == "none" else found).isnan()
        return
    with pytest.raises(ERRORS) as torchs:
        F.cross_entropy(logits, target, **arguments)
    with pytest.raises(torchs.type) as mine:
        functional.cross_entropy(logits, target, **arguments)
    assert str(mine.value) == str(torchs.value)


def check_linear_loss(case: Case, dtype: torch.dtype, device: str, equal: bool, head: bool) -> None:
    """``head``: as the last layer of a chain, else `linear_cross_entropy` with a bias and small tiles."""
    by_head = backends.requested() == "triton" and case.target in ("index", "uint8")
    if "zero" in case.weight and case.reduction == "mean" and by_head:
        # Weights that sum to 0: torch makes a NaN of every row that counts, the head of all that is summed.
        case = case._replace(weight="some")
    torch.manual_seed(case.seed)
    rows, features, classes = max(case.rows, 1), 5, case.classes
    x = tensor((rows, features), case.layout, dtype, device)
    w = tensor((classes, features), "contiguous", dtype, device, min(case.scale, 30.0))
    bias = tensor((classes,), "contiguous", dtype, device)
    sprinkle({"nan": x, "inf": bias, "-inf": bias}.get(case.special, w), case.special, 1)
    target, ignore = targets(case._replace(rows=rows), (rows, classes), dtype, device)
    weight = class_weights(case, dtype, device)
    inputs = [t.requires_grad_() for t in (x, w, bias)]
    options: dict[str, Any] = {"reduction": case.reduction, "label_smoothing": case.smoothing}

    def ours(cast):
        if head:
            how = LossOptions(ignore, **options, z_loss=case.z_loss)
            loss, _ = functional.chain_cross_entropy(x, [Layer(w, bias)], target, weight, how)
        else:
            ignoring = {} if target.is_floating_point() else {"ignore_index": ignore}
            loss = functional.linear_cross_entropy(
                x, w, target, linear_bias=bias, weight=weight, workspace=2000, **options, **ignoring
            )
        return loss_and_gradients(loss, inputs, case)

    def theirs(cast):
        leaves = [cast(t) for t in inputs]
        z = case.z_loss if head else 0.0
        loss = reference(
            F.linear(*leaves), cast(target), cast(weight), z_loss=z, ignore_index=ignore, **options
        )
        return loss_and_gradients(loss, leaves, case)

    judge(ours, theirs, equal and case.z_loss == 0, roundings=4)


@pytest.mark.feature("Fuzzing", "linear cross-entropy: arguments, targets, tiles, special values")
@fuzz(5)
@given(case=CASES)
@example(
    case=Case(3, 300, layout="transposed", ignored="a class", weight="zeros", smoothing=0.1)
)  # NaN, not inf
@example(case=Case(9, 300, ignored="some", weight="zeros", seed=65535))  # ignored rows have a gradient of 0
@example(
    case=Case(5, 517, scale=1e4, special="large", row="inf", upstream=3.0)
)  # a unit of its own overflows
@example(case=Case(9, 33, target="probabilities", scale=30.0, special="large", reduction="sum", upstream=0.0))
@example(case=Case(2, 17, ignored="all", special="-inf", reduction="none"))
def test_linear_cross_entropy(case: Case, backend: str, dtype: torch.dtype, device: str) -> None:
    check_linear_loss(case, dtype, device, backend == "torch", head=False)


@pytest.mark.feature("Fuzzing", "classifier head: arguments, targets, special values")
@fuzz(5)
@given(case=CASES)
@example(
    case=Case(3, 4, special="-inf", weight="some zeros", smoothing=0.1, reduction="sum")
)  # 0 * inf counts
def test_head(case: Case, backend: str, dtype: torch.dtype, device: str) -> None:
    check_linear_loss(case, dtype, device, backend == "torch", head=True)
