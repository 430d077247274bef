"""What the nodes of linear layers keep of their parameters and of their output, beside what torch keeps.

torch's ``save_for_backward`` keeps the tensor itself. An exchange of a parameter's ``.data`` (``double()``,
``to``, ``load_state_dict(assign=True)``) would reach the backward, and any write in place is an error though
nothing reads the values. Eager's ops keep views, and no more than they read: so do these.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fastmlp.activations import Act
from fastmlp.autograd.node import written


class Owners:
    """The parameters that a forward was given, whose values a node saves as `aliases`.

    The backward's kernels read the aliases. torch's own ops, to differentiate again, need the parameters'
    places in the graph, and every one's value.
    """

    def __init__(self, params: Sequence[Tensor | None]) -> None:
        self._owners = [p if p is not None and _is_owned(p) else None for p in params]
        try:
            self._versions = [-1 if p is None else p._version for p in self._owners]
        except RuntimeError:  # of an inference tensor there is none
            self._versions = [_version(p) for p in self._owners]

    def values(self, aliases: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
        """``aliases``, each of which is to be read.

        Raises:
            RuntimeError: a parameter was written to since, as torch's.
        """
        for alias, owner, version in zip(aliases, self._owners, self._versions):
            if alias is not None and owner is not None and _version(owner) != version:
                raise written("a parameter", owner, version)
        return aliases

    def in_graph(self, aliases: Sequence[Tensor | None]) -> list[Tensor | None]:
        """The parameters themselves.

        Raises:
            RuntimeError: as `values`; or a gradient of a gradient, of which one has other data now.
        """
        return [
            alias if owner is None or alias is None else _in_graph(owner, alias)
            for owner, alias in zip(self._owners, self.values(aliases))
        ]


def aliases(params: Sequence[Tensor | None], read: Sequence[bool]) -> list[Tensor | None]:
    """``params`` to be saved: what happens to their ``.data`` does not reach these.

    A write in place does, and is torch's error for those whose values the kernels ``read``.
    """
    return [
        p if p is None or not (_is_owned(p) or not p.requires_grad) else p.detach() if r else p.data
        for p, r in zip(params, read)
    ]


def _is_owned(param: Tensor) -> bool:
    """Whether somebody else holds it too, or it is small: else it is freed as torch frees what is saved."""
    return type(param) is nn.Parameter or param.dim() < 2 or (param.is_leaf and param.requires_grad)


def _version(tensor: Tensor | None) -> int:
    return -1 if tensor is None or tensor.is_inference() else tensor._version


def _in_graph(owner: Tensor, alias: Tensor) -> Tensor:
    if owner.dtype == alias.dtype and owner.data_ptr() == alias.data_ptr():
        return owner
    if torch.is_grad_enabled() and owner.requires_grad:
        raise RuntimeError(
            f"a parameter {tuple(alias.shape)} has other data than in the forward: its gradient cannot be "
            "differentiated again"
        )
    return alias.detach().requires_grad_(owner.requires_grad)


class Overwritable:
    """A node's output of which the backward needs the values, where eager's does not.

    ``F.leaky_relu`` keeps its input, dropout its mask: what they return may be written to in place. Only then
    are the values computed again, by the forward's kernel.
    """

    def __init__(self, output: Tensor) -> None:
        # Of the output this has the version alone: its memory is not kept.
        self._counter = output.detach()
        self._counter.data = output.new_empty(0)
        self._version = self._counter._version

    @property
    def is_written(self) -> bool:
        """Whether somebody has."""
        return self._counter._version != self._version


def may_be_written(act: Act, dropped: bool) -> bool:
    """Whether eager lets somebody write over the output of a chain's last activation.

    ReLU, sigmoid and tanh keep their output in eager too, where a write in place is torch's error. What is to
    be saved then is the output's ``data``, beside an `Overwritable`.
    """
    return dropped or act.name == "leaky_relu"
