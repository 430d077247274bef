"""Data sets, each as two of them, to train on and to test.

``images``     labelled pictures, as uint8 on a device
``samples``    rows of numbers with targets or labels
``idx``        Fashion-MNIST, MNIST, KMNIST through torchvision
``tables``     digits and diabetes through scikit-learn
``synthetic``  drawn from a seed
``named``      all of them by name
"""

from fastmlp.data.errors import DataError
from fastmlp.data.idx import cache_directory, fashion_mnist
from fastmlp.data.images import Images, batches
from fastmlp.data.named import NAMES, load, named
from fastmlp.data.samples import Samples
from fastmlp.data.synthetic import synthetic

__all__ = [
    "NAMES",
    "DataError",
    "Images",
    "Samples",
    "batches",
    "cache_directory",
    "fashion_mnist",
    "load",
    "named",
    "synthetic",
]
