"""``fastmlp plot`` as a user meets it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner, Result

from fastmlp import cli
from fastmlp.cli import nets, sets
from fastmlp.data import Images, Samples, synthetic
from fastmlp.studies import STUDIES, Study, exercise
from fastmlp.training import Epoch, History, save


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures without --out go to the current directory."""
    monkeypatch.chdir(tmp_path)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli.app, ["plot", *arguments])


def is_picture(name: str) -> bool:
    with Image.open(name) as image:
        image.load()
        return image.format == "PNG" and len(image.convert("L").getcolors() or ()) > 2


def history(path: str, shift: float = 0.0, epochs: int = 2) -> str:
    def epoch(n: int) -> Epoch:
        return Epoch(
            number=n,
            train_loss=1 / n + shift,
            train_accuracy=0.5,
            test_accuracy=0.25,
            seconds=1.0,
            examples_per_second=9.0,
        )

    History([epoch(n) for n in range(1, epochs + 1)]).save(path)
    return path


@pytest.fixture
def net(monkeypatch: pytest.MonkeyPatch) -> str:
    """A saved net, and forty images for it to be tested on."""
    small = synthetic(0, 60, 40)
    monkeypatch.setattr(sets, "both", lambda dataset, root: small)
    about = {
        "widths": [784, 8, 10],
        "activation": "relu",
        "classes": list(small[1].classes),
        "dataset": small[1].name,
        "config": {"dataset": "synthetic"},
    }
    save(nets.build([784, 8, 10], "relu"), "net.safetensors", about)
    return "net.safetensors"


def test_activations() -> None:
    result = run("activations", "--device", "cpu")
    assert (result.exit_code, result.stdout) == (0, "saved to activations.png\n")
    assert is_picture("activations.png")


def test_activations_as_json() -> None:
    result = run("activations", "relu", "tanh", "--device", "cpu", "--out", "new/a.svg", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert "saved to new/a.svg" in result.stderr
    assert found["picture"] == "new/a.svg"
    assert "table of derivatives" in found["by"]
    assert [*found["activations"]] == ["relu", "tanh"]
    relu = found["activations"]["relu"]
    assert relu["f"] == [max(x, 0.0) for x in relu["x"]]
    assert relu["gradient"] == [float(x > 0) for x in relu["x"]]


def test_curve() -> None:
    first, second = history("a.history.json"), history("b.json", 1.0)
    assert run("curve", first).exit_code == 0
    assert is_picture("curve.png")
    result = run("curve", first, second, "--title", "two runs", "--out", "c.pdf", "--json")
    assert result.exit_code == 0, result.output
    runs = json.loads(result.stdout)["runs"]
    assert [*runs] == ["a", "b"]
    assert runs["b"]["train_loss"] == [[1, 2.0], [2, 1.5]]
    assert runs["a"]["test_loss"] == []


def test_runs_of_one_name_are_told_apart_by_their_paths() -> None:
    paths = [history("one/mlp.history.json"), history("other/mlp.history.json")]
    assert [*json.loads(run("curve", *paths, "--json").stdout)["runs"]] == paths
    twice = run("curve", paths[0], paths[0])
    assert (twice.exit_code, twice.stderr) == (2, f"error: {paths[0]}: given 2 times\n")


def test_predictions(net: str) -> None:
    assert run("predictions", net, "--device", "cpu").exit_code == 0
    assert is_picture("predictions.png")
    result = run("predictions", net, "--wrong", "--rows", "1", "--columns", "3", "--device", "cpu", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["picture"] == "mistakes.png"
    assert is_picture("mistakes.png")
    model, _ = nets.load_net(net)
    _, test = synthetic(0, 60, 40)
    predicted = model(test.images.flatten(1) / 255).argmax(1)
    wrong = (predicted != test.labels).nonzero()[:, 0].tolist()
    assert (found["examples"], found["wrong"]) == (40, len(wrong))
    assert found["shown"] == [
        {"example": i, "label": test.classes[test.labels[i]], "predicted": test.classes[predicted[i]]}
        for i in wrong[:3]
    ]


def test_a_perfect_net_makes_no_mistakes(net: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _, test = synthetic(0, 60, 40)
    right = Images(test.images, torch.zeros_like(test.labels), test.classes, test.name)
    monkeypatch.setattr(sets, "both", lambda dataset, root: (right, right))
    monkeypatch.setattr(
        nets, "outputs", lambda net, x, *_: torch.eye(10)[torch.zeros(len(x), dtype=torch.int64)]
    )
    result = run("predictions", net, "--wrong", "--device", "cpu")
    assert (result.exit_code, result.stderr) == (
        1,
        "error: only_wrong: none of the 40 predictions is wrong\n",
    )


def test_confusion(net: str) -> None:
    result = run("confusion", net, "--device", "cpu", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert is_picture("confusion.png")
    assert sum(map(sum, found["confusion"])) == 40
    assert len(found["classes"]) == len(found["confusion"]) == 10


def test_a_regression_has_no_confusion(monkeypatch: pytest.MonkeyPatch) -> None:
    samples = Samples(torch.randn(5, 3), torch.randn(5, 1), "numbers")
    monkeypatch.setattr(sets, "both", lambda dataset, root: (samples, samples))
    about = {"widths": [3, 1], "activation": "relu", "classes": [], "dataset": "numbers"}
    save(nets.build([3, 1], "relu"), "net", {**about, "config": {"dataset": "diabetes"}})
    result = run("confusion", "net", "--device", "cpu")
    assert (result.exit_code, result.stderr) == (1, "error: net: a regression; expected a net for classes\n")


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exercise, "_SMALL", (64, 20))


@pytest.mark.usefixtures("tiny")
def test_study() -> None:
    result = run("study", "width", "--small", "--device", "cpu")
    assert result.exit_code == 0, result.output
    question, _, head, *_ = result.stdout.splitlines()
    assert question == "How far does the width of one hidden layer carry?"
    assert head.startswith("| width | parameters | train loss")
    assert result.stdout.endswith("saved to width.png\n")
    assert "width 4: test accuracy" in result.stderr
    assert is_picture("width.png")


@pytest.mark.parametrize("name", ["learning-rate", "learning_rate"])
def test_study_as_json(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under either spelling; every study has its name here."""
    from matplotlib.figure import Figure

    asked = {}

    def study(**options: object) -> Study:
        asked.update(options)
        return Study("learning_rate", "Why?", [{"rate": 0.1}], {"seeds": 1}, lambda study: Figure())

    monkeypatch.setitem(STUDIES, "learning_rate", study)
    result = run("study", name, "--data", "somewhere", "--device", "cpu", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout) == {
        "picture": "learning-rate.png",
        "name": "learning_rate",
        "question": "Why?",
        "setup": {"seeds": 1},
        "rows": [{"rate": 0.1}],
    }
    assert (asked["small"], asked["data"], asked["device"]) == (False, Path("somewhere"), torch.device("cpu"))


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["activations", "gelo"], 2, "NAME gelo: expected one of none, relu, "),
        (
            ["activations", "--out", "a.jpg"],
            2,
            "--out a.jpg: expected a name that ends in .png, .svg or .pdf",
        ),
        (["activations", "--out", "/proc/nowhere/a.png"], 1, "--out /proc/nowhere/a.png: No such file"),
        (["activations", "--device", "tpu"], 2, "--device tpu: expected cpu, cuda or cuda:1"),
        (["curve", "nothing.json"], 1, "nothing.json: No such file"),
        (["curve", "notes.json"], 1, "notes.json: expected a history, as train saves it with --history"),
        (["curve", "empty.json"], 1, "runs: expected epochs in each, got none"),
        (["curve"], 2, "Missing argument"),
        (["predictions", "nothing"], 1, "nothing: No such file"),
        (["confusion", "notes.json"], 1, "notes.json: expected a safetensors checkpoint"),
        (["study", "length"], 2, "NAME length: expected one of width, depth, learning-rate,"),
        (["study", "approximation", "--data", "here"], 2, "--data: expected None, since this study fits"),
        (["study", "width", "--data", "here"], 1, "here/FashionMNIST/raw/train-images-idx3-ubyte: No such"),
        (["curves"], 2, "No such command 'curves'"),
    ],
)
def test_errors_are_one_line(arguments: list[str], code: int, message: str) -> None:
    Path("notes.json").write_text('{"text": "no history"}')
    history("empty.json", epochs=0)
    result = run(*arguments)
    assert result.exit_code == code, result.output
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert result.stdout == ""
    assert sorted(path.name for path in Path().iterdir()) == ["empty.json", "notes.json"]


def test_without_matplotlib_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("fastmlp.plots")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = run("activations")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: fastmlp.plots needs matplotlib")
    assert "pip install 'fastmlp[train]'" in result.stderr


@pytest.mark.parametrize("command", ["activations", "curve", "predictions", "confusion", "study"])
def test_help_has_an_example(command: str) -> None:
    result = run(command, "--help")
    assert result.exit_code == 0
    assert f"Example: fastmlp plot {command}" in result.stdout


def test_alone_it_shows_its_help() -> None:
    result = run()
    assert result.exit_code == 0
    for word in ("activations", "curve", "predictions", "confusion", "study", "Example:"):
        assert word in result.stdout
