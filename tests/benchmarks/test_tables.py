"""Tables, targets and pictures of a stored report; the README's section."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import cases, palette, peers, plots, readme, tables, targets, whole_net
from benchmarks.epochs import EPOCH
from benchmarks.machine import describe, folder
from benchmarks.peers import EAGER, GRAPH, JAX, OURS, PEERS
from tests.benchmarks.stored import host_row, report, row, timing


def test_the_full_table_has_every_row_peer_and_reason() -> None:
    text = tables.full(report())
    size = f"{cases.name(cases.A)}, batch 256"
    assert f"| {cases.STEP} | {size} | float32 | fastmlp | 1 ms (0.9-1.1) | - | 40% |" in text
    assert "|  |  |  | eager | 2 ms (1.8-2.2) | 2.00× |  |" in text
    assert "|  |  |  | JAX | 500 µs (450-550) | 0.50× |  |" in text
    assert "error: fastmlp: RuntimeError: no" in text
    assert "eager, CUDA graph: needs a GPU (6 rows)" in text
    assert "Stopped before batch 64: a call would take about 4 s (limit 2)." in text
    assert "not measured for want of time: sweeps: depth" in text
    assert "| 1.05 s (1 s-1.1 s) |" in text
    assert "| copy, 64 KiB | 50 GB/s |" in text
    assert "1 MiB" in text


def test_a_small_nets_plans_stand_beside_its_times() -> None:
    seconds = {OURS: timing(1e-3), EAGER: timing(3e-3), peers.OURS_PLANS["whole"]: timing(0.9e-3)}
    work = {"operations": 2_000_000_000, "bytes": 3 << 20, "launches": 4, "floor": 0.5e-3}
    plans = {"eager": work | {"launches": 45}, "layers": work, "whole": work}
    stored = report()
    stored["rows"].append(row("cases", whole_net.TRAINING, "policy", seconds=seconds, plans=plans))
    text = tables.full(stored)
    assert (
        f"| {whole_net.TRAINING} | policy | float32 | eager | 45 | 2 | 3 MiB | 500 µs | 3 ms (2.7-3.3) |"
        in text
    )
    assert "|  |  |  | layers | 4 | 2 | 3 MiB | 500 µs | not measured here |" in text
    assert "|  |  |  | whole | 4 | 2 | 3 MiB | 500 µs | 900 µs (810-990) |" in text
    assert "## Plans of small nets" not in tables.full(report())


def test_the_readme_has_the_rows_that_matter() -> None:
    text = tables.short(report(), "x/speedup.png")
    assert "![speed relative to eager PyTorch](x/speedup.png)" in text
    assert "| 2.00× | 0.50× (JAX) | 40% |" in text
    assert "batch 16 " not in text
    assert "1 of the 3 targets" not in text  # the sweep's counts as well
    assert "Missed: cross-entropy 256 x 10 (0.50× over eager, wanted >= 1×)." in text


def test_targets_are_met_missed_or_not_measured() -> None:
    found = {(t["kind"], t["what"]): t for t in targets.evaluate(report())}
    met = found["cpu", f"step {cases.name(cases.A)}, batch 256, float32"]
    assert (met["measured"], met["verdict"], met["where"]) == (2.0, "met", "over eager")
    missed = found["cpu", "cross-entropy 256 x 10"]
    assert (missed["measured"], missed["verdict"]) == (0.5, "missed")
    assert found["cpu", "every point of the sweeps"]["verdict"] == "met"
    assert found["cpu", "cross-entropy 4096 x 1000"]["verdict"] == "not measured here"
    assert {t["verdict"] for (kind, _), t in found.items() if kind == "gpu"} == {"not measured here"}


@pytest.mark.parametrize(("value", "verdict"), [(0.996, "met"), (0.994, "missed")])
def test_a_target_goes_by_the_digits_that_are_shown(value: float, verdict: str) -> None:
    target = targets.Target("cpu", "x", 1.0, lambda rows: [(value, "")])
    assert target.verdict(target.measured([])) == verdict


def test_a_gpus_targets() -> None:
    stored = report()
    stored["machine"]["kind"] = "gpu"
    seconds = {OURS: 2e-3, EAGER: 40e-3, GRAPH: 5e-3, JAX: 4e-3}
    stored["rows"] = [
        row("epochs", EPOCH, "784-256-10", dtype, seconds={k: timing(v) for k, v in seconds.items()})
        for dtype in ("float32", "bfloat16")
    ]
    found = {t["what"]: t for t in targets.evaluate(stored) if t["kind"] == "gpu"}
    assert found["10 epochs of 784-256-10"]["measured"] == 20.0
    assert found["10 epochs of 784-256-10"]["verdict"] == "met"
    assert found["10 epochs of 784-256-10 (stretch)"]["verdict"] == "missed"
    assert found["a step of an epoch over eager"]["measured"] == 20.0
    assert found["a step of an epoch over eager in a CUDA graph"]["verdict"] == "missed"


def test_a_gpus_targets_of_this_kind_of_net_and_loss() -> None:
    stored = report()
    stored["machine"]["kind"] = "gpu"
    head = {OURS: timing(2e-3), EAGER: timing(3e-3), peers.TORCH_LINEAR: timing(1.8e-3)}
    graphs = {OURS: timing(5e-3), peers.OURS_GRAPH: timing(1e-3), GRAPH: timing(2e-3), EAGER: timing(9e-3)}
    plans = {OURS: timing(5e-3), peers.OURS_PLANS["whole"]: timing(1e-3), peers.TCNN: timing(4e-3)}
    stored["rows"] = [
        row(
            "cases", cases.HEAD, "8192 x 4096 -> 128256", "bfloat16", seconds=head,
            memory={OURS: 200, EAGER: 4000},
        ),
        row("cases", whole_net.FORWARD, "policy", seconds=graphs),
        row("cases", whole_net.TRAINING, "policy", seconds=graphs),
        row("cases", whole_net.TRAINING, "table", seconds=plans),
        row("sweeps", whole_net.FORWARD, "policy", seconds={OURS: timing(2.0), EAGER: timing(1.0)}),
    ]  # fmt: skip
    found = {t["what"]: t for t in targets.evaluate(stored) if t["kind"] == "gpu"}
    size = "linear + cross-entropy 8192 x 4096 -> 128256, bfloat16"
    loss = found[f"{size}, over torch, Liger and eager"]
    assert (loss["measured"], loss["verdict"]) == (0.9, "missed")
    assert loss["where"] == f"over {peers.TORCH_LINEAR}"
    held = found[f"peak memory of {size}"]
    assert (held["measured"], held["wanted"], held["verdict"]) == (5.0, "<= 10%", "met")
    assert found[f"{whole_net.FORWARD}, over every peer"]["measured"] == 2.0
    worst = found[f"{whole_net.TRAINING}, over every peer"]
    assert (worst["measured"], worst["verdict"]) == (0.8, "missed")  # another plan of ours is no peer of ours
    assert worst["where"] == "over tiny-cuda-nn, table, float32"
    assert found[f"{whole_net.DROPOUT}, bfloat16"]["verdict"] == "not measured here"


def test_pictures_of_every_part(tmp_path: Path) -> None:
    plots.draw(report(), tmp_path)
    for name in ("headline", "speedup", "sweep-batch", "accuracy"):
        for kind in ("png", "svg"):
            assert (tmp_path / f"{name}.{kind}").stat().st_size > 1000
    text = (tmp_path / "sweep-batch.svg").read_text()
    assert text.startswith("<?xml")


def test_every_peer_has_a_colour_of_its_own() -> None:
    assert set(palette.COLOURS) == set(PEERS)
    assert len(set(palette.COLOURS.values())) == len(PEERS)


def test_an_empty_report_draws_nothing(tmp_path: Path) -> None:
    plots.draw(report() | {"rows": []}, tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_readmes_are_made_from_what_is_stored(tmp_path: Path) -> None:
    """A GPU's report comes first, of each kind the newest alone; nothing outside the markers changes."""
    for name, date in (("cpu-small", "2026-02-02"), ("gpu-large", "2026-01-01"), ("cpu-old", "2025-12-31")):
        (tmp_path / name).mkdir()
        stored = report()
        stored["machine"]["date"] = date
        (tmp_path / name / "report.json").write_text(json.dumps(stored))
    assert [folder.name for folder in readme.folders(tmp_path)] == ["gpu-large", "cpu-small", "cpu-old"]
    text = "before\n<!-- {0}: begin -->\nold\n<!-- {0}: end -->\nafter\n"
    blank = "".join(map(text.format, (readme.PICTURE, readme.TABLE, readme.HOST_TABLE)))
    (tmp_path / readme.HOST).write_text(json.dumps({"machine": report()["machine"], "rows": [host_row()]}))
    for words in readme.READMES.values():
        made = readme.updated(blank, tmp_path, words)
        assert made.index("gpu-large/headline.png") < made.index("gpu-large/table.md")
        assert made.index("gpu-large/table.md") < made.index("cpu-small/table.md")
        assert "cpu-small/headline.png" not in made
        assert "cpu-old" not in made
        assert "old" not in made
        assert made.rindex(readme.HOST_TABLE) > made.index(
            "| 10 µs (9-11); 1 | 20 µs (18-22); 2 | 0.50 | 1.5 |"
        )
        unmade = made
        for marker in (readme.PICTURE, readme.TABLE, readme.HOST_TABLE):
            unmade = readme.between(unmade, marker, "old\n")
        assert unmade == blank
        assert readme.updated(made, tmp_path, words) == made


def test_a_report_says_what_its_host_time_is() -> None:
    for added, meaning in ((2.5e-6, "The host's time with the GPU stubbed"), (0.0, "The time of a call")):
        stored = report()
        stored["rows"] += [host_row(added=added), host_row(added=added, seconds={}, skipped="no Triton")]
        section = tables.full(stored).partition("## Host time of a call\n\n")[2].partition("\n\n## ")[0]
        assert section.startswith(meaning)
        assert section.count("a call, no grad") == 1


def test_a_machines_folder() -> None:
    assert folder({"kind": "cpu", "device": "AMD EPYC", "cores": 2}) == "cpu-amd-epyc-2"
    xeon = {"kind": "cpu", "device": "Intel(R) Xeon(R) Processor", "cores": 2}
    assert folder(xeon) == "cpu-intel-xeon-2"
    assert folder({"kind": "gpu", "device": "NVIDIA H200", "cores": 16}) == "gpu-nvidia-h200"
    assert describe("cpu")["versions"]["torch"]
