"""Every kernel's launches, compiled where there is no GPU.

``case``       a launch that is compiled
``cases``      all of them
``resources``  registers, spills, shared memory of what was compiled
"""
