"""Figures as files, and in a notebook."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from xml.etree import ElementTree

import matplotlib
import pytest
from PIL import Image

from fastmlp import files as atomic
from fastmlp import plots
from fastmlp.plots import style


def picture() -> style.Picture:
    figure = style.figure(4, 2)
    figure.add_subplot().plot([1, 2], [3, 4])
    return figure


def test_what_is_written(tmp_path: Path) -> None:
    """By the suffix, in a directory that is made; the same figure gives the same bytes."""
    png = plots.save(picture(), tmp_path / "new" / "a.png", dpi=100)
    with Image.open(png) as image:
        assert (image.format, image.size) == ("PNG", (400, 200))
    svg = plots.save(picture(), str(tmp_path / "a.SVG"))
    assert ElementTree.parse(svg).getroot().tag.endswith("svg")
    pdf = plots.save(picture(), tmp_path / "a.pdf")
    assert pdf.read_bytes().startswith(b"%PDF")
    for path in (png, svg, pdf):
        again = plots.save(picture(), tmp_path / f"again{path.suffix}", dpi=100)
        assert again.read_bytes() == path.read_bytes()


@pytest.mark.parametrize("name", ["a.jpg", "a", "png"])
def test_another_suffix_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"path: expected a name that ends in \.png, \.svg, \.pdf, got"):
        plots.save(picture(), tmp_path / name)
    assert not any(tmp_path.iterdir())


def test_what_is_there_stays_if_the_disk_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = plots.save(picture(), tmp_path / "a.png")
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(atomic.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        plots.save(picture(), path, dpi=50)
    assert path.read_bytes() == before
    assert [*tmp_path.iterdir()] == [path]


def test_a_notebook_shows_it(monkeypatch: pytest.MonkeyPatch) -> None:
    data, size = picture()._repr_mimebundle_()
    assert data["image/png"].startswith(b"\x89PNG")
    assert size == {"image/png": {"width": 384, "height": 192}}


def test_the_callers_settings_stay_and_pyplot_is_not_touched() -> None:
    from matplotlib import pyplot

    before = dict(matplotlib.rcParams)
    plots.activations(("relu",))
    assert dict(matplotlib.rcParams) == before
    assert pyplot.get_fignums() == []


def test_colours_differ_and_go_on_with_other_dashes() -> None:
    looks = {(style.colour(i), style.dashes(i)) for i in range(24)}
    assert len(looks) == 24
    assert len(set(map(tuple, style.shades(9)))) == 9
