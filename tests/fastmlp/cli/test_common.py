"""What the commands share."""

from __future__ import annotations

import json
import math

from fastmlp.cli.common import json_of


def test_json_of_what_is_no_number() -> None:
    found = {"loss": math.nan, "rows": [{"p": (1.0, math.inf)}, -math.inf], "name": "nan", "count": 3}

    def no_json(constant: str) -> None:
        raise AssertionError(constant)

    expected = {"loss": None, "rows": [{"p": [1.0, None]}, None], "name": "nan", "count": 3}
    assert json.loads(json_of(found), parse_constant=no_json) == expected
