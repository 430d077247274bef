"""The bounds on parameters hold, and what is over one is found."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import parameters


def test_no_function_has_too_many() -> None:
    assert parameters.problems() == []


@pytest.mark.parametrize(
    ("decorator", "name", "kind", "limit"),
    [
        ("", "f", "function", 12),
        ("@triton.jit", "tile", "device function", 13),
        ('@triton.jit(do_not_specialize=["M"])', "act_kernel", "kernel", 20),
    ],
)
def test_one_more_is_found(
    decorator: str, name: str, kind: str, limit: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Positional, by name or in a class alike."""
    monkeypatch.setattr(parameters, "EXCEPTIONS", {})
    names = ", ".join(f"x{i}" for i in range(limit - 1))
    file = tmp_path / "kernels" / "new.py"
    file.parent.mkdir()
    template = "class A:\n  {0}\n  def {1}(self, {2}, *, last{3}): ..."
    file.write_text(template.format(decorator, name, names, ""))
    assert parameters.problems(tmp_path) == []
    file.write_text(template.format(decorator, name, names, ", more"))
    said = f"kernels/new.py:3: {kind} {name} has {limit + 1} parameters, at most {limit}"
    assert parameters.problems(tmp_path) == [said]


def test_exceptions_are_few_and_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parameters, "EXCEPTIONS", {f"kernels/{i}.py:f": "why" for i in range(6)})
    said = parameters.problems(tmp_path)
    assert "6 exceptions, at most 5" in said
    assert "kernels/0.py:f: is within its bound, no exception any more" in said
