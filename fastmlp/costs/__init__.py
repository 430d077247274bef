"""What work costs, and which plan is taken for it.

``floors``    the least that a piece of work takes: operations, bytes, launches
``devices``   what named devices can do at most
``plans``     what a chain of layers takes by each of its plans
``choice``    which of these plans is taken
``launches``  what a launch of our kernels takes
``aten``      what one of torch's own ops takes
``ceilings``  what this machine's device reaches, measured
"""
