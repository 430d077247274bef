"""Checkpoints: both ways, atomic, and no code on loading."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import fastmlp
from fastmlp.training import checkpoint
from tests.untouched import untouched


def net() -> fastmlp.Sequential:
    return fastmlp.Sequential(nn.Linear(5, 4), nn.PReLU(), nn.Linear(4, 3))


def test_round_trip_into_torchs_own(tmp_path: Path) -> None:
    ours, path = net(), tmp_path / "deep" / "net.safetensors"
    checkpoint.save(ours, path, {"widths": [5, 4, 3]})
    state, metadata = checkpoint.load(path)
    theirs = nn.Sequential(nn.Linear(5, 4), nn.PReLU(), nn.Linear(4, 3))
    theirs.load_state_dict(state, strict=True)
    assert metadata == {"widths": [5, 4, 3]}
    x = torch.randn(2, 5)
    assert torch.equal(theirs(x), ours(x))
    assert os.listdir(path.parent) == ["net.safetensors"]
    (other := tmp_path / "other").touch()
    assert path.stat().st_mode == other.stat().st_mode  # as readable as the umask lets it be


def test_tied_and_strided_tensors(tmp_path: Path) -> None:
    tied = net()
    tied[2].weight = nn.Parameter(torch.randn(4, 3).t())
    tied.extra = tied[0]
    checkpoint.save(tied, tmp_path / "net")
    state, _ = checkpoint.load(tmp_path / "net")
    assert torch.equal(state["2.weight"], tied[2].weight)
    assert torch.equal(state["extra.weight"], tied[0].weight)


@pytest.mark.parametrize("broken", ["fsync", "replace"])
def test_a_crash_keeps_the_old_one(broken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, old = tmp_path / "net", net()
    checkpoint.save(old, path)

    def fail(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(os, broken, fail)
    with pytest.raises(OSError, match="no space left"):
        checkpoint.save(net(), path)
    monkeypatch.undo()
    assert torch.equal(checkpoint.load(path)[0]["0.weight"], old[0].weight)
    assert os.listdir(tmp_path) == ["net"]


def test_what_is_no_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "net"
    checkpoint.save(net(), path)
    whole = path.read_bytes()
    for content in (whole[:-5], whole[:20], b"", b"\x80\x04pickle"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="expected a safetensors checkpoint"):
            checkpoint.load(path)
    with pytest.raises(FileNotFoundError):
        checkpoint.load(tmp_path / "none")


def test_into_a_net(tmp_path: Path) -> None:
    """Only where it fits; a lazy net takes its shapes from it."""
    checkpoint.save(saved := net(), tmp_path / "net", {"a": 1})
    other = nn.Sequential(nn.Linear(5, 4), nn.PReLU(), nn.LazyLinear(3))
    assert checkpoint.load_into(other, tmp_path / "net") == {"a": 1}
    assert all(map(torch.equal, other.parameters(), saved.parameters()))
    wrong = nn.Sequential(nn.Linear(5, 4), nn.PReLU(), nn.Linear(4, 2))
    said = r"net: the state of another net: 2\.weight is \(3, 4\) float32, here \(2, 4\)"
    with untouched(wrong), pytest.raises(ValueError, match=said):
        checkpoint.load_into(wrong, tmp_path / "net")


def test_a_foreign_file(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"a": torch.ones(2)}, tmp_path / "other")
    with pytest.raises(
        ValueError, match=r"none of its checksums: read others by safetensors\.torch\.load_file"
    ):
        checkpoint.load(tmp_path / "other")


def test_state_that_is_no_tensor(tmp_path: Path) -> None:
    class Extra(nn.Linear):
        def get_extra_state(self) -> dict[str, int]:
            return {"calls": 3}

    with pytest.raises(TypeError, match="expected tensors in its state, got _extra_state as a dict"):
        checkpoint.save(Extra(2, 2), tmp_path / "net")


def test_trees() -> None:
    """Keys that are numbers, tuples, odd floats, and paths that are one another's."""
    tree = {
        "a": {"b": torch.ones(2), 0: (1, [None, True])},
        "a.b": torch.zeros(1),
        "nan": float("inf"),
        "dict": {"tensor": "x"},
    }
    tensors: dict[str, Tensor] = {}
    flat = checkpoint.flatten(tree, "", tensors)
    again = checkpoint.unflatten(flat, tensors)
    assert torch.equal(again["a"].pop("b"), tree["a"].pop("b"))  # type: ignore[attr-defined]
    assert torch.equal(again.pop("a.b"), tree.pop("a.b"))  # type: ignore[arg-type]
    assert again == tree
    with pytest.raises(TypeError, match=r"a\.1: a set; a checkpoint holds"):
        checkpoint.flatten({"a": [0, {1}]}, "", {})
