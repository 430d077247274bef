"""Image data sets that live on the device as uint8."""

from fastmlp.data.fashion_mnist import DataError, fashion_mnist, load
from fastmlp.data.images import Images, batches
from fastmlp.data.synthetic import synthetic

__all__ = ["DataError", "Images", "batches", "fashion_mnist", "load", "synthetic"]
