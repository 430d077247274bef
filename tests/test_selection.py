"""Which cases of a product are kept."""

from __future__ import annotations

from collections import Counter
from itertools import combinations, product
from math import prod

import pytest

from tests.selection import chosen, cover


@pytest.mark.parametrize(
    ("sizes", "strength"), [((3, 5), 1), ((2, 2, 2), 2), ((3, 8, 9), 2), ((3, 4, 2, 2), 2)]
)
def test_each_value_or_pair_is_kept_in_few_cases(sizes: tuple[int, ...], strength: int) -> None:
    cases = list(product(*(map(str, range(size)) for size in sizes)))
    kept = [cases[place] for place in cover(cases, strength)]

    for places in combinations(range(len(sizes)), strength):
        found = {tuple(case[place] for place in places) for case in kept}
        assert len(found) == prod(sizes[place] for place in places)
    assert len(kept) <= 1.25 * prod(sorted(sizes)[-strength:])


def test_cases_that_are_no_product() -> None:
    assert chosen([("a", "x"), ("a", "y"), ("b", "z")]) == {0, 1, 2}
    assert chosen([("a", "x"), ("a", "y"), ("b", "y")]) == {0, 2}


def test_a_single_parameter_keeps_its_values() -> None:
    assert chosen([("a",), ("b",), ("c",)]) == {0, 1, 2}


def test_a_few() -> None:
    """Spread over a list; of a product the ones that share least."""
    assert chosen([(name,) for name in "abcdef"], 3) == {1, 3, 5}
    assert chosen([("a",), ("b",)], 3) == {0, 1}
    cases = list(product("ab", "xyz", "12"))
    one, two = (cases[place] for place in chosen(cases, 2))
    assert all(a != b for a, b in zip(one, two))
    cases = list(product("ab", "xyz", "123456"))
    kept = [cases[place] for place in chosen(cases, 12)]
    assert Counter(case[2] for case in kept) == dict.fromkeys("123456", 2)
    assert Counter(case[0] for case in kept) == {"a": 6, "b": 6}
