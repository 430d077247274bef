"""Functional forms, with torch's own argument names and defaults."""

from fastmlp.backends.base import Quantized
from fastmlp.functional.chain_loss import chain_cross_entropy, chain_mse_loss
from fastmlp.functional.linear import Layer, chain, linear_act, mlp
from fastmlp.functional.linear_loss import linear_cross_entropy
from fastmlp.functional.loss import cross_entropy
from fastmlp.functional.mse import mse_loss

__all__ = [
    "Layer",
    "Quantized",
    "chain",
    "chain_cross_entropy",
    "chain_mse_loss",
    "cross_entropy",
    "linear_act",
    "linear_cross_entropy",
    "mlp",
    "mse_loss",
]
