"""Checkpoints as safetensors: loading one runs no code, and a crash while writing loses none."""

from __future__ import annotations

import json
import os
import secrets
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


def save(net: nn.Module, path: Path | str, metadata: dict[str, Any] | None = None) -> None:
    """Write ``net``'s state to ``path``: to a temporary file, fsync, rename.

    Args:
        net: its ``state_dict`` is saved; tensors that share memory are saved once each.
        path: of the checkpoint; missing directories are made.
        metadata: anything JSON can hold, such as what it takes to build the net again.

    Raises:
        OSError: the file cannot be written. What was at ``path`` is then still there.
    """
    from safetensors.torch import save as to_bytes

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in net.state_dict().items()
    }
    data = to_bytes(tensors, {"fastmlp": json.dumps(metadata or {})})
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}.part")
    try:
        with temporary.open("xb") as file:  # not mkstemp, whose files nobody else may read
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)  # the rename itself
    finally:
        os.close(directory)


def load(path: Path | str, device: torch.device | str = "cpu") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The state and the metadata of a checkpoint.

    Raises:
        FileNotFoundError: there is none.
        ValueError: the file is no checkpoint, or truncated.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt", device=str(device)) as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            text = (file.metadata() or {}).get("fastmlp", "{}")
    except SafetensorError as error:
        raise ValueError(f"{path}: expected a safetensors checkpoint ({error})") from error
    return state, json.loads(text)
