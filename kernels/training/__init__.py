"""A training step, and an epoch, of a whole network.

``layer_table`` a network's layers as a table of addresses
``optimizers``  SGD, Adam, AdamW on one element
``update``      every dW and db with the optimizer behind it, in one launch
``recipe``      what is trained and how: loss, rule, numerics
``step``        a training step in 2L - 1 launches
``epoch``       an epoch in one cooperative launch
"""
