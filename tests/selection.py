"""Which cases of a parametrised test run every day, and which are left to ``make test-deep``.

Of a product of two parameters each value is kept once, in as many different pairs as that gives; of three or
more, each pair of values. A test with one parameter keeps them all. ``@pytest.mark.deep`` leaves a test or a
case to ``make test-deep`` whatever it is, ``@pytest.mark.every`` keeps the whole product.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import combinations

import pytest

Case = tuple[str, ...]  # the id of each parameter's value


def deep(items: Iterable[pytest.Item]) -> list[pytest.Item]:
    """What is left to ``make test-deep`` beside what is marked so.

    A choice of each test's own: it changes neither with the worker nor with what else is collected.
    """
    products: dict[str, list[tuple[Case, pytest.Item]]] = {}
    for item in items:
        case = _case(item)
        if len(case) > 1 and not any(map(item.get_closest_marker, ("deep", "every"))):
            products.setdefault(item.nodeid.partition("[")[0], []).append((case, item))
    left = []
    for product in products.values():
        kept = cover([case for case, _ in product])
        left += [item for i, (_, item) in enumerate(product) if i not in kept]
    return left


def cover(cases: Sequence[Case]) -> set[int]:
    """The places of the cases that are kept: greedily the one that adds most, of equals the first."""
    strength = min(2, len(cases[0]) - 1)
    adds = [set(combinations(enumerate(case), strength)) for case in cases]
    wanted, kept = set().union(*adds), set[int]()
    while wanted:
        best = max(range(len(cases)), key=lambda i: (len(adds[i] & wanted), -i))
        kept.add(best)
        wanted -= adds[best]
    return kept


def _case(item: pytest.Item) -> Case:
    callspec = getattr(item, "callspec", None)
    return tuple(callspec._idlist) if callspec is not None else ()
