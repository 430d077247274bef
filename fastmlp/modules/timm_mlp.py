"""timm.layers.Mlp, fused."""

from __future__ import annotations

from torch import Tensor, nn

from fastmlp.modules.sequential import Staged, run


class TimmMlp(Staged):
    """What `fuse` makes of the MLP blocks of timm's transformers and mixers, whose children it has.

    It is made by `fuse` alone. Source: ``timm.layers.Mlp``.
    """

    #: The children, in the order in which they run.
    ORDER = ("fc1", "act", "drop1", "norm", "fc2", "drop2")

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) to (..., out_features)."""
        return run(self, x)

    def _children_in_order(self) -> list[nn.Module]:
        return [getattr(self, name) for name in self.ORDER]
