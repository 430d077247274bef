"""Functional forms, with torch's own argument names and defaults."""

from fastmlp.functional.linear import Layer, chain, linear_act, mlp

__all__ = ["Layer", "chain", "linear_act", "mlp"]
