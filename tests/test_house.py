"""The bounds on the house hold, and what is over one is found."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import house


def test_the_house_is_within_its_bounds(capsys: pytest.CaptureFixture[str]) -> None:
    """All but the Python calls, which need an interpreter without TRITON_INTERPRET: CI runs `make house`."""
    assert not house.main(["--static"]), capsys.readouterr().out


@pytest.mark.parametrize(
    ("decorator", "name", "kind"),
    [
        ("", "f", "function"),
        ("@triton.jit", "tile", "device function"),
        ('@triton.jit(do_not_specialize=["M"])', "act_kernel", "kernel"),
    ],
)
def test_one_parameter_more_is_found(
    decorator: str, name: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Positional, by name or in a class alike."""
    monkeypatch.setattr(house, "EXCEPTIONS", {})
    limit = house.PARAMETERS[kind]
    names = ", ".join(f"x{i}" for i in range(limit - 1))
    template = f"class A:\n  {decorator}\n  def {name}(self, {names}, *, last{{}}): ..."
    assert house.parameter_problems({"new.py": template.format("")}) == []
    said = f"new.py:3: {kind} {name} has {limit + 1} parameters, at most {limit}"
    assert house.parameter_problems({"new.py": template.format(", more")}) == [said]


def test_exceptions_are_few_and_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(house, "EXCEPTIONS", {f"kernels/{i}.py:f": "why" for i in range(6)})
    said = house.parameter_problems({})
    assert "6 exceptions, at most 5" in said
    assert "kernels/0.py:f: is within its bound, no exception any more" in said


def test_what_is_too_long_is_found() -> None:
    assert house.length_problems({"a.py": "def f():\n" + "    x = 1\n" * 79}) == []
    said = house.length_problems({"a.py": "def f():\n" + "    x = 1\n" * 400})
    assert said == ["a.py: 401 lines, at most 400", "a.py:1: f has 401 lines, at most 80"]
    kernel = "@triton.jit\ndef f_kernel():\n" + "    x = 1\n" * 100
    assert house.length_problems({"a.py": kernel}) == []


def test_a_figure_has_a_bound_and_a_bound_a_figure() -> None:
    assert house.over({"a": 3}, {"a": 3}, "lines") == []
    assert house.over({"a": 4, "b": 1}, {"a": 3, "c": 1}, "lines") == [
        "a: 4 lines, at most 3",
        "b: has no bound on its lines",
        "c: is not there any more, and has a bound on its lines",
    ]


def test_complexity_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(house, "PRODUCT", ("new.py",))
    (tmp_path / "tests").mkdir()
    (tmp_path / "new.py").write_text("def f(x):\n" + "    if x: x = 1\n" * 16)
    assert house.complexity(tmp_path) == [(17, "new.py:1 f")]


def test_calls_are_counted_up_to_the_first_launch() -> None:
    launched = 0

    def deeper() -> None: ...

    def call() -> None:
        nonlocal launched
        deeper()
        launched += 1
        deeper()

    assert house._entered(call, lambda: launched) == 2
