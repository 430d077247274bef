"""A linear layer with its activation.

``forward``   Y = f(X Wᵀ + b)
``backward``  dX, dW, db in one launch
``tma``       both for wide weights on sm_90 and later, by TMA
"""
