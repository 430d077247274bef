"""The cross-entropy kernels against float64, and against torch's own op in float32, rounded once."""

from __future__ import annotations

import inspect
import math
import random
from dataclasses import dataclass, replace

import pytest
import torch
import triton.language as tl
from torch import Tensor

from fastmlp.kernels.launch import Launch, record_launches
from fastmlp.kernels.loss import cross_entropy as kernels
from tests.numerics import assert_as_good_as_torch
from tests.problems import DTYPES, SIZES, vector
from tests.references import cross_entropy

CLASSES = (1, 2, 3, 10, 16, 61, 257, 1000)
ONLINE = 5000  # more than one tile of classes
LAYOUTS = ("contiguous", "classes last", "sliced", "offset", "expanded")
INF = float("inf")


@dataclass(frozen=True)
class Problem:
    """Arguments of the loss: logits (N, C, D), target (N, D) indices or (N, C, D) probabilities."""

    logits: Tensor
    target: Tensor
    weight: Tensor | None = None
    reduction: str = "mean"
    ignore_index: int = -100
    label_smoothing: float = 0.0
    z_loss: float = 0.0

    def cast(self, dtype: torch.dtype) -> Problem:
        target = self.target.to(dtype) if self.target.is_floating_point() else self.target
        weight = None if self.weight is None else self.weight.to(dtype)
        return replace(self, logits=self.logits.to(dtype), target=target, weight=weight)


def logits_of(rng: random.Random, n: int, c: int, d: int, dtype: torch.dtype, device: str) -> Tensor:
    """Logits (n, c, d) laid out in every way."""
    layout = rng.choice(LAYOUTS)
    scale, offset = rng.choice([(1, 0), (4, 0), (30, 0), (1, 100)])

    def randn(*shape: int) -> Tensor:
        return (torch.randn(shape, device=device) * scale + offset).to(dtype)

    if layout == "classes last":
        return randn(n, d, c).transpose(1, 2)
    if layout == "sliced":
        return randn(2 * n, c + 3, 2 * d)[::2, 1 : c + 1, ::2]
    if layout == "offset":
        return randn(n * c * d + 1)[1:].view(n, c, d)
    if layout == "expanded":
        return randn(1, c, d).expand(n, c, d)
    return randn(n, c, d)


def draw(seed: int, classes: tuple[int, ...], dtype: torch.dtype, device: str) -> Problem:
    """A random problem: sizes, layout, and every argument of the loss."""
    rng = random.Random(f"{seed}{classes}{dtype}")
    torch.manual_seed(seed)
    c, d = rng.choice(classes), rng.choice([1, 1, 1, 2, 7, 12])
    n = rng.choice([size for size in SIZES if size * c * d <= 6_000] or [1, 2])
    ignore_index = rng.choice([-100, -100, 0, c - 1])
    if rng.random() < 0.3:
        target = torch.rand(n, d, c, device=device).softmax(2).transpose(1, 2).to(dtype)
        ignore_index = -100
    else:
        step = rng.choice([1, 2])
        target = torch.randint(c, (n, step * d), device=device)[:, ::step]
        if rng.random() < 0.5:
            target = torch.where(torch.rand(target.shape, device=device) < 0.3, ignore_index, target)
        if rng.random() < 0.2 and ignore_index >= 0 and c <= 256:
            target = target.to(torch.uint8)
    return Problem(
        logits_of(rng, n, c, d, dtype, device),
        target,
        vector(rng, c, dtype, device).abs() if rng.random() < 0.4 else None,
        rng.choice(["none", "mean", "sum"]),
        ignore_index,
        rng.choice([0.0, 0.0, 0.1, 1.0]),
        rng.choice([0.0, 0.0, 0.0, 1e-2]),
    )


def ours(problem: Problem, grad: Tensor | None) -> tuple[Tensor, Tensor]:
    """Loss and the logits' gradient by the kernels; ``grad`` by default that of a scalar 1."""
    p = problem
    options = {"reduction": p.reduction, "ignore_index": p.ignore_index, "label_smoothing": p.label_smoothing}
    loss, stats = kernels.forward(p.logits, p.target, p.weight, z_loss=p.z_loss, **options)
    grad = torch.ones_like(loss) if grad is None else grad
    dx = torch.empty(p.logits.shape, dtype=p.logits.dtype, device=p.logits.device)
    kernels.backward(grad, p.logits, p.target, p.weight, stats, dx, **options)
    return loss, dx


def torchs(problem: Problem, grad: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The same by torch's own ops in ``dtype``."""
    p = problem.cast(dtype)
    x = p.logits.detach().requires_grad_()
    target = p.target if p.target.is_floating_point() else p.target.long()  # of uint8, torch takes (N,) alone
    loss = cross_entropy(
        x,
        target,
        p.weight,
        z_loss=p.z_loss,
        ignore_index=p.ignore_index,
        reduction=p.reduction,
        label_smoothing=p.label_smoothing,
    )
    (dx,) = torch.autograd.grad(loss, x, torch.ones_like(loss) if grad is None else grad.to(dtype))
    return loss, dx


def check(problem: Problem, grad: Tensor | None = None, what: str = "") -> None:
    """Loss and gradient are never worse than twice torch's error in float32, rounded to the dtype once."""
    dtype = problem.logits.dtype
    exact = torchs(problem, grad, torch.float64)
    theirs = torchs(problem, grad, torch.float32)
    for name, a, b, c in zip(("loss", "gradient"), ours(problem, grad), theirs, exact):
        assert_as_good_as_torch(a, b.to(dtype), c, f"{name} {what} {tuple(problem.logits.shape)}")


def upstream(problem: Problem, seed: int) -> Tensor | None:
    """A gradient for each row, in every layout, or for the scalar."""
    if problem.reduction != "none":
        return None
    rows, like = (problem.logits.shape[0], problem.logits.shape[2]), problem.logits
    random_grad = torch.randn(rows, device=like.device).to(like.dtype)
    return [random_grad, random_grad.t().contiguous().t(), random_grad[:1, :1].expand(rows)][seed % 3]


@pytest.mark.few(6)
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("block", range(8))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_random_problem(dtype: torch.dtype, block: int, device: str) -> None:
    """3 x 8 x 12 = 288 problems: forward and backward, every argument, every layout."""
    for seed in range(12 * block, 12 * block + 12):
        problem = draw(seed, CLASSES, dtype, device)
        check(problem, upstream(problem, seed), f"seed {seed}")


@pytest.mark.few(4)
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("seed", range(12))
def test_random_online_problem(seed: int, device: str) -> None:
    """More classes than a tile: maximum, sum and weighted logits are carried over the tiles."""
    problem = draw(seed, (ONLINE,), DTYPES[seed % 3], device)
    check(problem, upstream(problem, seed), f"seed {seed}")


@pytest.mark.usefixtures("poisoned")
def test_every_size_of_a_batch(device: str) -> None:
    """One, primes, and the tail of an epoch, for the ten classes of the textbook."""
    for n in (*SIZES, 256, 257):
        x = torch.randn(n, 10, 1, device=device)
        check(Problem(x, torch.randint(10, (n, 1), device=device)), what=f"{n} rows")


@pytest.mark.few(8)
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("classes", "positions", "padding", "offset"),
    [
        *((1000, 1, 0, offset) for offset in (0, 1, 4)),
        *((1000, 1, padding, 0) for padding in (1, 2, 8)),
        *((classes, 1, 0, 0) for classes in (1004, 1002, 50257)),
        *((6, positions, 0, 0) for positions in (49, 50, 52, 56)),
        (6, 56, 0, 1),
        (6, 50, 6, 0),
    ],
)
def test_rows_of_every_alignment(
    dtype: torch.dtype, classes: int, positions: int, padding: int, offset: int, device: str
) -> None:
    """The kernels are compiled for what divides strides, sizes and addresses, and all of it is true."""
    width = (positions if positions > 1 else classes) + padding
    shape = (5, classes, width) if positions > 1 else (5, width, 1)
    memory = torch.randn(offset + math.prod(shape), device=device).to(dtype)
    x = memory[offset:].view(shape)[:, :classes, :positions]
    target = torch.randint(classes, (5, positions), device=device)
    check(Problem(x, target))
    check(Problem(x, x.float().softmax(1).to(dtype), torch.rand(classes, device=device).to(dtype), "none"))


@pytest.mark.deep
@pytest.mark.usefixtures("poisoned")
def test_the_largest_vocabulary(device: str) -> None:
    x = torch.randn(2, 262_144, 1, device=device)
    target = torch.tensor([[262_143], [17]], device=device)
    check(Problem(x, target))
    check(Problem(x.bfloat16(), target, label_smoothing=0.1))


@pytest.mark.parametrize("classes", [10, ONLINE])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("offset", [1e4, -1e4])
def test_offset_logits_lose_no_digits(classes: int, smoothing: float, offset: float, device: str) -> None:
    """One float for the log-sum-exp would be 5e-4 off here."""
    x = torch.randn(9, classes, 1, device=device) + offset
    target = torch.randint(classes, (9, 1), device=device)
    for reduction in ("none", "mean"):
        check(Problem(x, target, reduction=reduction, label_smoothing=smoothing))


@pytest.mark.parametrize("classes", [5, ONLINE])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_infinities_give_what_torch_gives(classes: int, smoothing: float, device: str) -> None:
    """-inf is a class that cannot be; +inf, NaN and rows of -inf alone are NaN. Loss and gradient."""
    x = torch.randn(9, classes, 1, device=device)
    target = torch.full((9, 1), 1, device=device)
    x[0, 0] = -INF  # impossible, and not the target
    x[1, 1] = -INF  # the target is impossible: the loss is inf
    x[2, 2] = INF
    x[3, 1] = INF
    x[4] = -INF
    x[5, 0] = float("nan")
    x[6, 1:] = -INF  # only class 0 can be
    x[7, : classes - 1] = -INF  # online: the maximum is -inf over whole tiles
    target[8] = -100
    problem = Problem(x, target, reduction="none", label_smoothing=smoothing)
    for got, expected in zip(ours(problem, None), torchs(problem, None, torch.float64)):
        torch.testing.assert_close(got.double(), expected, equal_nan=True, rtol=1e-5, atol=1e-6)


def test_huge_logits_do_not_overflow(device: str) -> None:
    x = torch.tensor([[3e38, -3e38], [-3e38, 0.0], [88.8, 0.0], [0.0, -104.0]], device=device)[:, :, None]
    for column in (0, 1):
        problem = Problem(x, torch.full((4, 1), column, device=device), reduction="none")
        for got, expected in zip(ours(problem, None), torchs(problem, None, torch.float32)):
            torch.testing.assert_close(got, expected, equal_nan=True)


@pytest.mark.parametrize("bad", [10, 11, 15, 16, 4096, 2**31, 2**40, -1, -99, -(2**40)])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_target_that_is_no_class(bad: int, smoothing: float, device: str) -> None:
    """That row's loss and gradient are NaN, those of the others are right, and nothing else is read."""
    x = torch.randn(5, 10, 1, device=device)
    target = torch.tensor([1, bad, 3, -100, 9], device=device)[:, None]
    weight = torch.rand(10, device=device)
    good = torch.tensor([0, 2, 3, 4], device=device)
    for w in (None, weight):
        problem = Problem(x, target, w, "none", label_smoothing=smoothing)
        loss, dx = ours(problem, None)
        assert loss[1].isnan().all()
        assert dx[1].isnan().all()
        rest = replace(problem, logits=x[good], target=target[good])
        for got, expected in zip((loss, dx), torchs(rest, None, torch.float32)):
            torch.testing.assert_close(got[good], expected)
        assert ours(replace(problem, reduction="mean"), None)[0].isnan()


def test_every_row_ignored(device: str) -> None:
    """The mean of nothing is NaN, and the gradient of nothing 0, as torch has it."""
    x, target = torch.randn(6, 10, 1, device=device), torch.full((6, 1), -100, device=device)
    for smoothing in (0.0, 0.1):
        for reduction in ("mean", "sum", "none"):
            problem = Problem(x, target, reduction=reduction, label_smoothing=smoothing)
            for got, expected in zip(ours(problem, None), torchs(problem, None, torch.float32)):
                torch.testing.assert_close(got, expected, equal_nan=True, msg=f"{reduction} {smoothing}")


def test_zero_upstream_gradient(device: str) -> None:
    problem = Problem(
        torch.randn(7, 10, 1, device=device), torch.zeros(7, 1, dtype=torch.long, device=device)
    )
    zero = torch.zeros((), device=device)
    assert torch.equal(ours(problem, zero)[1], torch.zeros_like(problem.logits))
    rows = torch.zeros(1, 1, device=device).expand(7, 1)
    assert torch.equal(ours(replace(problem, reduction="none"), rows)[1], torch.zeros_like(problem.logits))


def test_the_gradient_may_overwrite_the_logits(device: str) -> None:
    for classes in (10, ONLINE):
        x, target = torch.randn(9, classes, 1, device=device), torch.randint(classes, (9, 1), device=device)
        expected = ours(Problem(x, target), None)[1]
        options = {"reduction": "mean", "ignore_index": -100, "label_smoothing": 0.0}
        loss, stats = kernels.forward(x, target, None, z_loss=0.0, **options)
        kernels.backward(torch.ones_like(loss), x, target, None, stats, x, **options)
        assert torch.equal(x, expected)


def test_launches(device: str) -> None:
    """A batch of the textbook's job: one launch forward with the mean in it, one backward."""
    small = Problem(torch.randn(256, 10, 1, device=device), torch.randint(10, (256, 1), device=device))
    large = Problem(torch.randn(4000, 10, 1, device=device), torch.randint(10, (4000, 1), device=device))
    for problem, count in (
        (small, 2),
        (large, 3),
        (replace(large, reduction="none"), 2),
    ):
        with record_launches() as launches:
            ours(problem, None)
        assert len(launches) == count, [launch.name for launch in launches]


def test_runs_are_bitwise_repeatable(device: str) -> None:
    problem = Problem(
        torch.randn(3001, 10, 1, device=device), torch.randint(10, (3001, 1), device=device), z_loss=0.1
    )
    (loss, dx), (again, dx_again) = ours(problem, None), ours(problem, None)
    assert torch.equal(loss, again)
    assert torch.equal(dx, dx_again)


@pytest.mark.deep
def test_a_new_batch_size_compiles_nothing(device: str) -> None:
    """Constants, and what Triton specializes an integer on, are alike for every number of rows."""
    for classes in (10, 1000):
        kinds: dict[str, set[str]] = {}
        for n in (1, 16, 96, 97, 256, 300):
            target = torch.zeros(n, 1, dtype=torch.long, device=device)
            with record_launches() as launches:
                ours(Problem(torch.randn(n, classes, 1, device=device), target), None)
            for step in launches:
                kinds.setdefault(step.name, set()).add(str(specialization(step)))
        assert set(map(len, kinds.values())) == {1}, kinds


def specialization(step: Launch) -> list[object]:
    """What Triton compiles a kernel anew for."""
    free = {"num_rows", "rows_per_program", "count"}  # `do_not_specialize`, checked below
    source = inspect.getsource(kernels)
    assert all(f'"{name}"' in source for name in free)
    kinds = [kind(x) for name, x in zip(step.kernel.arg_names, step.args) if name not in free]
    return [kinds, sorted(step.options.items())]


def kind(argument: object) -> object:
    """What of an argument a kernel is compiled for."""
    if isinstance(argument, tuple):
        return [kind(member) for member in argument]
    if isinstance(argument, int):
        return argument == 1, argument % 16 == 0
    return argument.value if isinstance(argument, tl.constexpr) else type(argument).__name__
