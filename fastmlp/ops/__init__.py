"""The fused work as torch.library ops, for who traces: ``torch.ops.fastmlp.*``.

Eager code calls the autograd Functions directly: the dispatcher would cost it as much as a launch. Under
``torch.compile`` each op is one opaque node, with a fake kernel for shapes and an autograd formula: see
`fastmlp.ops.register`. The ops' arguments are plain tensors, numbers and strings; see docs/compile.md.
"""

from fastmlp.ops.chain import chain, whole_net
from fastmlp.ops.cross_entropy import cross_entropy
from fastmlp.ops.linear_cross_entropy import linear_cross_entropy

__all__ = ["chain", "cross_entropy", "linear_cross_entropy", "whole_net"]
