"""Pages that are still being written: no entry in the nav, and a link to one is its text, until it is there.

To go, with its line in mkdocs.yml, when none is awaited any more; a strict build then misses none of them.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.pages import Page

_DOCS = Path(__file__).resolve().parent
_NAMES = ("data.md", "cli.md", "profiling.md", "studies.md", "tutorial/", "pictures/picture.png")
AWAITED = {name for name in _NAMES if not (_DOCS / name).exists()}
#: Likewise of the package.
_OBJECTS = ("fastmlp.MSELoss", "fastmlp.profile")


def on_config(config: MkDocsConfig) -> None:
    """Leave out of the nav what is not there."""
    config.nav = _present(config.nav or [])


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Make text of links to what is not there, and leave its reference out."""
    exported = (_DOCS.parent / "fastmlp" / "__init__.py").read_text()
    for name in _OBJECTS:
        if f'"{name.split(".")[1]}"' not in exported:
            markdown = markdown.replace(f"::: {name}\n", "\n")
    up = "../" * page.file.src_uri.count("/")
    names = "|".join(re.escape(up + name) for name in sorted(AWAITED))
    return re.sub(rf"!?\[([^\]]*)\]\((?:{names})(?:#[^)]*)?\)", r"\1", markdown) if names else markdown


def _present(nav: list[Any]) -> list[Any]:
    kept = []
    for entry in nav:
        ((title, inside),) = entry.items() if isinstance(entry, dict) else ((None, entry),)
        if isinstance(inside, list):
            wanted = _present(inside) or (title == "Tutorial" and "tutorial/" not in AWAITED)
            kept += [{title: _present(inside)}] if wanted else []
        elif inside not in AWAITED:
            kept.append(entry)
    return kept
