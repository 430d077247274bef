"""The code of a page, and what a comment above it says about running it.

``<!-- run with: A → B -->``   its test puts B for A, which is too long, or too large, for a test
``<!-- run first: CODE -->``   what a reader has already, such as a file of his own
``<!-- not run: REASON -->``   nobody can run it here
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from tests.installs import ROOT

PAGES = [
    "README.md",
    *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md") if "zh" not in path.parts),
]
LANGUAGES = ("sh", "console", "python")
_BLOCK = re.compile(r"((?:^<!-- .*? -->\n)*)^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
_MARK = re.compile(r"<!-- (run with|run first|not run): (.*?) -->", re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block."""

    place: str  # page:line
    language: str
    text: str
    marks: tuple[tuple[str, str], ...]

    def of(self, mark: str) -> list[str]:
        """What the marks of this kind say."""
        return [value for kind, value in self.marks if kind == mark]

    def runnable(self) -> str:
        """As the test runs it."""
        text = self.text
        for replaced in self.of("run with"):
            before, _, after = replaced.partition(" → ")
            assert before in text, f"{self.place}: there is no {before!r}"
            text = text.replace(before, after)
        return "\n".join([*self.of("run first"), text])

    def commands(self) -> list[tuple[str, list[str]]]:
        """(command, the errors that the page shows for it) in order; of a transcript those behind a `$`."""
        text = self.runnable().replace("\\\n", " ")
        if self.language == "sh":
            lines = [line.split("  #")[0].strip() for line in text.splitlines()]
            return [(line, []) for line in lines if line and not line.startswith("#")]
        found: list[tuple[str, list[str]]] = [(first, []) for first in self.of("run first")]
        for line in text.splitlines():
            if line.startswith("$ "):
                found.append((line[2:], []))
            elif line.startswith("error: "):
                found[-1][1].append(line)
        return found


def blocks(page: str) -> list[Block]:
    """Those of a page that are commands or Python."""
    text = (ROOT / page).read_text()
    return [
        Block(
            f"{page}:{text[: match.start(2)].count(chr(10)) + 1}",
            match[2],
            match[3],
            tuple(_MARK.findall(match[1])),
        )
        for match in _BLOCK.finditer(text)
        if match[2] in LANGUAGES
    ]
