"""One command on a GPU: whatever a stage does, the next one starts and nothing measured is lost."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks import machine, page, readme, tables
from benchmarks.gpu import __main__ as command
from benchmarks.gpu import process, stages, summary
from benchmarks.gpu.conductor import Conductor, Options
from benchmarks.gpu.stages import Stage
from benchmarks.machine import describe
from benchmarks.peers import EAGER, OURS
from benchmarks.store import load
from fastmlp import files
from tests.benchmarks.stored import row, timing

_ROOT = Path(__file__).resolve().parents[2]


def _stages(*names: str, seconds: float = 30, patience: float = 2.0) -> tuple[Stage, ...]:
    return tuple(Stage(f"tests.benchmarks.gpu_stages:{name}", seconds, patience, name) for name in names)


def _run(out: Path, *names: str, minutes: float = 2, **options: Any) -> tuple[int, dict[str, Any]]:
    found = _stages(*names) if names else options.pop("stages")
    only = tuple(stage.name for stage in found)
    code = Conductor(Options(out, 60 * minutes, only, toy=True, stages=found, **options)).run()
    report = load(out) if (out / "report.json").is_file() else {}
    if report:
        report["stages"] = {name.partition(":")[2]: one for name, one in report["stages"].items()}
    return code, report


def _errors(report: dict[str, Any]) -> dict[str, str | None]:
    return {one["key"]: one.get("error") for one in report["rows"]}


@pytest.mark.deep
def test_whatever_a_stage_does_the_next_one_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, report = _run(tmp_path, "raises", "aborts", "hangs", "outside", "fine")
    assert code == 1
    states = {name: one["state"] for name, one in report["stages"].items()}
    assert states == {name: "failed" for name in ("raises", "aborts", "hangs", "outside")} | {
        "fine": "passed"
    }
    errors = {(one["stage"].partition(":")[2], one["key"]): one.get("error") for one in report["rows"]}
    assert errors["raises", "before"] is errors["raises", "after"] is None
    assert errors["raises", "raises"] == "ZeroDivisionError: integer division or modulo by zero"
    assert errors["aborts", "after"] is None
    assert "SIGABRT" in str(errors["aborts", "aborts"])
    assert "code 7" in str(errors["aborts", "leaves"])
    assert "hung: not a word for 2 s, at: launching epoch_kernel" in str(errors["hangs", "hangs"])
    assert errors["hangs", "after"] is None
    (hung,) = (one for one in report["rows"] if one["key"] == "hangs")
    assert "in hang" in hung["output"]  # where it was
    assert "what it said last" in report["stages"]["outside"]["why"]
    assert report["told"] == {"a": 1}
    assert (tmp_path / "beside.json").read_text() == "{}"
    screen = capsys.readouterr().out
    assert screen == (tmp_path / "summary.txt").read_text()
    assert "REHEARSAL" in screen
    assert "1.00e+00  5.00e-01" in screen
    assert "begin with «raises»: ZeroDivisionError" in screen
    assert len(list(tmp_path.iterdir())) <= 8


@pytest.mark.deep
def test_time_runs_out_and_resume_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of a stage that was cut, only what is missing is measured; a damaged report is put aside first."""
    (tmp_path / "report.json").write_text('{"machine": {"device"')
    (tmp_path / "report.json.0123abcd.part").write_text("half")
    cut = _stages("slow", seconds=0.5)
    code, report = _run(tmp_path, stages=(*cut, *_stages("fine")))
    assert code == 3  # nothing failed
    assert (tmp_path / "report.before.json").exists()
    assert not (tmp_path / "report.json.0123abcd.part").exists()
    slow = report["stages"]["slow"]
    assert slow["state"] == "out of time"
    assert 1 <= len(slow["done"]) <= 2
    assert slow["left_out"]
    assert "--resume" in capsys.readouterr().out
    code, after = _run(tmp_path, stages=(*_stages("slow"), *_stages("fine")), resume=True)
    assert code == 0
    assert after["stages"]["slow"]["state"] == "passed"
    assert {one["key"] for one in after["rows"]} == {"fine", *(f"slow {i}" for i in range(5))}
    before = {one["key"]: one for one in report["rows"]}
    again = {one["key"]: one for one in after["rows"]}
    assert all(again[key] == before[key] for key in before)


_KILLED = """
import sys
from pathlib import Path
from tests.benchmarks.test_gpu import _run
print(_run(Path(sys.argv[1]), "slow", resume=len(sys.argv) > 2)[0])
"""


def _lives(process: int) -> bool:
    """After a moment to die in."""
    for _ in range(20):
        try:
            if Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return False  # dead, and nobody has asked how yet
        except OSError:
            return False
        time.sleep(0.1)
    return True


@pytest.mark.deep
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_killed_at_any_moment_and_resumed(tmp_path: Path, how: signal.Signals) -> None:
    """Killed, it takes its stage's process along; interrupted, it still says how far it came."""
    words = [sys.executable, "-c", _KILLED, str(tmp_path)]
    conductor = subprocess.Popen(
        words, cwd=_ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    until = time.time() + 60
    rows: list[dict[str, Any]] = []
    while len(rows) < 2 and time.time() < until:
        time.sleep(0.05)
        if (tmp_path / "report.json").exists():
            rows = load(tmp_path)["rows"]
    conductor.send_signal(how)
    out, _ = conductor.communicate(timeout=30)
    assert len(rows) in (2, 3)
    if how == signal.SIGINT:
        assert out.splitlines()[-1] == "130"
        assert "interrupted" in (tmp_path / "summary.txt").read_text()
    assert not _lives(rows[0]["by"])
    done = subprocess.run([*words, "resume"], cwd=_ROOT, capture_output=True, text=True, timeout=90)
    assert done.stdout.splitlines()[-1] == "0", done.stderr
    after = load(tmp_path)["rows"]
    assert [one["key"] for one in after] == [f"slow {i}" for i in range(5)]
    assert after[: len(rows)] == rows


def test_a_full_disk_is_said_and_the_screen_has_everything(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, _: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(files, "write", full)
    code, _ = _run(tmp_path, "raises")
    assert code == 1
    out = capsys.readouterr().out
    assert "could not write" in out
    assert "No space left on device" in out
    assert "4 rows, 2 failed" in out


@pytest.mark.few(1)
@pytest.mark.parametrize(
    "damage",
    [
        {"rows": [1]}, {"stages": []}, {"left_out": None}, {"machine": 3},
        {"stages": {"tests.benchmarks.gpu_stages:fine": {"state": "passed", "of a later version": 1}}},
    ],
    ids=str,
)  # fmt: skip
def test_a_report_that_makes_no_sense_stops_nothing(tmp_path: Path, damage: dict[str, Any]) -> None:
    """It is put aside; of a stage that makes none, only the stage is measured anew."""
    there = {"machine": describe("cpu") | {"rehearsal": True}, "rows": [], "stops": {}, "left_out": []}
    (tmp_path / "report.json").write_text(json.dumps(there | damage))
    code, report = _run(tmp_path, "fine", resume=True)
    assert code == 0
    assert [one["key"] for one in report["rows"]] == ["fine"]


def test_a_folder_is_one_runs_at_a_time(tmp_path: Path) -> None:
    """And one that cannot be written to is refused before anything is measured."""
    first = Conductor(Options(tmp_path))
    with pytest.raises(OSError, match="another run is writing there"):
        Conductor(Options(tmp_path))
    os.close(first._alone)
    (tmp_path / "report.json").mkdir()
    with pytest.raises(IsADirectoryError):
        Conductor(Options(tmp_path))


def test_the_log_is_bounded_over_all_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_LOG", 100)
    for _ in range(3):
        log = process.Log(tmp_path / "log.txt", resume=True)
        for _ in range(5):
            log.write("a line of twenty......\n")
    assert 0 < (tmp_path / "log.txt").stat().st_size <= 100


@pytest.mark.deep
def test_a_copy_that_lost_its_links(tmp_path: Path) -> None:
    """A zip has no links: what they point to is found all the same."""
    for name in ("fastmlp", "kernels", "benchmarks"):
        left_out = shutil.ignore_patterns(
            "__pycache__", "results", "web", *(["kernels", "benchmarks"] * (name == "fastmlp"))
        )
        shutil.copytree(_ROOT / name, tmp_path / name, ignore=left_out)
    (tmp_path / "fastmlp" / "kernels").write_text("../kernels")  # as git writes it where it can't link
    code = (
        "import benchmarks.gpu.smoke, fastmlp.kernels.linear.forward as found, fastmlp.benchmarks.cases;"
        "print(found.__file__, fastmlp.benchmarks.cases.__file__)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [
        str(tmp_path / path) for path in ("kernels/linear/forward.py", "benchmarks/cases.py")
    ]


@pytest.mark.deep
def test_another_commits_report_is_put_aside(tmp_path: Path) -> None:
    other = describe("cpu") | {"commit": "other", "rehearsal": True}
    old = {"machine": other, "rows": [row("cases", "a", "b")], "stops": {}, "left_out": [], "stages": {}}
    (tmp_path / "report.json").write_text(json.dumps(old))
    _, report = _run(tmp_path, "fine", resume=True)
    assert [one["key"] for one in report["rows"]] == ["fine"]
    assert json.loads((tmp_path / "report.before.json").read_text()) == old


def test_a_copy_without_git_goes_by_its_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports of two of them must not become one."""

    def no_git(*_: object, **__: object) -> None:
        raise FileNotFoundError("git")

    monkeypatch.setattr(machine.subprocess, "run", no_git)
    assert describe("cpu")["commit"] == f"unknown, sources {machine.sources()}"
    assert machine.sources() == machine.sources()


def test_no_time_at_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, report = _run(tmp_path, "fine", minutes=0.01)
    assert (code, report) == (3, {})
    assert "not reached" in capsys.readouterr().out


def test_wrong_usage(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command.torch.cuda, "is_available", lambda: False)
    (tmp_path / "file").write_text("")
    for words, said in [
        (["--only", "smoke,all"], "all: expected facts, smoke"),
        (["--minutes", "0"], "--minutes 0: expected more than 0"),
        ([], "torch sees no GPU here; --rehearse"),
        (["--rehearse", "--out", str(tmp_path / "file")], "File exists"),
    ]:
        with pytest.raises(SystemExit) as stopped:
            command.main(["--out", str(tmp_path), *words])
        assert stopped.value.code == 2
        assert said in capsys.readouterr().err
    assert command._stages("tests,facts") == ("facts", "tests")


def _report() -> dict[str, Any]:
    """Of a GPU: a headline, one that is wrong, a kernel that failed."""
    good = row("cases", "training step (SGD)", "784-256-10, batch 256", stage="headlines", foretold=8e-6)
    good["worst"] = {"what": "result 0", "error": 1e-7, "allowed": 2e-7}
    fast = row("cases", "linear + bias + ReLU forward", "8192", "bfloat16", stage="headlines")
    fast |= {"error": "wrong: result 0 is off by 1e-1, allowed 1e-2", "seconds": {EAGER: timing(1e-3)}}
    kernel = row("smoke", "kernels", "head, bf16", "bf16", stage="smoke", seconds={}, important=False)
    kernel |= {"error": "dW is off", "worst": {"what": "dW", "error": 1e-1, "allowed": 1e-2}}
    stand = {
        "state": "passed",
        "seconds": 8.0,
        "why": "",
        "note": "",
        "failed": 0,
        "done": ["a"],
        "left_out": [],
    }
    gpu = describe("cpu") | {"kind": "gpu", "device": "NVIDIA H200", "commit": "abc1234"}
    return {
        "machine": gpu,
        "ceilings": {"copy": {"65536": 5e10}, "matmul": {"float32": 2e11}, "launch": 3e-7},
        "rows": [good, fast, kernel], "stops": {}, "left_out": [],
        "stages": {
            "smoke": stand | {"state": "failed", "failed": 1},
            "headlines": stand | {"state": "out of time", "left_out": ["the rest"]},
        },
    }  # fmt: skip


def test_a_wrong_number_is_not_hidden_by_a_fast_one() -> None:
    screen = summary.text(_report(), Path("out"))
    lines = screen.splitlines()
    (wrong,) = (line for line in lines if line.startswith("linear + bias + ReLU forward"))
    assert "FAILED: wrong: result 0 is off" in wrong
    assert "ms" not in wrong
    good = next(line for line in lines if line.startswith("training step"))
    assert {"40%", "8", "µs", "2.00×", "0.50×"} <= set(good.split())
    worst = lines[next(i for i, line in enumerate(lines) if line.startswith("worst errors")) + 1]
    assert worst.startswith("kernels, head, bf16")
    assert max(map(len, lines)) <= 160
    assert len(lines) < 50


def test_the_readers_read_it(tmp_path: Path) -> None:
    """One command stores the report; picture, table and page are made from it."""
    out, results, kernels = tmp_path / "out", tmp_path / "results", tmp_path / "kernels"
    out.mkdir()
    kernels.mkdir()
    report = _report()
    (out / "report.json").write_text(json.dumps(report))
    (out / "decisions.json").write_text('{"new": 1}')
    (kernels / "decisions.json").write_text('{"old": 2}')
    folder = readme.store(out, results, kernels)
    assert folder == results / "gpu-nvidia-h200"
    assert {"report.json", "table.md", "headline.svg", "speedup.svg"} <= {
        path.name for path in folder.iterdir()
    }
    assert json.loads((kernels / "decisions.json").read_text()) == {"new": 1, "old": 2}
    table = (folder / "table.md").read_text()
    assert "| smoke | failed | 1 | 1 | 0 | - |" in table
    assert "dW is off" in table
    marks = "<!-- {0}: begin -->\n<!-- {0}: end -->\n"
    blank = "".join(map(marks.format, (readme.PICTURE, readme.TABLE, readme.HOST_TABLE)))
    text = readme.updated(blank, results, {})
    assert "benchmarks/results/gpu-nvidia-h200/headline.png" in text
    assert "784-256-10, batch 256" in text
    assert "dW is off" in json.dumps(page.texts(load(folder)))
    assert OURS in tables.full(report)


def test_a_rehearsal_is_not_stored(tmp_path: Path) -> None:
    report = _report()
    report["machine"]["rehearsal"] = True
    (tmp_path / "report.json").write_text(json.dumps(report))
    with pytest.raises(ValueError, match="rehearsal"):
        readme.store(tmp_path, tmp_path / "results")
    assert not (tmp_path / "results").exists()


_BARE = """
import sys
class Bare:
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top in {lacking}:
            raise ModuleNotFoundError(f"no {{name}}", name=name)
sys.meta_path.insert(0, Bare())
import importlib
for name in {names}:
    importlib.import_module(f"benchmarks.gpu.{{name}}")
assert not {{"matplotlib", "typer"}} & set(sys.modules)
"""


@pytest.mark.deep
def test_a_bare_machine_has_all_it_needs() -> None:
    """No extra of ours is imported: the lent machine has torch, Triton, pytest, xdist and hypothesis."""
    lacking = {
        "typer", "rich", "matplotlib", "sklearn", "torchvision", "pytest_benchmark", "plotly", "safetensors",
        "pandas", "jax", "scipy", "tensorboard", "lightning", "timm",
    }  # fmt: skip
    code = _BARE.format(lacking=lacking, names=[*stages.NAMES, "__main__"])
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=_ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
