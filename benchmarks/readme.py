"""``python -m benchmarks.readme``: the READMEs' picture and table, and docs/performance.md, from reports.

``--add DIR`` first stores the report that DIR holds, with its table and pictures, and what was tuned with it.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import typer

from fastmlp import files

from . import accuracy, machine, tables, targets
from . import report as report_of
from .store import load, write
from .sweeps import SWEEPS

_ROOT = Path(__file__).resolve().parent.parent
RESULTS = _ROOT / "benchmarks" / "results"
PAGE = _ROOT / "docs" / "performance.md"
#: What `python -m benchmarks.host --json` wrote.
HOST = "host.json"
PICTURE, TABLE, HOST_TABLE = "picture", "benchmarks", "host"
_CHINESE = {
    " Every row, every peer and what was missed: ": "所有行、所有对比对象以及未达到的目标：",
    "/table.md).": "/table.md)。",
    " of the ": " / ",
    " targets measured here are met.": " 个在此测量的目标已达到。",
    "Speed relative to eager PyTorch": "相对于 PyTorch 即时执行（eager）的速度",
    "vs the fastest other": "比其他最快者",
    "floor / time": "下限 / 时间",
    "vs eager": "比 eager",
    "| work |": "| 任务 |",
    "| size |": "| 规模 |",
    "| dtype |": "| 类型 |",
    "training step (SGD)": "训练步（SGD）",
    "cross-entropy forward + backward": "交叉熵，前向 + 反向",
    "fused MLP forward + backward": "融合 MLP，前向 + 反向",
    "fused MLP forward": "融合 MLP，前向",
    "radiance field ": "辐射场 ",
    "distance field ": "距离场 ",
    "policy ": "策略网络 ",
    "tabular ": "表格数据 ",
    "epoch, data on the device": "一个迭代周期，数据在设备上",
    "| inference |": "| 推理 |",
    "| call |": "| 调用 |",
    "; launches": "；启动次数",
    "| must | stretch |": "| 必须 | 争取 |",
    "narrow net, loss, backward": "窄网络、损失、反向",
    "net, loss, backward": "网络、损失、反向",
    "narrow net 64 (x 5)-10 forward": "窄网络 64 (x 5)-10 前向",
    "net 784-256-10 forward": "网络 784-256-10 前向",
    "squared error forward + backward": "平方误差，前向 + 反向",
    "linear cross-entropy, ": "线性 + 交叉熵，",
    " classes, forward + backward": " 类，前向 + 反向",
    "training step with SGD": "训练步（SGD）",
    ", engine eager": "，eager 引擎",
    "timm's Mlp 64-256-64 by fuse": "timm 的 Mlp 64-256-64，经 fuse",
    ", forward + backward": "，前向 + 反向",
    ", no grad": "，不求梯度",
    ", recording": "，记录计算图",
    ", batch ": "，批量 ",
    ", 60000 images": "，60000 张图像",
}
#: Each README with its words for those of the tables.
READMES: dict[str, dict[str, str]] = {"README.md": {}, "README.zh-CN.md": _CHINESE}
_PAGE_HEAD = """<!-- Made by `python -m benchmarks.readme`. -->
# Performance

How fast fastmlp is beside its peers, and where it is slower. Every number was measured on the machine that
its section names, in turns with the peers;
{missing}the command is
`python -m benchmarks.report --out DIR`. The *floor* is the least time that the work could take on that
machine, by its own measured ceilings.
"""
_NO_GPU = "**no GPU has run this project yet, so there is no GPU time here**; "

#: Files beside a report of `benchmarks.gpu` that the package ships.
TUNED = ("tiles.json", "decisions.json")


def main(
    results: Path = typer.Option(RESULTS, help="Holds a folder for each kind of machine."),
    add: Path | None = typer.Option(None, metavar="DIR", help="Store the report in DIR first."),
) -> None:
    """Put what the reports say between the markers of the READMEs, and all of it on the page."""
    if add is not None:
        try:
            print(f"stored in {store(add, results)}")
        except (OSError, ValueError, LookupError) as error:
            raise typer.BadParameter(f"--add {add}: {error}") from error
    for name in READMES:
        path = _ROOT / name
        path.write_text(updated(path.read_text(), results, READMES[name]))
    PAGE.write_text(page(folders(results), "../benchmarks/results"))


def store(report: Path, results: Path, tiles: Path = _ROOT / "kernels" / "tiles") -> Path:
    """Keep a report in its machine's folder, which is returned; tuned tiles and decisions go to ``tiles``.

    Raises:
        ValueError: it is a rehearsal's, which says nothing of any machine, or not a report.
        OSError: there is none.
    """
    found: dict[str, Any] = load(report)
    if found["machine"].get("rehearsal"):
        raise ValueError("a rehearsal's times say nothing of this machine: it is not stored")
    found["targets"] = targets.evaluate(found)
    folder = results / machine.folder(found["machine"])
    write(folder / "report.json", found)
    report_of.finish(folder)
    for name in TUNED:
        if (report / name).exists():
            merged = json.loads((tiles / name).read_text()) | json.loads((report / name).read_text())
            files.write(tiles / name, [json.dumps(merged, indent=1, sort_keys=True).encode(), b"\n"])
    return folder


def updated(text: str, results: Path, words: dict[str, str]) -> str:
    """A README with the picture and the table of the newest report, in its own words; a GPU's comes first."""
    found = newest(folders(results))
    names = [f"benchmarks/results/{folder.name}" for folder in found]
    picture = f"![Speed relative to eager PyTorch]({names[0]}/headline.png)\n" if names else ""
    table = "\n".join(tables.readme(load(folder), name) for folder, name in zip(found, names))
    parts = {PICTURE: picture, TABLE: table, HOST_TABLE: _host(results / HOST)}
    for marker, part in parts.items():
        for phrase, own in words.items():
            part = part.replace(phrase, own)
        text = between(text, marker, part)
    return text


def _host(path: Path) -> str:
    if not path.exists():
        return ""
    report = json.loads(path.read_text())
    return f"{tables.machine(report['machine'])}\n\n{tables.host(report['rows'])}\n"


def folders(results: Path) -> list[Path]:
    """Folders with a report: GPUs first, then CPUs, each newest first."""
    by_date = sorted(results.glob("*/report.json"), key=lambda path: load(path.parent)["machine"]["date"])
    return sorted((path.parent for path in reversed(by_date)), key=lambda folder: _kind(folder) != "gpu")


def newest(found: list[Path]) -> list[Path]:
    """The first folder of each kind."""
    return list({_kind(folder): folder for folder in reversed(found)}.values())[::-1]


def _kind(folder: Path) -> str:
    return folder.name.partition("-")[0]


def between(text: str, marker: str, new: str) -> str:
    """``text`` with ``new`` between its two markers of that name."""
    begin, end = (f"<!-- {marker}: {which} -->" for which in ("begin", "end"))
    before, rest = text.split(begin)
    _, after = rest.split(end)
    return f"{before}{begin}\n{new}{end}{after}"


def page(folders: list[Path], up: str) -> str:
    """docs/performance.md: what matters first, then everything, with its pictures.

    Args:
        folders: each with a report.json and its pictures.
        up: from the page to the folder that holds them.
    """
    reports = [(folder, load(folder)) for folder in folders]
    on_gpu = any(report["machine"]["kind"] == "gpu" for _, report in reports)
    sections = [_section(report, folder, f"{up}/{folder.name}") for folder, report in reports]
    return "\n".join([_PAGE_HEAD.format(missing="" if on_gpu else _NO_GPU), *sections])


def _section(report: dict[str, Any], folder: Path, link: str) -> str:
    short = tables.short(report, f"{link}/speedup.svg")
    whole = _with_pictures(_demoted(tables.full(report)), folder, link)
    return f"## {machine.named(report['machine'])}\n\n{short}\n{whole}"


def _demoted(text: str) -> str:
    """A report's sections under the machine's heading; what it was measured on stands there already."""
    return re.sub(r"^##", "###", text.split("\n\n", 1)[1], flags=re.MULTILINE)


def _with_pictures(text: str, folder: Path, link: str) -> str:
    """Each picture that there is, under its heading."""
    names = {sweep.title: f"sweep-{sweep.name}" for sweep in SWEEPS}
    names[accuracy.TITLE] = "accuracy"
    for title, name in names.items():
        if (folder / f"{name}.svg").exists():
            heading = rf"^(#+ {re.escape(title)}(?:, \w+)?)$"
            text = re.sub(heading, rf"\1\n\n![{title}]({link}/{name}.svg)", text, flags=re.MULTILINE)
    return text


if __name__ == "__main__":
    typer.run(main)
