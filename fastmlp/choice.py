"""Where `fastmlp.costs.choice` stood before."""

from fastmlp.costs.choice import *  # noqa: F403
