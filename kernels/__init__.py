"""Triton kernels and their thin launchers, installed as ``fastmlp.kernels``.

They know pointers, strides and tiles, but nothing of ``nn`` or autograd. A launcher stands beside its kernel:

``linear``    a layer: forward, backward, and both by TMA
``loss``      softmax-cross-entropy, the squared error, and the head: the last layer with its loss
``mlp``       a narrow network as a whole
``training``  a training step, every weight's update, and an epoch in one launch
``common``    device functions and arguments that the families share
``tiles``     tile sizes as data
``offline``   every launch as a case that is compiled without a GPU
``launch``    the one door every kernel goes through (counting, recording, dry runs)
``tune``      measures tiles on a GPU and writes a cache file
``compile``   compiles everything for every architecture with no GPU

Nothing is imported here: Triton is needed only where a kernel runs.
"""
