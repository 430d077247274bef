"""Pythons of their own, clones of the tree, and what is installed from them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent


def run(command: Iterable[str | Path], cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run it with no GPU, and nothing of this process' environment that could help it."""
    kept = {
        k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "TRITON", "FASTMLP", "PYTEST"))
    }
    return subprocess.run(
        list(map(str, command)),
        cwd=cwd,
        env=kept | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "COLUMNS": "200"} | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


def listed(*folders: str) -> list[str]:
    """What a clone has of these folders, or of all: files and links, those not yet committed too."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", *folders]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return [name for name in done.stdout.split("\0") if name and os.path.lexists(ROOT / name)]


def clone(folder: Path) -> Path:
    """The tree as a clone in ``folder`` would have it."""
    for name in listed():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name, follow_symlinks=False)
    return folder


def python(folder: Path, package: Path | str, *options: str) -> Path:
    """A Python in ``folder`` with fastmlp from a wheel, or by `-e` from a clone, and nothing else."""
    venv.create(folder, with_pip=False)
    made = folder / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", made, "install", "-q", "--no-index", "--no-deps"]
    done = run([*pip, *options, package], folder)
    assert done.returncode == 0, done.stderr
    return made


def site(python: Path) -> Path:
    """Its site-packages."""
    (found,) = (python.parent.parent / "lib").glob("python*/site-packages")
    return found


def see_this_environment(python: Path) -> None:
    """Let it see what is installed here, fastmlp's editable install apart."""
    folders = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    (site(python) / "here.pth").write_text("\n".join(folders))


def closure(*names: str) -> set[str]:
    """Distributions that these need, themselves included."""
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop().lower().replace("_", "-")
        if name in found:
            continue
        found.add(name)
        wanted = map(Requirement, metadata.requires(name) or ())
        waiting += [w.name for w in wanted if w.marker is None or w.marker.evaluate({"extra": ""})]
    return found


def link(names: Iterable[str], folder: Path) -> None:
    """Make what these distributions install visible in ``folder``, whatever else lies beside it."""
    for name in names:
        distribution = metadata.distribution(name)
        tops = {
            file.parts[0] for file in distribution.files or () if file.parts[0] not in ("..", "__pycache__")
        }
        for top in tops:
            place = folder / top
            if not place.exists():
                place.symlink_to(Path(str(distribution.locate_file(top))).resolve())
