"""``fastmlp predict``."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from fastmlp import data
from fastmlp.cli.nets import load_net
from tests.commands import assert_fails, run, run_json


def test_examples_of_the_test_set(trained: Path, device: str) -> None:
    found = run_json("predict", trained, "--index", "7,0,359", "--device", device, "--top", 2)["predictions"]
    net, _ = load_net(trained)
    _, test = data.named("digits")
    x = test.images[[7, 0, 359]].flatten(1).float() / 255
    shares = net(x).softmax(1)
    for row, share, label in zip(found, shares, test.labels[[7, 0, 359]].tolist()):
        (best, second), (first_share, second_share) = (v.tolist() for v in reversed(share.topk(2)))
        assert row["label"] == str(label)
        assert row["predicted"] == row["top"][0]["class"] == str(best)
        assert row["right"] == (label == best)
        assert row["probability"] == pytest.approx(first_share, rel=1e-3)
        assert row["top"][1] == {"class": str(second), "probability": pytest.approx(second_share, rel=1e-3)}
    assert [row["example"] for row in found] == [7, 0, 359]


def test_the_table(trained: Path) -> None:
    lines = run("predict", trained, "--device", "cpu").output.splitlines()
    assert lines[0].split() == ["example", "label", "predicted", "probability", "then"]
    rows = run_json("predict", trained, "--count", 10, "--device", "cpu")["predictions"]
    for line, row in zip(lines[1:11], rows):
        assert line.split()[:4] == [
            str(row["example"]), row["label"], row["predicted"], f"{row['probability']:.4f}"
        ]  # fmt: skip
    assert lines[11] == f"{sum(row['right'] for row in rows)} of 10 right"


def test_a_picture(trained: Path, tmp_path: Path) -> None:
    """The very example as a PNG, twice the size; and dark on white."""
    _, test = data.named("digits")
    pixels = test.images[4].numpy()
    Image.fromarray(pixels).resize((16, 16), Image.Resampling.NEAREST).save(tmp_path / "a.png")
    Image.fromarray(255 - pixels).convert("RGB").save(tmp_path / "b.png")
    expected = run_json("predict", trained, "--index", 4, "--device", "cpu")["predictions"][0]
    for name, options, tolerance in (("a.png", (), 0.2), ("b.png", ("--invert",), 1e-4)):
        path = tmp_path / name
        (row,) = run_json("predict", trained, "--image", path, *options, "--device", "cpu")["predictions"]
        assert row["example"] == str(path)
        assert row["predicted"] == expected["predicted"]
        assert row["probability"] == pytest.approx(expected["probability"], abs=tolerance)
        assert "label" not in row
    both = run_json("predict", trained, "--image", tmp_path / "a.png", "--image", tmp_path / "b.png")
    assert len(both["predictions"]) == 2


@pytest.mark.parametrize("kind", ["npy", "pt", "safetensors"])
def test_rows_of_a_file(kind: str, trained: Path, tmp_path: Path) -> None:
    """uint8 as pixels, floats as they are, in the shape of pictures or flat."""
    _, test = data.named("digits")
    pixels, path = test.images[:5], tmp_path / f"rows.{kind}"
    expected = run_json("predict", trained, "--count", 5, "--device", "cpu")["predictions"]
    for rows in (pixels, pixels.flatten(1).double() / 255):
        if kind == "npy":  # of whatever machine
            np.save(path, rows.numpy().astype(rows.numpy().dtype.newbyteorder(">")))
        elif kind == "pt":
            torch.save(rows, path)
        else:
            save_file({"x": rows}, path)
        found = run_json("predict", trained, "--input", path, "--device", "cpu")["predictions"]
        for row, known in zip(found, expected, strict=True):
            assert row["example"] == known["example"]
            assert row["predicted"] == known["predicted"]
            assert row["probability"] == pytest.approx(known["probability"], rel=1e-5)


def test_files(trained: Path, regression: Path, tmp_path: Path) -> None:
    saved, table = tmp_path / "new" / "p.json", tmp_path / "p.csv"
    printed = run_json("predict", trained, "--count", 3, "--device", "cpu", "--out", saved)
    assert json.loads(saved.read_text()) == printed
    assert (
        f"saved to {table}" in run("predict", trained, "--count", 3, "--device", "cpu", "--out", table).output
    )
    rows = [*csv.DictReader(table.open())]
    for row, known in zip(rows, printed["predictions"], strict=True):
        assert row["predicted"] == row["class 1"] == known["predicted"]
        assert float(row["probability 2"]) == known["top"][1]["probability"]
    run("predict", regression, "--count", 2, "--device", "cpu", "--out", table)
    net, _ = load_net(regression)
    _, test = data.named("diabetes")
    for row, x, y in zip(csv.DictReader(table.open()), test.x, test.y):
        assert float(row["target"]) == pytest.approx(y.item())
        assert float(row["predicted"]) == pytest.approx(net(x[None]).item(), rel=1e-4)


def large() -> torch.Tensor:
    """Features of which the second row's logits overflow."""
    return torch.stack([torch.zeros(64), torch.full((64,), 3e38)])


def test_errors(trained: Path, regression: Path, tmp_path: Path) -> None:
    def fails(code: int, message: str, *arguments: object, net: Path = trained) -> None:
        assert_fails(run("predict", net, *arguments, "--device", "cpu"), code, message)

    def file(name: str, content: object) -> Path:
        path = tmp_path / name
        if isinstance(content, np.ndarray):
            np.save(path, content, allow_pickle=True)
        elif isinstance(content, bytes):
            path.write_bytes(content)
        elif path.suffix == ".safetensors":
            save_file(content, path)
        else:
            torch.save(content, path)
        return path

    fails(1, "--index 360: expected numbers from 0 to 359", "--index", "360")
    fails(2, "--index 1,x: expected numbers with commas", "--index", "1,x")
    fails(2, "--index, --count: expected one of them", "--index", 1, "--count", 2)
    fails(2, "--invert: expected --image with it", "--invert")
    fails(2, "--dataset, --data: they say nothing of --image", "--image", "a.png", "--dataset", "digits")
    fails(2, "--out p.txt: expected a name that ends in .json or .csv", "--out", "p.txt")
    fails(1, "--out /proc/x/p.csv: No such file or directory", "--out", "/proc/x/p.csv")
    fails(1, f"--image {tmp_path / 'x.png'}: No such file", "--image", tmp_path / "x.png")
    fails(1, "b.png: expected a picture, such as a PNG", "--image", file("b.png", b"no picture"))
    Image.new("L", (8, 8)).save(tmp_path / "ten.png")
    fails(1, "the net takes 10 numbers, which are no square", "--image", tmp_path / "ten.png", net=regression)
    fails(1, "expected a file that ends in .npy, .pt, .safetensors", "--input", file("a.txt", b""))
    fails(
        1,
        "expected (N, 64), or (N, ...) of as many numbers, got (3, 5) float32",
        "--input",
        file("a.pt", torch.ones(3, 5)),
    )
    fails(1, "got (64,) float32", "--input", file("b.pt", torch.ones(64)))
    fails(1, "got (0, 64) float32", "--input", file("c.pt", torch.ones(0, 64)))
    fails(
        1,
        "expected uint8 pixels or floating numbers, got (2, 64) int64",
        "--input",
        file("d.pt", torch.ones(2, 64).long()),
    )
    fails(1, "expected one tensor, got list", "--input", file("e.pt", [1, 2]))
    holed = torch.ones(3, 64)
    holed[1, 5] = torch.nan
    fails(
        1,
        "--input FILE: expected finite features, got nan in 1 of 3 rows, the first in row 1".replace(
            "FILE", str(tmp_path / "g.pt")
        ),
        "--input",
        file("g.pt", holed),
        "--json",
    )
    fails(1, "no finite number for 1 of 2 examples, the first of them 1", "--input", file("h.pt", large()))
    fails(
        1,
        "expected one tensor, got 2 of them",
        "--input",
        file("a.safetensors", {"a": torch.ones(1), "b": torch.ones(1)}),
    )
    fails(1, "expected a .safetensors file of one array (", "--input", file("b.safetensors", b"1234567890"))
    fails(
        1,
        "expected a .npy file of one array (",
        "--input",
        file("a.npy", np.array([{"code": "runs"}], dtype=object)),
    )
    fails(1, "expected a .pt file of one array (", "--input", file("f.pt", b"no pickle"))
