"""What a checker must know of a built page: its anchors, its links, and what a browser fetches for it."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

#: Attributes that a browser fetches at once, by element; `a` only when somebody clicks.
_FETCHED = {
    "script": ("src",),
    "img": ("src", "srcset"),
    "iframe": ("src",),
    "source": ("src", "srcset"),
    "video": ("src", "poster"),
    "audio": ("src",),
    "embed": ("src",),
    "object": ("data",),
    "image": ("href", "xlink:href"),
    "use": ("href", "xlink:href"),
}
_STYLE = re.compile(r"url\(\s*['\"]?([^'\")]+)|@import\s+['\"]([^'\"]+)")
#: <link> relations that fetch nothing.
_SILENT = {"canonical", "prev", "next", "edit", "alternate"}


class Page(HTMLParser):
    """One built HTML file."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.fetched: list[str] = []
        self._in_style = False
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.anchors |= {found[name] for name in ("id", "name") if found.get(name)}
        self._in_style = tag == "style"
        if tag == "a" and "href" in found:
            self.links.append(found["href"])
        if tag == "link" and not _SILENT & set(found.get("rel", "").split()):
            self.fetched.append(found.get("href", ""))
        self.fetched += [found[name] for name in _FETCHED.get(tag, ()) if found.get(name)]
        self.fetched += urls(found.get("style", ""))

    def handle_endtag(self, tag: str) -> None:
        self._in_style = self._in_style and tag != "style"

    def handle_data(self, data: str) -> None:
        if self._in_style:
            self.fetched += urls(data)


def urls(style: str) -> list[str]:
    """What a style sheet fetches."""
    return [first or second for first, second in _STYLE.findall(style)]


def is_external(url: str) -> bool:
    """Whether it leads to another machine."""
    return re.match(r"(https?:)?//", url) is not None
