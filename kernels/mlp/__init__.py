"""A narrow network as a whole; its activations stay on the chip.

``forward``   one launch
``backward``  two or three
"""
