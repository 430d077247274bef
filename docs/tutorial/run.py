"""Runs the notebooks and keeps what they print and draw; the Chinese ones get the same code and outputs.

python docs/tutorial/run.py                    the full run, some minutes each; downloads Fashion-MNIST
python docs/tutorial/run.py --small --check    a run of seconds that writes nothing
python docs/tutorial/run.py 2_from_scratch     one of them

The English notebook is the source of the code. Its translation in zh/ has the same cells under the same ids,
with other prose; after a run it is given the English one's code and outputs.
"""

from __future__ import annotations

import argparse
import base64
import copy
import io
import os
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode
from PIL import Image

HERE = Path(__file__).parent
NAMES = tuple(path.stem for path in sorted(HERE.glob("[0-9]_*.ipynb")))


def read(path: Path) -> NotebookNode:
    """The notebook at ``path``, validated."""
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    return notebook


def execute(notebook: NotebookNode, small: bool = False) -> NotebookNode:
    """A copy of ``notebook``, run in a kernel of its own.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell raised.
    """
    notebook = copy.deepcopy(notebook)
    environment = {**os.environ, "FASTMLP_TUTORIAL": "small" if small else "full"}
    quiet = ["--log-level=ERROR"]  # the kernel's own warnings are not the notebook's
    client = NotebookClient(
        notebook, timeout=None, record_timing=False, coalesce_streams=True, extra_arguments=quiet
    )
    client.execute(cwd=str(HERE), env=environment)
    for cell in notebook.cells:
        if cell.cell_type == "code":  # what libraries say of this machine on stderr is not the notebook's
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                output.data["image/png"] = smaller(output.data["image/png"])
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python", "file_extension": ".py"},  # nothing of this machine
    }
    return notebook


def smaller(picture: str) -> str:
    """A PNG in base64 with a palette: a third of the bytes, and it looks the same."""
    buffer = io.BytesIO()
    image = Image.open(io.BytesIO(base64.b64decode(picture))).convert("RGB")
    # The method that leaves no rare colour out, such as that of the few wrong predictions.
    image.quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(
        buffer, "PNG", optimize=True
    )
    return base64.b64encode(buffer.getvalue()).decode()


def translated(source: NotebookNode, translation: NotebookNode) -> NotebookNode:
    """``translation``'s prose with ``source``'s code and outputs.

    Raises:
        ValueError: the two do not have the same cells.
    """
    ours, theirs = ([(c.id, c.cell_type) for c in n.cells] for n in (source, translation))
    if ours != theirs:
        differ = next(pair for pair in zip([*ours, None], [*theirs, None]) if pair[0] != pair[1])
        raise ValueError(f"the translation's cells differ: {differ[0]} in English, {differ[1]} in Chinese")
    result = copy.deepcopy(source)
    for cell, other in zip(result.cells, translation.cells):
        if cell.cell_type == "markdown":
            cell.source = other.source
    return result


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", choices=[*NAMES, []], metavar="NAME", help=", ".join(NAMES))
    parser.add_argument("--small", action="store_true", help="subsets of synthetic data, few epochs")
    parser.add_argument("--check", action="store_true", help="run, and write nothing")
    arguments = parser.parse_args()
    for name in arguments.names or NAMES:
        english, chinese = HERE / f"{name}.ipynb", HERE / "zh" / f"{name}.ipynb"
        start = time.perf_counter()
        result = execute(read(english), arguments.small)
        other = translated(result, read(chinese))
        if not arguments.check:
            nbformat.write(result, english)
            nbformat.write(other, chinese)
        print(f"{name}: {time.perf_counter() - start:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
