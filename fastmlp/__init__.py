"""fastmlp: multilayer perceptrons for PyTorch, fused.

`Sequential`, `MLP` and `CrossEntropyLoss` replace torch's and torchvision's one for one; on a
GPU they run fused Triton kernels, on a CPU plain torch.
"""

__version__ = "0.1.0"
