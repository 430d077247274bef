"""The site builds strictly, its links and anchors lead somewhere, no page fetches anything from elsewhere."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urldefrag
from xml.etree import ElementTree

import pytest

import fastmlp
from tests.docs.html import Page, is_external, urls
from tests.once import once

pytestmark = pytest.mark.deep  # the site is built
ROOT = Path(__file__).resolve().parents[2]
#: Packages whose `__all__` is for users, and the page of docs/api that has it.
PACKAGES = ("", "functional", "training", "data", "plots", "studies", "profiling")


def build(out: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(out)],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    out.mkdir(exist_ok=True)
    (out / ".log").write_text("" if done.returncode == 0 else done.stderr[-3000:])


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = once(tmp_path_factory, "site", build)
    said = (folder / ".log").read_text()
    assert not said, said
    return folder


@pytest.fixture(scope="session")
def pages(site: Path) -> dict[Path, Page]:
    return {path: Page(path) for path in sorted(site.rglob("*.html"))}


def test_every_link_leads_somewhere(site: Path, pages: dict[Path, Page]) -> None:
    broken, count = [], 0
    for path, page in pages.items():
        if path.name == "404.html":  # its links are absolute, from wherever it is shown
            continue
        for link in page.links:
            target, anchor = urldefrag(link)
            if is_external(target) or target.startswith("mailto:"):
                continue
            count += 1
            there = path if not target else (path.parent / unquote(target)).resolve()
            if not there.is_file():
                broken.append(f"{path.name}: {link}")
            elif anchor and there in pages and unquote(anchor) not in pages[there].anchors:
                broken.append(f"{path.name}: {link} has no such anchor")
    assert not broken
    assert count > 500


def test_nothing_is_fetched_from_elsewhere(site: Path, pages: dict[Path, Page]) -> None:
    fetched = {
        f"{path.name}: {url}" for path, page in pages.items() for url in page.fetched if is_external(url)
    }
    for path in (*site.rglob("*.css"), *site.rglob("*.svg")):
        fetched |= {f"{path.name}: {url}" for url in urls(path.read_text()) if is_external(url)}
    assert not fetched
    assert any(page.fetched for page in pages.values())


def test_everything_that_a_page_fetches_is_there(pages: dict[Path, Page]) -> None:
    missing = []
    for path, page in pages.items():
        for url in page.fetched:
            local = not is_external(url) and not re.match(r"[a-z]+:|#|$", url) and path.name != "404.html"
            if local and not (path.parent / unquote(urldefrag(url)[0].split("?")[0])).exists():
                missing.append(f"{path.name}: {url}")
    assert not missing


@pytest.mark.parametrize("package", PACKAGES, ids=lambda name: name or "fastmlp")
def test_every_public_name_is_in_the_reference(package: str, pages: dict[Path, Page], site: Path) -> None:
    name = f"fastmlp.{package}" if package else "fastmlp"
    module = importlib.import_module(name)
    own, first = (pages[site / "api" / f"{page}.html"].anchors for page in (package or "index", "index"))
    text = (ROOT / "docs" / "api" / f"{package or 'index'}.md").read_text()
    for public in getattr(module, "__all__", ()):
        if package == "" and public in (*PACKAGES, "backends"):
            continue
        value = getattr(module, public)
        where = {f"{name}.{public}"}
        where.add(f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', public)}")
        # A constant has no docstring for mkdocstrings to show: the page's own text names it.
        named = not callable(value) and f"`{public}`" in text
        assert where & (own | first) or named, f"{name}.{public} is on no page"


def test_the_reference_is_not_empty(pages: dict[Path, Page], site: Path) -> None:
    anchors = pages[site / "api" / "index.html"].anchors
    assert {"fastmlp.MLP", "fastmlp.TrainStep", "fastmlp.fuse"} <= anchors
    assert "MLP" in fastmlp.__all__


@pytest.mark.parametrize("path", sorted((ROOT / "docs" / "diagrams").glob("*.svg")), ids=lambda p: p.stem)
def test_a_diagram_is_whole_and_used(path: Path) -> None:
    root = ElementTree.parse(path).getroot()
    space = "{http://www.w3.org/2000/svg}"
    assert root.find(f"{space}title") is not None
    assert root.find(f"{space}desc") is not None
    assert not list(root.iter(f"{space}image"))
    used = [page.name for page in (ROOT / "docs").glob("*.md") if f"diagrams/{path.name}" in page.read_text()]
    assert used


def test_the_checker_sees_what_is_broken(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text(
        '<link rel="stylesheet" href="https://a/b.css"><style>@import "//c/d.css";x{background:url(http://e)}</style>'
        '<script src="https://f"></script><img src="g.png"><a href="h.html#i" id="j">k</a><a name="l"></a>'
    )
    page = Page(path)
    assert [url for url in page.fetched if is_external(url)] == [
        "https://a/b.css",
        "//c/d.css",
        "http://e",
        "https://f",
    ]
    assert page.links == ["h.html#i"]
    assert page.anchors == {"j", "l"}
