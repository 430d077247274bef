"""The notebooks run; what is kept of a run is fit to be read; the Chinese ones say the same."""

from __future__ import annotations

import copy
import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest
from nbformat import NotebookNode

HERE = Path(__file__).parents[2] / "docs" / "tutorial"


def _runner() -> ModuleType:
    spec = importlib.util.spec_from_file_location("tutorial_run", HERE / "run.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


run = _runner()
BOTH = [path for name in run.NAMES for path in (HERE / f"{name}.ipynb", HERE / "zh" / f"{name}.ipynb")]
PAGES = [*BOTH, HERE / "index.md", HERE / "zh" / "index.md"]
_MACHINE = re.compile(r"(?<![\w.:/])/(?:home|root|tmp|usr|opt|var|work|mnt|Users)\b")
_HIDDEN = re.compile(r"```.*?```|\$\$.*?\$\$|<[^>]*>", re.DOTALL)  # what no translation changes
_SHARED = (r"(?m)^(?:#+ |1\. |- |<details>)", r"\$\$?[^$]+\$\$?", r"```[^`]+```|`[^`]+`", r"\]\([^)]+\)")
_CHINESE = re.compile(r"[\u4e00-\u9fff]")


def ids(path: Path) -> str:
    return str(path.relative_to(HERE))


def kinds(cell: NotebookNode) -> list[str]:
    """What a cell put out: ``stream``, or the richest MIME type of what it shows."""
    return [min(o["data"]) if "data" in o else o["output_type"] for o in cell.get("outputs", [])]


def texts(notebook: NotebookNode) -> list[str]:
    """All that a cell printed, or raised."""
    found = []
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            found += [output.get("text", ""), *(str(data[kind]) for kind in data if kind.startswith("text/"))]
            found += output.get("traceback", [])
    return found


def substance(prose: str) -> list[list[str]]:
    """What a translation keeps: headings, list items and answers, formulas, code, links."""
    return [sorted(re.findall(pattern, prose)) for pattern in _SHARED]  # a language has its own order


@pytest.mark.deep
@pytest.mark.parametrize("name", run.NAMES)
def test_runs(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The small run raises nothing, and puts out what is kept of the full one, in kind."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    kept = run.read(HERE / f"{name}.ipynb")
    result = run.execute(kept, small=True)
    for cell, before in zip(result.cells, kept.cells):
        assert kinds(cell) == kinds(before), cell.id


def test_live_draws_in_place() -> None:
    """Ten epochs, one picture."""
    (cell,) = [c for c in run.read(HERE / "2_from_scratch.ipynb").cells if c.id == "training-loop"]
    assert kinds(cell) == ["image/png"]


@pytest.mark.parametrize("path", BOTH, ids=ids)
def test_kept_results(path: Path) -> None:
    """One run from the top, no errors, nothing of the machine it was made on, small enough for the web."""
    notebook = run.read(path)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert not [o for cell in code for o in cell.outputs if o["output_type"] == "error"]
    assert not [text for text in texts(notebook) if _MACHINE.search(text)]
    assert path.stat().st_size < 400_000
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    assert all(re.fullmatch(r"[a-z][a-z-]+", cell.id) for cell in notebook.cells)


@pytest.mark.parametrize("name", run.NAMES)
def test_translation(name: str) -> None:
    """The same cells, code and results; every paragraph of prose is in Chinese."""
    english, chinese = (run.read(HERE / folder / f"{name}.ipynb") for folder in ("", "zh"))
    assert run.translated(english, chinese) == chinese
    for cell in chinese.cells:
        if cell.cell_type == "markdown":
            for paragraph in re.split(r"\n\s*\n", _HIDDEN.sub("", cell.source)):
                assert not re.search(r"\w", paragraph) or _CHINESE.search(paragraph), paragraph
    for cell, other in zip(english.cells, chinese.cells):
        assert not _CHINESE.search(cell.source), cell.id
        assert substance(cell.source) == substance(other.source), cell.id


def test_translation_of_other_cells() -> None:
    english, chinese = (run.read(HERE / folder / f"{run.NAMES[0]}.ipynb") for folder in ("", "zh"))
    for change in (lambda cells: cells.pop(), lambda cells: cells[0].update(id="another")):
        other = copy.deepcopy(chinese)
        change(other.cells)
        with pytest.raises(ValueError, match="the translation's cells differ"):
            run.translated(english, other)


@pytest.mark.parametrize("path", PAGES, ids=ids)
def test_links(path: Path) -> None:
    """Every relative link leads to a file."""
    if path.suffix == ".md":
        prose = path.read_text(encoding="utf-8")
    else:
        prose = "\n".join(c.source for c in run.read(path).cells if c.cell_type == "markdown")
    targets = re.findall(r"\]\(([^)\s#]+)", prose)
    missing = [t for t in targets if "://" not in t and not (path.parent / t).exists()]
    assert not missing


@pytest.mark.parametrize("folder", ["", "zh"])
def test_contents(folder: str) -> None:
    """The page links to each notebook."""
    page = (HERE / folder / "index.md").read_text(encoding="utf-8")
    assert re.findall(r"\]\((\d_\w+)\.ipynb\)", page) == list(run.NAMES)
