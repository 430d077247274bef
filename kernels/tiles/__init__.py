"""Tile sizes, and which way a layer's products go: as data, shipped and measured.

``configs``    the table of tile sizes
``decisions``  which way a layer's products go, from measurements
``cache``      the files of what was measured on this machine
"""
