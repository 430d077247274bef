"""The pages that say how something is added: their diffs still apply, and what they add passes its tests."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.installs import ROOT, clone, run

#: A page, and the tests that its addition brings or touches.
PAGES = {
    "add_an_activation.md": ("tests/fastmlp/test_activations.py", "tests/kernels/common/test_activations.py"),
    "add_a_kernel.md": ("tests/kernels/loss/test_logsumexp.py", "tests/fastmlp/costs/test_launches.py"),
}


def diff_of(page: str) -> str:
    (found,) = re.findall(
        r"^```diff\n(.*?)^```$", (ROOT / "docs" / page).read_text(), re.DOTALL | re.MULTILINE
    )
    return str(found)


def applied(page: str, folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = ["git", "apply", *options, "-"]
    return subprocess.run(command, cwd=folder, input=diff_of(page), capture_output=True, text=True)


@pytest.mark.parametrize("page", PAGES)
def test_the_diff_applies(page: str) -> None:
    assert applied(page, ROOT, "--check").stderr == ""


@pytest.mark.deep
@pytest.mark.parametrize("page", PAGES)
def test_what_is_added_passes(page: str, tmp_path: Path) -> None:
    folder = clone(tmp_path / "clone")
    assert applied(page, folder).stderr == ""
    words = ["-q", "-p", "no:cacheprovider", "-m", "not deep", *PAGES[page]]
    done = run([sys.executable, "-m", "pytest", *words], folder, PYTHONPATH=str(folder / ".src"))
    assert done.returncode == 0, done.stdout + done.stderr
