"""``python -m benchmarks.gpu --out DIR``: what a quarter of an hour on a GPU must answer, by one command.

``__main__``   the command
``stages``     their names, limits and order
``conductor``  runs each in a process of its own, and keeps what it says
``worker``     such a process, and what a stage is given there: `Bench`
``summary``    the one screen at the end

``facts``, ``smoke``, ``host``, ``engines``, ``headlines``, ``tune`` and ``tests`` are the stages: each
a function ``run(bench)``. Nothing here imports more than torch, Triton and what a checkout has.
"""
