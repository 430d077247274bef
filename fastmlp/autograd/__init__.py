"""The ``torch.autograd.Function``s: what is saved, and what is computed from it."""
