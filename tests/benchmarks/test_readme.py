"""docs/performance.md and the README's section are what the stored reports say."""

from __future__ import annotations

import json
import re
from pathlib import Path

from benchmarks import readme
from tests.benchmarks.stored import report


def test_the_page_and_the_readmes_are_up_to_date() -> None:
    """Else: python -m benchmarks.readme."""
    stored = readme.folders(readme.RESULTS)
    assert readme.PAGE.read_text() == readme.page(stored, "../benchmarks/results")
    for name, words in readme.READMES.items():
        text = (readme.PAGE.parents[1] / name).read_text()
        assert readme.updated(text, readme.RESULTS, words) == text


def test_the_chinese_table_is_chinese() -> None:
    text = (readme.PAGE.parents[1] / "README.zh-CN.md").read_text()
    rows = text.partition("<!-- benchmarks: begin -->")[2].splitlines()
    works = [row.split(" | ")[0] for row in rows if row.endswith("% |")]
    assert len(works) > 20
    assert not [work for work in works if not re.search("[\u4e00-\u9fff]", work)]


def test_a_page_has_each_machine_its_tables_and_its_pictures(tmp_path: Path) -> None:
    for name in ("cpu-some-2", "gpu-some"):
        stored = report()
        stored["machine"] |= {"kind": name[:3], "device": name}
        (tmp_path / name).mkdir()
        (tmp_path / name / "report.json").write_text(json.dumps(stored))
    (tmp_path / "gpu-some" / "accuracy.svg").touch()
    text = readme.page(readme.folders(tmp_path), "up")
    assert text.index("## gpu-some") < text.index("## cpu-some-2, ")
    assert text.count("### Targets") == text.count("### Missing") == 2
    assert text.count("](up/gpu-some/accuracy.svg)") == 1
    assert "accuracy on Fashion-MNIST](up/cpu-some-2/" not in text
    assert "no GPU has run" not in text
    assert "no GPU has run" in readme.page([tmp_path / "cpu-some-2"], "up")
