"""Notebooks without MathJax and Mermaid, which they would load from the network: formulas become MathML."""

from __future__ import annotations

import html as entities
import re
from typing import Any

from latex2mathml.converter import convert
from mkdocs.structure.pages import Page

_VERBATIM = re.compile(r"(<(?P<tag>pre|code|script|style|svg)\b.*?</(?P=tag)>|<[^>]+>)", re.DOTALL)
_FORMULA = re.compile(r"\$\$(?P<block>.+?)\$\$|\$(?P<inline>[^$]+?)\$", re.DOTALL)
_SCRIPT = re.compile(r"<script\b[^>]*>.*?</script>", re.DOTALL)


def on_page_content(html: str, page: Page, **_: Any) -> str:
    """Convert the formulas of a notebook, and leave out the scripts that would have."""
    if not page.file.src_uri.endswith(".ipynb"):
        return html
    html = _SCRIPT.sub(lambda script: "" if _loads(script[0]) else script[0], html)
    position, parts = 0, []
    for verbatim in _VERBATIM.finditer(html):
        parts += [_FORMULA.sub(_mathml, html[position : verbatim.start()]), verbatim[0]]
        position = verbatim.end()
    return "".join([*parts, _FORMULA.sub(_mathml, html[position:])])


def _loads(script: str) -> bool:
    return re.search("mathjax|mermaid|^<script[^>]* src=", script, re.IGNORECASE) is not None


def _mathml(formula: re.Match[str]) -> str:
    block, inline = formula["block"], formula["inline"]
    return convert(entities.unescape(block or inline), display="block" if block else "inline")
