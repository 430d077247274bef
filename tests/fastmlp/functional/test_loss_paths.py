"""What a loss means does not depend on the path that its size and its backend choose."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import FrameType
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from fastmlp import backends
from fastmlp.functional import cross_entropy, linear_cross_entropy, mse_loss
from fastmlp.kernels.launch import record_launches
from tests import references

CLASSES, K = 300, 4


class Path(NamedTuple):
    """A loss, torch's own, and arguments that take one of the paths."""

    ours: Callable[..., Tensor]
    torchs: Callable[..., Tensor]
    shape: tuple[int, int]
    backend: str = "auto"

    @property
    def classes(self) -> int:
        return CLASSES if self.ours is linear_cross_entropy else self.shape[1]

    def inputs(self, device: str = "cpu") -> list[Tensor]:
        """What has gradients, and last the target."""
        x = torch.randn(self.shape, device=device, requires_grad=True)
        if self.ours is mse_loss:
            return [x, torch.randn(self.shape, device=device)]
        target = torch.randint(self.classes, self.shape[:1], device=device)
        if self.ours is cross_entropy:
            return [x, target]
        return [x, torch.randn(CLASSES, K, device=device, requires_grad=True), target]


PATHS = {
    "small": Path(cross_entropy, F.cross_entropy, (256, 10)),
    "tall": Path(cross_entropy, F.cross_entropy, (1030, 10)),
    "large": Path(cross_entropy, F.cross_entropy, (20, 600)),
    "kernels": Path(cross_entropy, F.cross_entropy, (33, 10), "triton"),
    "linear, in tiles": Path(linear_cross_entropy, references.linear_cross_entropy, (30, K)),
    "linear, kernels": Path(linear_cross_entropy, references.linear_cross_entropy, (30, K), "triton"),
    "squared error": Path(mse_loss, F.mse_loss, (33, 5)),
    "squared error, kernels": Path(mse_loss, F.mse_loss, (33, 5), "triton"),
}
OF_CLASSES = [name for name in PATHS if "squared" not in name]


@pytest.fixture(autouse=True)
def _low_thresholds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastmlp.functional.loss._CPU_ELEMENTS", 20 * 600)
    monkeypatch.setattr("fastmlp.functional.linear_loss._CPU_ELEMENTS", 1)


@pytest.fixture
def path(request: pytest.FixtureRequest) -> Iterator[Path]:
    one = PATHS[request.param]
    with backends.use(one.backend):
        yield one


every_path = pytest.mark.parametrize("path", PATHS, indirect=True)
every_path_of_classes = pytest.mark.parametrize("path", OF_CLASSES, indirect=True)


@every_path_of_classes
@pytest.mark.parametrize("shape", ["(1, C)", "(C, 1)", "()", "(2, C // 2)", "(C - 1,)", "(C + 1,)"])
def test_a_weight_that_does_not_fit_raises_what_torch_raises(path: Path, shape: str, device: str) -> None:
    weight = torch.ones(eval(shape, {"C": path.classes}), device=device)
    inputs = path.inputs(device)
    with pytest.raises(Exception) as theirs:  # noqa: PT011
        path.torchs(*inputs, weight=weight)
    with pytest.raises(theirs.type, match="weight"):
        path.ours(*inputs, weight=weight)


@every_path_of_classes
@pytest.mark.parametrize("weighted", [False, True])
def test_a_target_that_is_no_class(
    path: Path, weighted: bool, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a CPU it raises, as torch's; the kernels make a NaN of it, and raise where they are to look."""
    *inputs, target = path.inputs(device)
    weight = torch.ones(path.classes, device=device) if weighted else None
    for wrong in (path.classes, -1):
        target[1], target[2] = wrong, -100
        if path.backend == "triton":
            loss = path.ours(*inputs, target, weight=weight, reduction="none")
            assert loss[:3].isnan().tolist() == [False, True, False]
            assert path.ours(*inputs, target, weight=weight).isnan()
            monkeypatch.setenv("FASTMLP_DEBUG", "1")
        with pytest.raises(IndexError, match=f"{wrong} is out of bounds"):
            path.ours(*inputs, target, weight=weight)
        monkeypatch.delenv("FASTMLP_DEBUG", raising=False)
    target[1] = 0
    assert path.ours(*inputs, target, weight=weight).isfinite()


@every_path_of_classes
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_all_rows_ignored(path: Path, dtype: torch.dtype, device: str) -> None:
    """The mean is NaN, its gradients 0."""
    *inputs, target = path.inputs(device)
    inputs = [t.detach().to(dtype).requires_grad_() for t in inputs]
    loss = path.ours(*inputs, target.fill_(7), ignore_index=7)
    assert loss.isnan()
    for grad in torch.autograd.grad(loss, inputs):
        assert torch.equal(grad, torch.zeros_like(grad))


@every_path_of_classes
def test_gradients_of_weight_and_probabilities_are_torchs(path: Path, device: str) -> None:
    """No kernel computes them: torch's own op does, which has none of a weight for class indices."""
    *inputs, target = path.inputs(device)
    soft = torch.rand(len(target), path.classes, device=device, requires_grad=True)
    weight = torch.rand(path.classes, device=device, requires_grad=True)
    ours, theirs = (
        torch.autograd.grad(function(*inputs, soft, weight=weight), (*inputs, soft, weight))
        for function in (path.ours, path.torchs)
    )
    torch.testing.assert_close(ours, theirs)
    with pytest.raises(RuntimeError, match="weight"):
        path.ours(*inputs, target, weight=weight)


@pytest.mark.parametrize("target", [0, -100])
def test_no_classes_are_torchs(target: int) -> None:
    inputs = torch.randn(1030, 0), torch.full((1030,), target)
    if target:
        assert cross_entropy(*inputs).isnan()
        return
    with pytest.raises(IndexError):
        cross_entropy(*inputs)


class Seen(TorchFunctionMode):
    """Notes what is called."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, list[Any]]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        shapes = [a.shape for a in args if isinstance(a, Tensor)]
        self.calls.append((getattr(func, "__name__", ""), shapes))
        return func(*args, **(kwargs or {}))


@every_path
def test_a_mode_sees_torchs_call(path: Path, device: str) -> None:
    """And of what shapes; but a mode of devices is none that losses mind."""
    inputs = path.inputs(device)
    found = []
    for function in (path.ours, path.torchs):
        with Seen() as seen, record_launches() as launches:
            function(*inputs)
        assert not launches
        found.append([call for call in seen.calls if call[0] in ("cross_entropy", "mse_loss", "linear")])
    assert found[0] == found[1] != []
    with torch.device(device), record_launches() as launches:
        path.ours(*inputs)
    assert bool(launches) == (path.backend == "triton")


class Sub(Tensor):
    """A type of its own."""


class Mine(Tensor):
    """Decides what a loss of it is."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (F.cross_entropy, F.mse_loss):
            return "mine"
        return super().__torch_function__(func, types, args, kwargs or {})


@every_path
def test_a_subclass_decides(path: Path, device: str) -> None:
    """In the place of each argument, and with its type as the result's."""
    inputs = path.inputs(device)
    for place in range(len(inputs)):
        for kind in (Sub, Mine):
            given = list(inputs)
            given[place] = (
                inputs[place].detach().as_subclass(kind).requires_grad_(inputs[place].requires_grad)
            )
            assert type(path.ours(*given)) is (Sub if kind is Sub else str), place


@every_path
def test_a_constant_changed_in_place(path: Path, device: str) -> None:
    *inputs, target = path.inputs(device)
    weight = None if path.ours is mse_loss else torch.rand(path.classes, device=device)
    for constant in [target] if weight is None else [target, weight]:
        loss = path.ours(*inputs, target, weight=weight)
        constant.zero_()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


@pytest.mark.parametrize("path", [n for n in OF_CLASSES if n not in ("small", "tall")], indirect=True)
def test_constants_with_other_data(path: Path, device: str) -> None:
    """The gradients are by what the forward was given, first and second; torch's own mix old and new."""
    weight = torch.rand(path.classes, device=device) + 0.1
    inputs = path.inputs(device)
    found = []
    for exchanged in (False, True):
        constants = weight.clone(), inputs[-1].clone()
        loss = path.ours(*inputs[:-1], constants[1], weight=constants[0])
        if exchanged:
            constants[0].data, constants[1].data = -weight, torch.zeros_like(constants[1])
        for _ in range(2):
            found.append(torch.autograd.grad(loss, inputs[:-1], retain_graph=True))
    for grads in found[1:]:
        for grad, expected in zip(grads, found[0]):
            torch.testing.assert_close(grad, expected)


@pytest.mark.parametrize("path", ["small", "tall", "large", "kernels"], indirect=True)
def test_logits_written_over(path: Path, device: str) -> None:
    """torch's op keeps their log-softmax; the kernels keep them alone, and never go on with others.

    Nor does a second backward of the passes on a CPU, whose first has handed out the gradient.
    """
    x, target = path.inputs(device)
    expected = torch.autograd.grad(F.cross_entropy(x, target), x)[0]
    logits = x * 1
    loss = cross_entropy(logits, target)
    logits.detach().zero_()
    if path.backend == "triton":
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()
        return
    torch.testing.assert_close(torch.autograd.grad(loss, x, retain_graph=True)[0], expected)
    if path.shape == PATHS["large"].shape:
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            torch.autograd.grad(loss, x)


def switches(frame: FrameType, event: str, arg: Any) -> Any:
    """A trace that lets another thread run between any two steps of a backward of ours."""
    if event == "opcode":
        time.sleep(1e-5)
    elif frame.f_code.co_name != "backward" or "fastmlp" not in frame.f_code.co_filename:
        return None
    frame.f_trace_opcodes = True
    return switches


@pytest.mark.parametrize("path", ["large", "linear, in tiles"], indirect=True)
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_threads_share_a_graph(path: Path, reduction: str) -> None:
    """Who comes first takes the gradient that the forward made, and scales it for itself alone."""
    *leaves, target = path.inputs()
    expected = torch.autograd.grad(path.torchs(*leaves, target, reduction=reduction).sum(), leaves)

    def backward(factor: int) -> tuple[Tensor, ...]:
        return torch.autograd.grad(loss, leaves, torch.full_like(loss, factor), retain_graph=True)

    threading.settrace(switches)
    try:
        for _ in range(5):
            loss = path.ours(*leaves, target, reduction=reduction)
            with ThreadPoolExecutor(4) as pool:
                found = list(pool.map(backward, range(2, 6)))
            for factor, grads in enumerate(found, start=2):
                for a, b in zip(grads, expected):
                    torch.testing.assert_close(a, b * factor, rtol=1e-4, atol=1e-5)
    finally:
        threading.settrace(None)  # type: ignore[arg-type]


def test_threads_do_not_share_room(device: str) -> None:
    """With ``inplace`` one backward has the logits' memory, and any other raises."""
    x, target = torch.randn(33, 10, device=device, requires_grad=True), torch.arange(33, device=device) % 10
    expected = torch.autograd.grad(F.cross_entropy(x, target), x)[0]

    def backward(_: int) -> Tensor | None:
        try:
            return torch.autograd.grad(loss, x, retain_graph=True)[0]
        except RuntimeError as error:
            assert "modified by an inplace operation" in str(error)  # noqa: PT017
            return None

    threading.settrace(switches)
    try:
        for _ in range(5):
            with backends.use("triton"), ThreadPoolExecutor(3) as pool:
                loss = cross_entropy(x * 1, target, inplace=True)
                (found,) = (grad for grad in pool.map(backward, range(3)) if grad is not None)
            torch.testing.assert_close(found, expected)
    finally:
        threading.settrace(None)  # type: ignore[arg-type]


@pytest.mark.parametrize("path", ["small", "tall", "large", "kernels"], indirect=True)
def test_autocast_within_a_transform(path: Path) -> None:
    """There torch's cross-entropy stays in bfloat16, where autocast alone would make float32 of it."""
    x, target = (t.detach() for t in path.inputs())
    rows = torch.stack([x, -x]).bfloat16()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        ours, torchs = (
            torch.func.vmap(lambda x, loss=loss: loss(x, target))(rows) for loss in (path.ours, path.torchs)
        )
    assert ours.dtype == torchs.dtype
    torch.testing.assert_close(ours, torchs)
