"""The one interface that both backends implement.

Tensors in, tensors out, no autograd: the ``torch.autograd.Function``s above call these, and
decide what to save. Every matrix is 2-D here; the functions above flatten leading dimensions.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastmlp.activations import NONE, Act


class LinearGrads(NamedTuple):
    """Gradients of Y = f(X Wᵀ + b); what was not asked for is None."""

    input: Tensor | None  # (M, K)
    weight: Tensor | None  # (N, K)
    bias: Tensor | None  # (N,)
    slope: Tensor | None  # PReLU's, (N,), float32


class Scale(NamedTuple):
    """A factor that is known on the device alone: numerator / denominator, both scalar tensors."""

    numerator: Tensor
    denominator: Tensor

    def value(self) -> Tensor:
        """The factor; 0 for a denominator of 0, since a mean over no rows has no gradient."""
        return torch.where(self.denominator == 0, 0.0, self.numerator / self.denominator)


class Dropout(NamedTuple):
    """A dropout after a layer's activation: what is kept is a function of seed, site, row and column."""

    p: float  # of being dropped, in (0, 1)
    seed: Tensor  # (1,) int64 on the device
    site: int  # the layer's number: layers of one seed draw different masks


class Undo(NamedTuple):
    """What a gradient goes back through: a layer's dropout, and then its f'; by default through nothing.

    f' is computed from ``saved``, which is f's input, or its output as the dropout left it.
    """

    act: Act = NONE
    saved: Tensor | None = None  # (M, N)
    dropout: Dropout | None = None


NOTHING = Undo()


class BackwardOptions(NamedTuple):
    """The arguments of `Backend.linear_backward` that are not the layer's tensors."""

    dtype: torch.dtype  # of the products
    #: Undone as the gradient is read, which then is dY; without anything it is dZ.
    after: Undo = NOTHING
    #: Undone in the input's gradient, which so leaves as the previous layer's dZ.
    before: Undo = NOTHING
    scale: Scale | None = None  # multiplies the parameters' gradients
    scale_input: bool = False  # and the input's
    need_input: bool = True
    need_params: bool = True
    bias_dtype: torch.dtype | None = None  # there is a bias' gradient where this is given


class Quantized(NamedTuple):
    """A first layer's input X = scale * values[index] + shift, which no memory holds."""

    values: Tensor  # (N, K) uint8 or int8; without an index (..., K)
    scale: float | Tensor = 1.0  # one number, or (K,)
    shift: float | Tensor | None = None  # likewise
    #: (M,) int64 or int32: the rows of values that are X; None for all.
    index: Tensor | None = None  # type: ignore[assignment]  # nobody looks for an item of this tuple

    def dense(self, dtype: torch.dtype) -> Tensor:
        """X: computed in float32 at least, and rounded once to ``dtype``."""
        wide = torch.promote_types(dtype, torch.float32)
        x = self.values if self.index is None else self.values.index_select(0, self.index)
        x = x.to(wide) * _wide(self.scale, wide)
        return (x if self.shift is None else x + _wide(self.shift, wide)).to(dtype)


def _wide(number: float | Tensor, dtype: torch.dtype) -> float | Tensor:
    return number.to(dtype) if isinstance(number, Tensor) else number


class LossOptions(NamedTuple):
    """The arguments of cross_entropy that are no tensors."""

    ignore_index: int = -100
    reduction: str = "mean"
    label_smoothing: float = 0.0
    z_loss: float = 0.0  # adds z_loss * lse² to each row's loss

    @property
    def loss(self) -> str:
        """Its name in the kernels."""
        return "cross_entropy"


class SquaredError(NamedTuple):
    """The arguments of mse_loss that are no tensors."""

    reduction: str = "mean"

    @property
    def loss(self) -> str:
        """Its name in the kernels."""
        return "mse"


class Criterion(NamedTuple):
    """A cross-entropy: all of its arguments but the logits (N, C, D)."""

    target: Tensor  # class indices (N, D), or probabilities (N, C, D)
    weight: Tensor | None  # of the classes, (C,)
    options: LossOptions

    def of_rows(self, rows: slice) -> Criterion:
        """That of some rows."""
        return self._replace(target=self.target[rows])


#: A loss that the head can compute.
Loss = LossOptions | SquaredError


class Wanted(NamedTuple):
    """Which results of the head are asked for, beside the loss; dZ comes with dlogits only."""

    logits: bool
    dlogits: bool
    dz: bool


class HeadOptions(NamedTuple):
    """The arguments of `Backend.head` that are not the layer's: a loss, and what of its results is wanted."""

    target: Tensor  # (M,) class indices; of a `SquaredError` (M, C) in any floating dtype
    class_weight: Tensor | None  # (C,)
    loss: Loss  # with reduction "mean" or "sum"
    wanted: Wanted
    dtype: torch.dtype  # of the products
    loss_dtype: torch.dtype
    before: Undo = NOTHING  # undone in dZ


class HeadResult(NamedTuple):
    """What the head leaves; the gradients are those of the *sum* of the rows' losses."""

    loss: Tensor  # ()
    denominator: Tensor  # (): what the loss was divided by
    logits: Tensor | None  # (M, C)
    dlogits: Tensor | None  # (M, C)
    dz: Tensor | None  # (M, K): times the previous activation's derivative


class Net(NamedTuple):
    """A network of at least two layers that runs in one launch."""

    params: Sequence[Tensor | None]  # weight, bias and PReLU's weight of each layer, contiguous
    acts: Sequence[Act]  # without tensors, alike in all hidden layers; the last is no PReLU
    dtype: torch.dtype  # of the products


class NetForward(NamedTuple):
    """What a network's forward in one launch leaves; what was not asked for is None."""

    output: Tensor  # (M, N)
    saved: Tensor | None  # of all hidden layers, for `Backend.mlp_backward`
    z: Tensor | None  # (M, N): the output activation's input


class NetGrads(NamedTuple):
    """Gradients of a network, flat as its kernels write them; what was not asked for is None."""

    input: Tensor | None  # (M, K)
    params: Tensor | None  # dW (N, K) and then db (N,) of each layer, in the weights' dtype
    slopes: Tensor | None  # PReLU's (N,) of each hidden layer, float32


class NetLayout(NamedTuple):
    """Where the layers lie in a network's flat buffers; the last number of each is the total."""

    saved: tuple[int, ...]  # each hidden layer's columns in `NetForward.saved`; and in `NetGrads.slopes`
    params: tuple[int, ...]  # each layer's dW in `NetGrads.params`


#: A function of tensors that is called with a key too: all that it depends on, but for the tensors' values.
Recorded = Callable[[Hashable, Sequence[Tensor | None]], Any]


class Backend(ABC):
    """What a device must be able to do for the autograd Functions."""

    name: str
    #: The most classes, or outputs, that `head` takes.
    head_classes: int

    def recorded(self, function: Callable[..., Any], patience: int = 0) -> Recorded:
        """``function`` of tensors and None, whose launches are made again where its key is known.

        Args:
            function: what it returns is made of these too, in tuples and lists.
            patience: so many calls are not recorded.
        """
        return lambda _, tensors: function(*tensors)

    @abstractmethod
    def linear_act(
        self,
        x: Tensor | Quantized,
        weight: Tensor,
        bias: Tensor | None,
        act: Act,
        keep_z: bool,
        dtype: torch.dtype,
        dropout: Dropout | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Y = dropout(f(X Wᵀ + b)) in ``dtype``; also Z = X Wᵀ + b if ``keep_z``.

        x (M, K), weight (N, K), bias (N,); any strides, no size 0. A quantized x is of 8-bit integers,
        and has no gradient. Operands are rounded to
        ``dtype``; sums are in float32 (in float64 for float64).
        """

    @abstractmethod
    def linear_backward(
        self, grad: Tensor, x: Tensor | Quantized, weight: Tensor, options: BackwardOptions
    ) -> LinearGrads:
        """Gradients of one layer from ``grad`` (M, N)."""

    @abstractmethod
    def dropout_mask(self, dropout: Dropout, rows: int, features: int) -> Tensor:
        """Which elements of a layer's output (rows, features) are kept, bool."""

    @abstractmethod
    def cross_entropy(self, logits: Tensor, criterion: Criterion) -> tuple[Tensor, Tensor, Tensor | None]:
        """The loss, and for `cross_entropy_backward` statistics, and the denominator if it is not in them.

        logits and ``criterion`` in any strides, no size 0. The loss is (N, D) for reduction "none", else a
        scalar.
        """

    @abstractmethod
    def cross_entropy_backward(
        self,
        grad: Tensor,
        logits: Tensor,
        criterion: Criterion,
        stats: Tensor,
        denominator: Tensor | None,
        out: Tensor,
    ) -> None:
        """Write the logits' gradient to ``out``, which may be the logits. ``grad`` is the loss' shape."""

    @abstractmethod
    def loss_of_rows(
        self, logits: Tensor, criterion: Criterion, upstream: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Each row's loss (N, D), in float32 or better, and statistics for `loss_gradient`.

        Without the criterion's reduction and z-loss; the logits are this call's to write over. With
        ``upstream``, a scalar, they become the gradient of that many losses each.
        """

    @abstractmethod
    def loss_gradient(
        self,
        logits: Tensor,
        first: int,
        classes: int,
        criterion: Criterion,
        stats: Tensor,
        upstream: Tensor,
    ) -> None:
        """Write the logits' gradient over logits (N, V, D) of the classes from ``first`` on.

        ``upstream`` is (N, D) in any strides; criterion and stats are those of all ``classes``.
        """

    @abstractmethod
    def loss_scratch(self, dtype: torch.dtype, dense: bool) -> float:
        """How much `loss_of_rows` and `loss_gradient` allocate: bytes an element of logits in ``dtype``.

        ``dense``: for probability targets or label smoothing.
        """

    @abstractmethod
    def mse_loss(
        self, input: Tensor, target: Tensor, weight: Tensor | None, options: SquaredError
    ) -> tuple[Tensor, Tensor]:
        """The loss, (M, C) for reduction "none", else a scalar; and a tensor for `mse_loss_backward`.

        input, target and weight (M, C); any strides, no size 0, one dtype.
        """

    @abstractmethod
    def mse_loss_backward(
        self,
        grad: Tensor,
        input: Tensor,
        target: Tensor,
        weight: Tensor | None,
        denominator: Tensor,
        options: SquaredError,
    ) -> Tensor:
        """The input's gradient (M, C). ``grad`` is the loss' shape."""

    @abstractmethod
    def head(self, h: Tensor, weight: Tensor, bias: Tensor | None, options: HeadOptions) -> HeadResult:
        """The loss of logits h weightᵀ + bias, and what else of `HeadResult` is wanted.

        h (M, K), weight (C, K), bias (C,).
        """

    def mlp(self, x: Tensor, net: Net, *, save: bool, keep_z: bool) -> NetForward:
        """A whole chain of layers in one launch. x (M, K) of any strides."""
        raise NotImplementedError(f"the {self.name} backend runs networks layer by layer")

    def net_layout(self, widths: Sequence[int]) -> NetLayout:
        """Of a network of these widths: the input's, and every layer's."""
        raise NotImplementedError(f"the {self.name} backend runs networks layer by layer")

    def mlp_backward(
        self,
        grad: Tensor,
        x: Tensor,
        net: Net,
        saved: Tensor | None,
        out_saved: Tensor | None,
        *,
        need_input: bool,
        need_params: bool,
    ) -> NetGrads:
        """The gradients of the input and of the parameters, in at most three launches.

        ``saved`` is `NetForward.saved`, or None to compute it again; ``out_saved`` is what the output
        activation's derivative is computed from.
        """
        raise NotImplementedError(f"the {self.name} backend runs networks layer by layer")
