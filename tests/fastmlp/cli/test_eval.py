"""``fastmlp eval``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from sklearn import metrics
from torch import nn

import fastmlp
from fastmlp import data
from fastmlp.cli.eval import confusion, mean_squared_error, r2, scores
from fastmlp.cli.nets import load_net
from fastmlp.training import accuracy, load, save
from tests.commands import assert_fails, run, run_json


def test_eval(trained: Path) -> None:
    result = run("eval", trained, "--device", "cpu")
    assert result.exit_code == 0, result.output
    first, second, *table = result.output.splitlines()
    assert first == f"{trained}: 64-32-10 relu, digits, 360 test examples, float32, cpu"
    found = run_json("eval", trained, "--device", "cpu")
    assert second == f"loss {found['loss']:.4f}, accuracy {found['accuracy']:.4f}"
    assert table[0].split() == ["class", "precision", "recall", "F1", "examples"]
    assert [row.split()[0] for row in table[1:]] == [*map(str, range(10)), "mean"]
    assert table[-1].split()[-1] == "360"


def test_json(trained: Path, device: str) -> None:
    """By the library's own numbers; and the run's own last accuracy and loss."""
    found = run_json("eval", trained, "--device", device, "--batch-size", 100)
    net, _ = load_net(trained)
    _, test = data.named("digits")
    assert found["accuracy"] == pytest.approx(accuracy(net, test))
    assert found["accuracy"] > 0.8
    (last,) = json.loads(trained.with_name("net.history.json").read_text())["epochs"][-1:]
    assert found["accuracy"] == pytest.approx(last["test_accuracy"], abs=0.005)
    assert found["loss"] == pytest.approx(last["test_loss"], rel=1e-3)
    assert sum(map(sum, found["confusion"])) == found["examples"] == 360
    assert sum(row[i] for i, row in enumerate(found["confusion"])) / 360 == pytest.approx(found["accuracy"])
    assert [score["name"] for score in found["classes"]] == list(test.classes)
    assert found["mean"]["recall"] == pytest.approx(sum(s["recall"] for s in found["classes"]) / 10)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half(dtype: str, trained: Path, device: str) -> None:
    full = run_json("eval", trained, "--device", device)
    half = run_json("eval", trained, "--device", device, "--dtype", dtype)
    assert half["loss"] != full["loss"]
    assert half["accuracy"] == pytest.approx(full["accuracy"], abs=0.02)


def test_regression(regression: Path) -> None:
    found = run_json("eval", regression, "--device", "cpu")
    (last,) = json.loads(regression.with_name("net.history.json").read_text())["epochs"][-1:]
    assert found["mse"] == pytest.approx(last["test_loss"], rel=1e-5)
    assert 0.3 < found["r2"] < 0.7
    assert "accuracy" not in found
    said = f"mean squared error {found['mse']:.4f}, R2 {found['r2']:.4f}"
    assert said in run("eval", regression, "--device", "cpu").output


def test_the_set_of_the_run_is_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the directory it was read from; another one, or another set, is said."""
    asked = []

    def named(name: str, root: Path | None, say: object) -> tuple[data.Images, data.Images]:
        asked.append((name, root))
        train, test = data.synthetic(0, 300, 50)
        return train, data.Images(test.images, test.labels, test.classes, "another")

    monkeypatch.setattr(data, "named", named)
    run(
        "train",
        "--dataset",
        "mnist",
        "--data",
        "/x",
        "--epochs",
        1,
        "--device",
        "cpu",
        "--out",
        tmp_path / "net",
    )
    result = run("eval", tmp_path / "net", "--device", "cpu")
    assert result.stderr == "the net was trained on synthetic (seed 0), and this is another\n"
    run("eval", tmp_path / "net", "--device", "cpu", "--data", "/y")
    run("eval", tmp_path / "net", "--device", "cpu", "--dataset", "kmnist")
    assert asked == [("mnist", Path("/x"))] * 2 + [("mnist", Path("/y")), ("kmnist", None)]


def test_errors(trained: Path, regression: Path, tmp_path: Path) -> None:
    def fails(code: int, message: str, *arguments: object) -> None:
        assert_fails(run("eval", *arguments, "--device", "cpu"), code, message)

    fails(1, f"{tmp_path / 'x'}: No such file or directory", tmp_path / "x")
    fails(1, f"{tmp_path}: Is a directory", tmp_path)
    kept = trained.with_name("net.ckpt.safetensors")
    fails(1, f"{kept}: the checkpoint of a run; expected a net", kept)
    fails(1, "expected a safetensors checkpoint", trained.with_name("net.toml"))
    save(nn.Linear(2, 3), tmp_path / "own")
    fails(
        1, f"{tmp_path / 'own'}: expected a net that fastmlp train saved, found one without", tmp_path / "own"
    )
    _, about = load(trained)
    save(fastmlp.MLP(64, [10]), tmp_path / "other", about)
    fails(1, f"{tmp_path / 'other'}: the state of another net: ", tmp_path / "other")
    fails(1, "10 features and 1 output, but the net has 64 and 10", trained, "--dataset", "diabetes")
    fails(
        2, "--data /tmp: the digits set comes with scikit-learn and reads no files", trained, "--data", "/tmp"
    )
    damaged = bytearray(trained.read_bytes())
    damaged[-3] ^= 1
    (tmp_path / "damaged").write_bytes(damaged)
    fails(1, "it fails its checksum", tmp_path / "damaged")


def test_a_net_of_another_kind(regression: Path, tmp_path: Path) -> None:
    """Of the right sizes, but for a regression."""
    state, about = load(regression)
    net = fastmlp.Sequential(nn.Linear(64, 10))
    save(net, tmp_path / "net", {**about, "widths": [64, 10]})
    result = run("eval", tmp_path / "net", "--dataset", "digits", "--device", "cpu")
    assert_fails(result, 1, "--dataset digits: classes, but the net is for a regression")
    assert torch.equal(load_net(regression)[0].state_dict()["0.weight"], state["0.weight"])


def test_scores(device: str) -> None:
    """With a class that nobody has (3), one that is never predicted (1), and one with neither (4)."""
    labels = torch.randint(3, (200,), device=device)
    predicted = torch.where(
        torch.rand(200, device=device) < 0.6, labels, torch.randint(4, (200,), device=device)
    )
    predicted[predicted == 1] = 0
    counts = confusion(labels, predicted, 5)
    y, p = labels.cpu().numpy(), predicted.cpu().numpy()
    assert counts.tolist() == metrics.confusion_matrix(y, p, labels=range(5)).tolist()
    *found, mean = scores(counts, "abcde")
    theirs = metrics.precision_recall_fscore_support(y, p, labels=range(5), zero_division=0)
    for column, expected in zip(("precision", "recall", "f1", "support"), theirs):
        assert [getattr(score, column) for score in found] == pytest.approx(expected.tolist())
    assert "".join(score.name for score in found) == "abcde"
    assert mean[:4] == ("mean", *(pytest.approx(column.mean()) for column in theirs[:3]))
    assert mean.support == 200


def test_scores_of_a_regression(device: str) -> None:
    targets = torch.randn(50, 3, device=device)
    outputs = targets + 0.3 * torch.randn(50, 3, device=device)
    y, p = targets.cpu().double().numpy(), outputs.cpu().double().numpy()
    assert mean_squared_error(outputs, targets) == pytest.approx(metrics.mean_squared_error(y, p))
    assert r2(outputs, targets) == pytest.approx(metrics.r2_score(y, p))
