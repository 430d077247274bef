"""Losses, and the last layer with its loss.

``softmax``        device functions shared by the losses
``cross_entropy``  softmax-cross-entropy over any number of classes
``mse``            the squared error
``head``           the last layer and the loss: logits, loss, dlogits and dZ in one kernel
"""
