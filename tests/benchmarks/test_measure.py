"""A row: who ran, who did not and why, and what is ours to answer for."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from benchmarks import cases, epochs, peers, whole_net
from benchmarks.cases import Case
from benchmarks.measure import Effort, Row, measure
from benchmarks.peers import EAGER, OURS, Factory, MissingPeerError
from benchmarks.timing import Run
from fastmlp.costs.floors import Work
from fastmlp.data import synthetic
from tests.benchmarks.stored import CEILINGS


def _fails(error: Exception) -> Factory:
    def factory() -> Run:
        raise error

    return factory


def _row(**found: Factory) -> Row:
    named = {{"ours": OURS}.get(name, name): factory for name, factory in found.items()}
    case = Case("work", "small", torch.float32, Work(1, 1, 1, 1), lambda device: named)
    return measure(case, "cpu", CEILINGS, Effort(rounds=3, seconds=0.1))


def _works() -> Run:
    return Run(lambda: None)


def test_a_missing_peer_is_named_with_its_reason() -> None:
    row = _row(
        ours=_works,
        packaged=_fails(MissingPeerError("needs a GPU")),
        broken=_fails(RuntimeError("no C++\nx")),
    )
    assert set(row["seconds"]) == {OURS}
    assert row["missing"] == {"packaged": "needs a GPU", "broken": "RuntimeError: no C++"}
    assert "error" not in row


def test_a_peer_that_fails_when_called_is_missing() -> None:
    row = _row(ours=_works, late=lambda: Run(lambda: 1 / 0))
    assert row["missing"] == {"late": "ZeroDivisionError: division by zero"}


@pytest.mark.parametrize(
    ("value", "wrong"),
    [
        (1.0, None),
        (1.01, "wrong: result 0 is off by 1.00e-02"),
        (float("nan"), "wrong: result 0 is off by inf"),
    ],
)
def test_a_wrong_result_has_no_time(value: float, wrong: str | None) -> None:
    """None of ours: it would be the time of something else."""

    def gives(value: float, dtype: torch.dtype = torch.float32) -> Factory:
        return lambda: Run(lambda: torch.tensor([value, 0.0], dtype=dtype))

    named = {
        OURS: gives(value), peers.OURS_GRAPH: gives(value), EAGER: gives(1.0),
        peers.EXACT: gives(1.0, torch.float64),
    }  # fmt: skip
    case = Case("work", "small", torch.float32, Work(1, 1, 1, 1), lambda device: dict(named), roundings=4)
    row = measure(case, "cpu", CEILINGS, Effort(rounds=3, seconds=0.1, verify=True))
    assert (wrong or "") in row.get("error", "")
    assert ("error" in row) == (wrong is not None)
    assert set(row["seconds"]) == ({EAGER} if wrong else {OURS, peers.OURS_GRAPH, EAGER})


def test_every_headline_is_compared_with_float64() -> None:
    """Each kind of case at a small size, on a CPU: what is compared is what is computed."""
    bf16, fp32 = torch.bfloat16, torch.float32
    for case in (
        cases.training_step((12, 16, 5), 7, fp32),
        cases.training_step((12, 16, 1), 7, fp32, regression=True),
        cases.inference((12, 16, 5), 7, bf16),
        cases.cross_entropy(9, 30, bf16),
        cases.linear_cross_entropy(9, 8, 30, bf16),
        cases.linear_relu((9, 8, 7), bf16, backward=False),
        cases.linear_relu((9, 8, 7), fp32, backward=True),
        whole_net.mlp((5, 16, 16, 3), 40, fp32, training=True),
        whole_net.mlp((5, 16, 16, 3), 40, fp32, training=False),
    ):
        without = set(case.on("cpu")) - {OURS, EAGER, peers.EXACT}
        row = measure(case, "cpu", CEILINGS, Effort(rounds=3, seconds=0.01, without=without, verify=True))
        assert "error" not in row, row
        assert 0 <= row["worst"]["error"] <= row["worst"]["allowed"] < 0.1, row["key"]


def test_ours_that_fails_is_an_error_and_the_peers_are_timed() -> None:
    row = _row(ours=_fails(RuntimeError("broken")), other=_works)
    assert row["error"] == "fastmlp: RuntimeError: broken"
    assert set(row["seconds"]) == {"other"}


def test_inputs_that_cannot_be_made_are_an_error() -> None:
    def build(device: str) -> dict[str, Factory]:
        raise MemoryError

    case = Case("work", "large", torch.float32, Work(1, 1, 1, 1), build)
    assert measure(case, "cpu", CEILINGS, Effort())["error"] == "MemoryError"


def test_cases_cover_the_issue() -> None:
    groups = {case.group for case in cases.cases("cpu")}
    assert groups == {
        cases.STEP, cases.REGRESSION, cases.INFERENCE, cases.CROSS_ENTROPY, cases.HEAD, cases.LINEAR,
        cases.LINEAR_BACKWARD,
    }  # fmt: skip
    names = [str(case) for device in ("cpu", "cuda") for case in cases.cases(device)]
    assert "linear + bias + ReLU forward, 8192 x 8192 -> 8192, bfloat16" in names
    assert "cross-entropy forward + backward, 4096 x 128256, bfloat16" in names
    assert len(set(names[: len(list(cases.cases("cpu")))])) == len(list(cases.cases("cpu")))


@pytest.mark.few(4)
@pytest.mark.parametrize(
    "make",
    [
        lambda: cases.training_step((6, 5, 4), 8, torch.float32),
        lambda: cases.training_step((6, 5, 4), 8, torch.bfloat16),
        lambda: cases.training_step((6, 5, 4), 8, torch.float32, regression=True),
        lambda: cases.inference((6, 5, 4), 8, torch.float32),
        lambda: cases.cross_entropy(8, 5, torch.float32),
        lambda: cases.linear_cross_entropy(8, 6, 5, torch.float32),
        lambda: cases.linear_relu((8, 6, 5), torch.float32, backward=False),
        lambda: cases.linear_relu((8, 6, 5), torch.float32, backward=True),
        lambda: next(epochs.cases(synthetic(train=300, test=10)[0], "cpu", None)),
        lambda: whole_net.mlp((5, 16, 16, 3), 40, torch.float32, training=False),
        lambda: whole_net.mlp((5, 16, 16, 3), 40, torch.float32, training=True),
        lambda: whole_net.dropout((40, 6, 5), torch.float32),
    ],
)
def test_every_peer_runs_or_says_why_not(make: Callable[[], Case]) -> None:
    """All but the compiled ones, which take too long for a test."""
    row = measure(make(), "cpu", CEILINGS, Effort(rounds=3, seconds=0.05, without=tuple(peers.MODES)))
    assert "error" not in row
    assert {OURS, EAGER} <= set(row["seconds"])
    assert row["floor"] > 0
    allowed = ("needs a GPU", "left out", "cannot be imported", "has none")
    for peer, why in row["missing"].items():
        assert any(text in why for text in allowed), (peer, why)


@pytest.mark.parametrize(
    "make",
    [
        lambda: cases.training_step((6, 5, 4), 8, torch.bfloat16, key=True),
        lambda: cases.inference((6, 5, 4), 8, torch.float32, key=True),
    ],
)
def test_our_modules_compile_into_one_graph(
    make: Callable[[], Case], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a peer they are compiled with fullgraph; here by no C++ compiler."""
    compiled = []

    def compile(function: Callable[..., object], **options: object) -> Callable[..., object]:
        compiled.append(options["fullgraph"])
        return original(function, backend="eager", **options)

    original = torch.compile
    monkeypatch.setattr(torch, "compile", compile)
    run = make().on("cpu")[peers.OURS_COMPILED]()
    run.call()
    assert compiled[0] is True


@pytest.mark.deep
def test_peers_train_alike() -> None:
    """Ours, eager and JAX take the same steps from the same weights."""
    jax = pytest.importorskip("jax", reason="JAX is no requirement")
    from benchmarks import jax_peer

    widths, lr = (6, 5, 4), 0.5
    x, y = torch.rand(8, 6), torch.randint(4, (8,))
    torch.manual_seed(0)
    model = cases.net(widths)
    step = cases.eager_step(
        model,
        torch.nn.CrossEntropyLoss(),
        torch.optim.SGD(model.parameters(), lr),
        torch.float32,
        lambda f: f,
    )
    torch.manual_seed(0)
    params = jax_peer._params(widths, "cpu")
    for _ in range(3):
        ours = step(x, y).item()
        params, theirs = jax_peer._step(params, x.numpy(), y.int().numpy(), lr, jax.numpy.float32)
        assert float(theirs) == pytest.approx(ours, rel=1e-5)


def test_a_jax_without_gpu_is_no_peer_on_one() -> None:
    if torch.cuda.is_available():
        pytest.skip("there may be one here")
    with pytest.raises(MissingPeerError, match=r"no GPU|cannot be imported"):
        peers.jax_peer("cuda")
