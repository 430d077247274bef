"""Triton kernels and their thin launchers, installed as ``fastmlp.kernels``.

This layer knows pointers, strides and tiles; nothing of ``nn`` or autograd. One file a
kernel family, and what the families share in one place:

``launch``         the one door every kernel goes through (counting, recording, dry runs)
``configs``        the table of tile sizes, as data
``device``         device functions shared by the matrix kernels
``activations``    f and f', on the chip
``linear``         Y = f(X Wᵀ + b)
``linear_backward`` dX, dW, db in one launch
``linear_tma``     the same for wide weights on sm_90 and later, by TMA
``decisions``      which way a layer's products go, from measurements
``softmax``        device functions shared by the losses
``cross_entropy``  softmax-cross-entropy over any number of classes
``mse``            the squared error
``head``           the last layer and the loss: logits, loss, dlogits and dZ in one kernel
``mlp``            a narrow network's forward in one launch
``mlp_backward``   its backward, in two or three
``optimizers``     SGD, Adam, AdamW on one element
``network``        a network's layers as a table of addresses
``update``         every dW and db with the optimizer behind it, in one launch
``step``           a training step in 2L - 1 launches
``epoch``          an epoch in one cooperative launch
``cache``          what was measured on this machine
``tune``           measures tiles on a GPU and writes a cache file
``compile``        compiles everything for every architecture with no GPU

Nothing is imported here: Triton is needed only where a kernel runs.
"""
