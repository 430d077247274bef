"""nn.Sequential, with its linear layers and activations run together."""

from __future__ import annotations

from torch import Tensor, nn

from fastmlp.functional.linear import chain
from fastmlp.modules.plan import plan


class Sequential(nn.Sequential):
    """An ``nn.Sequential`` in which each run of ``nn.Linear`` and activation is one fused chain.

    It holds the very modules it is given: ``state_dict``, ``apply``, indexing, slicing, hooks,
    optimizers, pickling and ``repr`` are torch's. Source: ``torch.nn.Sequential``.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Run the children in order; see `plan` for what is fused."""
        for stage in plan(self):
            input = chain(input, stage) if isinstance(stage, list) else stage(input)
        return input
