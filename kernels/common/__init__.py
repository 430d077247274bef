"""Device functions that the families share, their arguments, and recorded calls.

``arguments``    what travels together: matrices, vectors, a layer's activation
``activations``  f and f', on the chip
``device``       products, stores, the order of tiles
``dropout``      masks, drawn again where they are needed
``quantized``    integers as inputs
``replay``       a call that was recorded, made again
``older_triton`` what Triton before 3.7 lacks
"""
