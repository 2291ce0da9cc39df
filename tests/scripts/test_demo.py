"""The demonstration around the models: its table, its folder, its errors, its picture."""

import importlib
import os
import time

import numpy as np
import pytest
import yaml
from PIL import Image

from evaluation.gallery import Gallery, Grid, Panel, Row, Section
from evaluation.gallery.page import GAP, LABEL, MARGIN, SIDE, write_picture
from scripts.demo import MODELS, ROOT, TABLE, Demo, main
from videodata.encode import write_video
from videodata.errors import UserError

RECORDS = {"commands", "curves", "grids", "intro", "numbers", "report", "rows", "config"}


def test_mistakes_are_one_line(tmp_path, capsys):
    """A folder that is not there, an effort that is none, and a script that fails, with the end of its log."""
    with pytest.raises(UserError, match="nowhere: no such folder; DATA must name a folder of videos"):
        main(["--data", str(tmp_path / "nowhere"), "--out", str(tmp_path)])
    with pytest.raises(SystemExit):
        main(["--effort", "0", "--out", str(tmp_path)])
    assert "--effort" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"wanted to look around: error: nothing here .*look-around.txt"):
        Demo(tmp_path).run("look around", ["-c", "raise SystemExit('error: nothing here')"])


def test_steps_follow_the_effort(tmp_path):
    """At least two, so that there is something to train."""
    found = [Demo(tmp_path, effort).words("main.py --steps {steps:100}")[-1] for effort in (1, 0.25, 0.001)]
    assert found == ["100", "25", "2"]


def test_folders_with_spaces_stay_one_word(tmp_path):
    """The folder's name is put in after the command was split into words."""
    demo = Demo(tmp_path / "my demo")
    assert demo.words("main.py --data {clips} {flow}")[:3] == ["main.py", "--data", str(demo.clips)]
    assert demo.words("x \"('{clips}#train',)\"")[1] == f"('{demo.clips}#train',)"


def test_every_command_of_the_table_is_understood_by_its_script(tmp_path):
    """The parsers of the scripts take the words as they stand, and the table says all that a section needs."""
    table = yaml.safe_load(TABLE.read_text())
    assert tuple(table) == MODELS
    for model in table.values():
        assert set(model) <= RECORDS and model["numbers"] and model["grids"]
        assert all(isinstance(kind, str) for grid in model["grids"] for kind in grid["rows"])  # YAML: true is a boolean
        for command in model["commands"].values():
            script, *flags = Demo(tmp_path).words(command)
            assert (ROOT / script).is_file()
            module = importlib.import_module(script.removesuffix(".py").replace("/", "."))
            module.build_parser().parse_args(flags)


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

    def show(demo, name, model, gallery):
        time.sleep(0.2 if name == "vqgan" else 0)
        if name == "vvae":
            raise UserError("no luck")
        gallery.add_section(name, "")
        return f"{demo.threads} threads"

    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.setattr(Demo, "show", show)
    gallery, demo, table = Gallery("page"), Demo(tmp_path), dict.fromkeys(MODELS, {})
    assert demo.show_all(table, ["vqgan", "lvt"], gallery) == ["vqgan: 2 threads", "lvt: 2 threads"]
    assert [section.name for section in gallery.sections] == ["vqgan", "lvt"]
    with pytest.raises(UserError, match="no luck"):
        demo.show_all(table, ["vqgan", "vvae"], gallery)
