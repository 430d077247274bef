"""Notebooks as pages: formulas become MathML, no script comes from the network, every heading has an anchor.

MathJax and Mermaid would be loaded. The anchor of a heading without a Latin letter would be empty.
"""

from __future__ import annotations

import html as entities
import logging
import re
from collections.abc import Iterable, Iterator
from typing import Any

from latex2mathml.converter import convert
from mkdocs.structure.pages import Page
from mkdocs.structure.toc import AnchorLink

_VERBATIM = re.compile(r"(<(?P<tag>pre|code|script|style|svg)\b.*?</(?P=tag)>|<[^>]+>)", re.DOTALL)
_FORMULA = re.compile(r"\$\$(?P<block>.+?)\$\$|\$(?P<inline>[^$]+?)\$", re.DOTALL)
_HEADING = re.compile(
    r'(<h[1-6] id=")[^"]*(">(?:(?!</h[1-6]>).)*class="anchor-link" href="#)[^"]*', re.DOTALL
)
_LOG = logging.getLogger("mkdocs.hooks")
_SCRIPT = re.compile(r"<script\b[^>]*>.*?</script>", re.DOTALL)


def on_page_content(html: str, page: Page, **_: Any) -> str:
    """Convert the formulas of a notebook, leave out the scripts that would have, and put the anchors in."""
    if not page.file.src_uri.endswith(".ipynb"):
        return html
    names = list(_names(page.toc))
    if len(names) != len(_HEADING.findall(html)):
        _LOG.warning("%s: its headings are not those of its table of contents", page.file.src_uri)
    waiting = iter(names)
    html = _HEADING.sub(lambda heading: heading[1] + (name := next(waiting, "")) + heading[2] + name, html)
    html = _SCRIPT.sub(lambda script: "" if _loads(script[0]) else script[0], html)
    position, parts = 0, []
    for verbatim in _VERBATIM.finditer(html):
        parts += [_FORMULA.sub(_mathml, html[position : verbatim.start()]), verbatim[0]]
        position = verbatim.end()
    return "".join([*parts, _FORMULA.sub(_mathml, html[position:])])


def _names(toc: Iterable[AnchorLink]) -> Iterator[str]:
    for entry in toc:
        yield entry.id
        yield from _names(entry.children)


def _loads(script: str) -> bool:
    return re.search("mathjax|mermaid|^<script[^>]* src=", script, re.IGNORECASE) is not None


def _mathml(formula: re.Match[str]) -> str:
    block, inline = formula["block"], formula["inline"]
    return convert(entities.unescape(block or inline), display="block" if block else "inline")
