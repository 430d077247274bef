"""The two READMEs say the same: code, headings, tables, numbers and links."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ENGLISH, CHINESE = (ROOT / name for name in ("README.md", "README.zh-CN.md"))
_LINK = re.compile(r"\]\(([^)\s]+)\)")


def code(path: Path) -> list[str]:
    return re.findall(r"^```\w*\n(.*?)^```", path.read_text(), re.DOTALL | re.MULTILINE)


def prose(path: Path) -> str:
    return re.sub(r"^```.*?^```", "", path.read_text(), flags=re.DOTALL | re.MULTILINE)


def test_their_code_is_the_same() -> None:
    assert code(ENGLISH) == code(CHINESE)
    assert len(code(ENGLISH)) == 3


def test_their_shape_is_the_same() -> None:
    for pattern in (r"^#+ ", r"^\|", r"^!\[", r"^- ", r"^<!-- .*-->$"):
        english, chinese = (
            re.findall(pattern, path.read_text(), re.MULTILINE) for path in (ENGLISH, CHINESE)
        )
        assert english == chinese
        assert english


def test_their_numbers_are_the_same() -> None:
    english, chinese = (sorted(re.findall(r"\d+\.\d+", prose(path))) for path in (ENGLISH, CHINESE))
    assert english == chinese
    assert len(english) > 100


def test_their_links_are_the_same_and_lead_somewhere() -> None:
    own = {
        ENGLISH.name: "README",
        CHINESE.name: "README",
        "docs/tutorial/zh/index.md": "docs/tutorial/index.md",
    }
    english, chinese = (
        sorted(
            own.get(link, link).replace("https://zh.d2l.ai", "https://d2l.ai") for link in _LINK.findall(text)
        )
        for text in (prose(ENGLISH), prose(CHINESE))
    )
    assert english == chinese
    for path in (ENGLISH, CHINESE):
        for link in _LINK.findall(prose(path)):
            assert link.startswith("https://") or (ROOT / link.partition("#")[0]).exists(), link
