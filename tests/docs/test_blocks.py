"""Every command and every piece of Python in README and docs runs, as a stranger would run it.

In a clone of its own with nothing beside it, from an empty home, with no network and no GPU.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from tests.docs.blocks import PAGES, Block, blocks
from tests.installs import ROOT, clone

READER = Path(__file__).with_name("reader.py").read_text()
#: A port where nobody listens: a download fails at once, as where there is no network.
NOWHERE = "http://127.0.0.1:9"


def stranger(folder: Path) -> tuple[Path, dict[str, str]]:
    """A clone and the environment of one who has installed it, by the package's own way, in a fresh venv."""
    home = clone(folder / "clone")
    (folder / "home").mkdir()
    venv.create(folder / "venv", with_pip=False)
    programs = folder / "venv" / "bin"
    for name, module in {"fastmlp": "fastmlp", "pip": "pip", "torchrun": "torch.distributed.run"}.items():
        (programs / name).write_text(f'#!/bin/sh\nexec {programs / "python"} -m {module} "$@"\n')
        (programs / name).chmod(0o755)
    installed = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    kept = {
        k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "TRITON", "FASTMLP", "PYTEST"))
    }
    return home, kept | {
        "HOME": str(folder / "home"),
        "PATH": os.pathsep.join([str(programs), kept["PATH"]]),
        "PYTHONPATH": os.pathsep.join([str(home / ".src"), *installed]),
        "COLUMNS": "200",
        "CUDA_VISIBLE_DEVICES": "",
        "MPLBACKEND": "agg",
        "OMP_NUM_THREADS": "1",
        **dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), NOWHERE),
        **{"PIP_NO_INDEX": "1", "PIP_NO_DEPS": "1", "PIP_NO_BUILD_ISOLATION": "0"},  # which means: none
    }


def steps(block: Block) -> list[tuple[str, str, str, list[str]]]:
    """(language, place, code, errors that it ends in)."""
    if block.language == "python":
        return [("python", block.place, block.runnable(), [])]
    return [("sh", block.place, command, errors) for command, errors in block.commands()]


@pytest.mark.deep
def test_every_page_runs(tmp_path: Path) -> None:
    pages = [[s for block in blocks(page) if not block.of("not run") for s in steps(block)] for page in PAGES]
    home, environment = stranger(tmp_path)
    done = subprocess.run(
        [tmp_path / "venv" / "bin" / "python", "-c", READER],
        input=json.dumps([[step[:3] for step in page] for page in pages]),
        cwd=home,
        env=environment,
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    answers = map(json.loads, done.stdout.splitlines())
    failed = []
    for page, found in zip(pages, answers, strict=True):
        for (_, place, code, errors), (status, said) in zip(page, found, strict=True):
            if (status != 0) != bool(errors) or not all(error in said for error in errors):
                failed.append(f"{place}: {code}\nended with {status}: {said[-2000:]}")
    assert not failed, "\n\n".join(failed)


def test_what_is_not_run_has_its_reason() -> None:
    """A new exception is added here, where it is seen."""
    found = [reason for page in PAGES for block in blocks(page) for reason in block.of("not run")]
    assert all(len(reason.split()) > 3 for reason in found), found
    assert len(found) == 16, found


def test_nothing_is_named_that_a_clone_lacks() -> None:
    """What lies beside our own clones is in nobody else's."""
    texts = [*PAGES, "README.zh-CN.md", "CONTRIBUTING.md"]
    texts += [str(path.relative_to(ROOT)) for path in (ROOT / "examples").glob("*.py")]
    texts += [str(path.relative_to(ROOT)) for path in (ROOT / "fastmlp").rglob("*.py")]
    assert not [path for path in texts if "../shared" in (ROOT / path).read_text()]
