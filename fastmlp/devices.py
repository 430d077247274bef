"""Where `fastmlp.costs.devices` stood before."""

from fastmlp.costs.devices import *  # noqa: F403
