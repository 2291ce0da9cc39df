"""The demonstration around the models: its folder, its errors, its picture."""

import os
import time
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from evaluation.gallery import Gallery, Grid, Panel, Row, Section
from scripts.demo.__main__ import MODELS, main, show_all
from scripts.demo.picture import GAP, LABEL, MARGIN, SIDE, write_picture
from scripts.demo.stage import Stage
from videodata.errors import UserError
from videodata.write_video import write_video


def test_mistakes_are_one_line(tmp_path):
    """A folder that is not there, an effort that is none, and a script that fails, with the end of its log."""
    with pytest.raises(UserError, match="nowhere: no such folder; DATA must name a folder of videos"):
        main(["--data", str(tmp_path / "nowhere"), "--output", str(tmp_path)])
    with pytest.raises(UserError, match="--effort must be above 0"):
        main(["--effort", "0", "--output", str(tmp_path)])
    stage = Stage(tmp_path, tmp_path / "clips.npy")
    with pytest.raises(UserError, match=r"wanted to look around: error: nothing here .*look-around.txt"):
        stage.run("look around", "-c", "raise SystemExit('error: nothing here')")


def test_steps_follow_the_effort(tmp_path):
    """At least two, so that there is something to train."""
    assert [Stage(tmp_path, tmp_path, effort).steps(100) for effort in (1, 0.25, 0.001)] == [100, 25, 2]


def test_picture_shows_two_clips_of_each_model(tmp_path):
    """Frames keep their colours and places; a line comes after the given ones; no grid, no frames."""
    frames = np.zeros((4, 32, 64, 3), np.uint8)
    frames[:, :, :32], frames[:, :, 32:] = (200, 30, 30), (30, 30, 200)
    write_video(tmp_path / "pair.mp4", frames, 8)
    clips = {name: [Panel(tmp_path / "pair.mp4", side)] * 3 for side, name in enumerate(("true", "predicted"))}
    sections = [
        Section("one", "", [Grid("clips", clips, given=2)]),
        Section("two", "", [Grid("clips", clips)]),
        Section("none", "", [Row("r", [("a", tmp_path / "pair.mp4")])]),
    ]
    with Image.open(write_picture(tmp_path / "picture.png", sections)) as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    left, middle = MARGIN + LABEL + SIDE // 2, MARGIN + SIDE // 2
    assert np.abs(pixels[middle, left] - (200, 30, 30)).max() < 8
    assert np.abs(pixels[middle + SIDE + GAP, left] - (30, 30, 200)).max() < 8
    line = pixels[middle, MARGIN + LABEL + 2 * (SIDE + GAP) - GAP : MARGIN + LABEL + 2 * (SIDE + GAP)]
    assert (line[:, 2] > line[:, 0] + 100).any()
    assert pixels.shape[0] > 4 * SIDE and pixels.shape[1] > 2 * 4 * SIDE


def test_models_run_side_by_side_and_are_shown_in_order(tmp_path, monkeypatch):
    """Each on its share of the cores; sections and lines in the order asked for; a failure is the error of all."""

    def shower(name, seconds):
        def show(stage, gallery):
            time.sleep(seconds)
            gallery.add_section(name, "")
            return f"{stage.threads} threads"

        return SimpleNamespace(show=show)

    def fail(stage, gallery):
        raise UserError("no luck")

    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.setitem(MODELS, "vqgan", shower("vqgan", 0.2))
    monkeypatch.setitem(MODELS, "lvt", shower("lvt", 0))
    gallery, stage = Gallery("page"), Stage(tmp_path, tmp_path)
    assert show_all(stage, ["vqgan", "lvt"], gallery) == ["vqgan: 2 threads", "lvt: 2 threads"]
    assert [section.name for section in gallery.sections] == ["vqgan", "lvt"]
    monkeypatch.setitem(MODELS, "vvae", SimpleNamespace(show=fail))
    with pytest.raises(UserError, match="no luck"):
        show_all(stage, ["vqgan", "vvae"], gallery)
