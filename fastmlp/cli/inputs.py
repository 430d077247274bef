"""Inputs of a net from a user's files: pictures, and arrays of numbers."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastmlp.training import arrays, nonfinite


class InputError(Exception):
    """A file that is not there, of another kind or shape; the message names it."""


def picture(path: Path, features: int, invert: bool) -> Tensor:
    """A picture as the pixels of a square one, (features,) uint8: grey, and resized.

    Args:
        path: PNG, JPEG, whatever Pillow reads.
        features: of the net.
        invert: bright for dark: the data sets' things are bright on black.

    Raises:
        InputError: it cannot be read, or the net takes no square picture.
    """
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as error:
        raise InputError(
            f"{path}: Pillow cannot be imported ({error}): pip install 'fastmlp[train]'"
        ) from error
    side = math.isqrt(features)
    if side * side != features:
        raise InputError(f"{path}: the net takes {features} numbers, which are no square picture")
    try:
        with Image.open(path) as image:
            grey = image.convert("L").resize((side, side))
    except UnidentifiedImageError:
        raise InputError(f"{path}: expected a picture, such as a PNG") from None
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from error
    except Exception as error:  # of each format's own, and a picture that is too large
        raise InputError(f"{path}: expected a picture, such as a PNG ({error})") from error
    pixels = torch.frombuffer(bytearray(grey.tobytes()), dtype=torch.uint8)
    return 255 - pixels if invert else pixels


def array(path: Path, features: int) -> Tensor:
    """Rows of a .npy, .pt or .safetensors file, (N, features): uint8 pixels, or float32.

    Reading one runs no code of the file's.

    Raises:
        InputError: it cannot be read, or its array is none of a net of so many features.
    """
    read = _READERS.get(path.suffix)
    if read is None:
        raise InputError(f"{path}: expected a file that ends in {', '.join(_READERS)}")
    try:
        found = read(path)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from error
    except InputError:
        raise
    except Exception as error:  # each library's own
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"{path}: expected a {path.suffix} file of one array ({reason})") from error
    kind = f"{tuple(found.shape)} {str(found.dtype).removeprefix('torch.')}"
    if found.dtype != torch.uint8 and not found.is_floating_point():
        raise InputError(f"{path}: expected uint8 pixels or floating numbers, got {kind}")
    if found.dim() < 2 or found[0:1].numel() not in (features, 0) or len(found) == 0:
        raise InputError(f"{path}: expected (N, {features}), or (N, ...) of as many numbers, got {kind}")
    rows = found.reshape(len(found), features)
    if rows.dtype == torch.uint8:
        return rows
    bad = nonfinite.bad_rows(rows, torch.float32)
    if len(bad):
        raise InputError(nonfinite.message(nonfinite.Origin(str(path)), "features", rows, bad))
    return rows.float()


def _npy(path: Path) -> Tensor:
    import numpy as np

    return arrays.tensor_of(np.load(path, allow_pickle=False), str(path), "features")


def _pt(path: Path) -> Tensor:
    return _one(path, torch.load(path, map_location="cpu", weights_only=True))


def _safetensors(path: Path) -> Tensor:
    from safetensors.torch import load_file

    return _one(path, load_file(path))


def _one(path: Path, found: Any) -> Tensor:
    """The tensor of a file that holds just one."""
    if isinstance(found, dict) and len(found) == 1:
        (found,) = found.values()
    if not isinstance(found, Tensor):
        what = f"{len(found)} of them" if isinstance(found, dict) else type(found).__name__
        raise InputError(f"{path}: expected one tensor, got {what}")
    return found


_READERS: dict[str, Callable[[Path], Tensor]] = {".npy": _npy, ".pt": _pt, ".safetensors": _safetensors}
