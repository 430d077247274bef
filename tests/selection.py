"""Which cases of a parametrised test run every day, and which are left to ``make test-deep``.

Of a product of two parameters each value is kept once, in as many different pairs as that gives; of three or
more, each pair of values. A test with one parameter keeps them all. The marks decide otherwise:

- ``deep`` leaves a test, or a case, to ``make test-deep``;
- ``few(n)`` keeps n cases, which differ in as many values as they can;
- ``every`` keeps the whole product.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import combinations
from zlib import crc32

import pytest

Case = tuple[str, ...]  # the id of each parameter's value


def deep(items: Iterable[pytest.Item]) -> list[pytest.Item]:
    """What is left to ``make test-deep`` beside what is marked so.

    A choice of each test's own: it changes neither with the worker nor with what else is collected.
    """
    products: dict[str, list[tuple[Case, pytest.Item]]] = {}
    for item in items:
        case = _case(item)
        if case and not any(map(item.get_closest_marker, ("deep", "every"))):
            products.setdefault(item.nodeid.partition("[")[0], []).append((case, item))
    left = []
    for product in products.values():
        few = product[0][1].get_closest_marker("few")
        kept = chosen([case for case, _ in product], few.args[0] if few else None)
        left += [item for i, (_, item) in enumerate(product) if i not in kept]
    return left


def chosen(cases: Sequence[Case], few: int | None = None) -> set[int]:
    """The places of the cases that are kept."""
    many, parameters = len(cases), len(cases[0])
    if parameters == 1:
        few = many if few is None else min(few, many)
        return {(2 * place + 1) * many // (2 * few) for place in range(few)}
    if few is None:
        return set(cover(cases, min(2, parameters - 1)))
    return set(spread(cases, few))


def cover(cases: Sequence[Case], strength: int, start: int = 0) -> list[int]:
    """Every value, or each pair of values: greedily what adds most, of equals the nearest to ``start``."""
    adds = [set(combinations(enumerate(case), strength)) for case in cases]
    wanted, kept = set().union(*adds), list[int]()
    while wanted:
        kept.append(max(range(len(cases)), key=lambda i: (len(adds[i] & wanted), -abs(i - start))))
        wanted -= adds[kept[-1]]
    return kept


def spread(cases: Sequence[Case], few: int) -> list[int]:
    """So many: each has as many values that are new as it can, and then those that were least used.

    Among equals a hash decides: in their order neighbours would meet the same few values.
    """
    used, left, kept = Counter[tuple[int, str]](), list(range(len(cases))), list[int]()
    for _ in range(min(few, len(cases))):
        counts = {i: [used[value] for value in enumerate(cases[i])] for i in left}
        order = {i: (-counts[i].count(0), sum(counts[i]), crc32(repr(cases[i]).encode())) for i in left}
        kept.append(min(left, key=order.__getitem__))
        left.remove(kept[-1])
        used.update(enumerate(cases[kept[-1]]))
    return kept


def _case(item: pytest.Item) -> Case:
    callspec = getattr(item, "callspec", None)
    return tuple(callspec._idlist) if callspec is not None else ()
