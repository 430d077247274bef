"""What makes one set of Markdown files read well in the repository and on the site.

A link out of docs/ works in the repository. On the site there is nothing behind it, and the project has no
public address to point to. So pictures come along, CONTRIBUTING.md and CHANGELOG.md are pages, a folder of
notebooks stands for its first one, and any other file is named as the code that it is. A link to a file that
is not there is a warning, with which a strict build fails.
"""

from __future__ import annotations

import json
import logging
import os
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

_DOCS = Path(__file__).resolve().parent
_ROOT = _DOCS.parent
_LOG = logging.getLogger("mkdocs.hooks")
#: Pages whose text stands elsewhere in the repository.
_PAGES = {"contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md"}
#: What else is a page of the site, by its path in the repository.
_KNOWN = {path: page for page, path in _PAGES.items()} | {"README.md": "index.md"}
_PICTURES = "benchmarks/results/*/*.svg"
_TUTORIALS = {"English": "tutorial", "中文": "tutorial/zh"}
#: A fenced block, a span of code, or a link: its mark of a picture, its text and its target.
_LINK = re.compile(
    r"^```.*?^```|`[^`\n]+`|(!?)\[([^\]]*)\]\(([^)\s#]+)(#[^)\s]*)?\)", re.DOTALL | re.MULTILINE
)


def on_config(config: MkDocsConfig) -> None:
    """Put the notebooks that are there under "Tutorial"."""
    for entry in config.nav or []:
        if isinstance(entry, dict) and "Tutorial" in entry:
            entry["Tutorial"] = [
                {language: [_entry(path) for path in _pages(_DOCS / folder)]}
                for language, folder in _TUTORIALS.items()
            ]


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Add the pages and pictures that are not in docs/."""
    for page, path in _PAGES.items():
        files.append(File.generated(config, page, content=(_ROOT / path).read_text()))
    for picture in sorted(_ROOT.glob(_PICTURES)):
        uri = picture.relative_to(_ROOT).as_posix()
        files.append(File.generated(config, uri, abs_src_path=str(picture)))


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Make of every link out of docs/ what the site has in its place."""
    uri = page.file.src_uri
    if uri.endswith(".ipynb"):
        return markdown
    origin = _ROOT / _PAGES[uri] if uri in _PAGES else _DOCS / uri

    def rewritten(match: re.Match[str]) -> str:
        picture, text, target, anchor = match.groups()
        if target is None or re.match(r"[a-z]+:", target):
            return match[0]
        path = Path(os.path.normpath(origin.parent / target))
        known = path.relative_to(_ROOT).as_posix() if path.is_relative_to(_ROOT) else ""
        if not path.exists() or not known:
            _LOG.warning("%s: a link to %s, which is not there", uri, target)
            return match[0]
        if known in _KNOWN:
            found = _KNOWN[known]
        elif path.is_relative_to(_DOCS):
            found = _uri(_pages(path)[0] if path.is_dir() else path)
        elif picture:
            found = known
        else:
            return f"`{known}`" if text.strip("`./") in (known, path.name) else f"{text} (`{known}`)"
        relative = os.path.relpath(found, Path(uri).parent)
        return f"{picture}[{text}]({relative}{anchor or ''})"

    return _LINK.sub(rewritten, markdown)


def _pages(folder: Path) -> list[Path]:
    """A tutorial's, in their order: an overview if there is one, and the notebooks."""
    return sorted(folder.glob("index.md")) + sorted(folder.glob("[0-9]*.ipynb"))


def _entry(page: Path) -> str | dict[str, str]:
    """Of the nav: an overview belongs to its section, a notebook is called by its first heading."""
    if page.suffix == ".md":
        return _uri(page)
    cells = [cell for cell in json.loads(page.read_text())["cells"] if cell["cell_type"] == "markdown"]
    heading = re.search(r"^# (.+)", "\n".join("".join(cell["source"]) for cell in cells), re.MULTILINE)
    return {heading[1].strip() if heading else page.stem: _uri(page)}


def _uri(path: Path) -> str:
    return path.relative_to(_DOCS).as_posix()
