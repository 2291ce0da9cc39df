"""Pages of run folders: what is found in them, and several side by side."""

import json
import re
from fractions import Fraction

import numpy as np
import pytest
import yaml
from PIL import Image

from evaluation.gallery.content import Grid, Row
from evaluation.gallery.runs import clip_groups, config_differences, flatten, parse, read_run, scores_table
from evaluation.protocol import Chosen
from evaluation.protocols import named
from evaluation.report import Report, Score
from scripts.gallery import main
from tests.evaluation.test_gallery import Page
from videodata.encode import write_video
from videodata.errors import UserError


def video(path, color=200):
    path.parent.mkdir(parents=True, exist_ok=True)
    write_video(path, np.full((3, 16, 16, 3), color, np.uint8), Fraction(8))


def picture(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (90, 10, 10)).save(path)


def make_run(folder, dim, psnr, data="clips.npy"):
    """A run folder as training and evaluation leave it."""
    for step in (10, 20, 30):
        for name in ("original", "reconstruction"):
            video(folder / "samples" / f"step-{step:07d}" / f"{name}.mp4")
            picture(folder / "samples" / f"step-{step:07d}" / f"{name}.png")
    for number in range(3):
        for kind in ("original", "sample_0"):
            video(folder / "generated" / f"{number}_{kind}.mp4")
    picture(folder / "codebook" / "usage.png")
    picture(folder / "checkpoints" / "hidden.png")
    rows = [
        {"step": s, "samples": 8 * s, "loss/vae": 1 / s, "validation/loss": 2 / s, "lr/vae": 0.1, "train/kl": s}
        for s in (10, 20, 30)
    ]
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)) + '\n{"step": 40, "lo')
    config = {"model": {"dim": dim, "depth": 2}, "name": "<b>run</b>"}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    report = Report("vqgan", "x.pt", data, frames=8, stride=1, height=16, width=16)
    report.scores = [Score("psnr-frame-8bit", [psnr - 1, psnr + 1])]
    report.write(folder / "evaluation.json")
    (folder / "other.json").write_text('{"format": "something else"}')
    return folder


def test_a_run_folder_becomes_a_section(tmp_path):
    """Curves of training and validation share a diagram; clips lie side by side; numbers have their definition."""
    section = read_run(make_run(tmp_path / "run", 64, 20.0)).section(most=2)
    assert [curve.title for curve in section.curves] == ["loss", "kl"]
    assert [line.label for line in section.curves[0].lines] == ["train", "validation"]
    assert section.curves[0].lines[1].points == [(10, 0.2), (20, 0.1), (30, 2 / 30)]
    assert [curve.title for curve in section.more_curves] == ["lr/vae"]
    assert section.config["model"]["dim"] == 64
    groups = {group.label: group for group in section.clips}
    assert set(groups) == {"Pictures, step 30", "Reconstruction during the training", "generated", "codebook"}
    assert list(groups["Reconstruction during the training"].rows) == ["step 10", "step 20", "step 30"]
    assert [path.suffix for (path,) in groups["Pictures, step 30"].rows.values()] == [".mp4", ".mp4"]
    grid = groups["generated"]
    assert isinstance(grid, Grid) and list(grid.rows) == ["original", "sample 0"] and list(grid.columns) == ["0", "1"]
    assert grid.note == "2 of 3 are shown."
    assert isinstance(groups["codebook"], Row)
    (table,) = section.tables
    assert (
        table.rows[1][:2] == ("PSNR", "20 dB")
        and table.rows[1][3:5] == (1.0, 2)
        and "8 frames of 16x16" in table.caption
    )


def test_a_result_of_a_protocol_is_shown_with_what_is_published(tmp_path):
    """Its id with what it departs in, in the page and in the row of a comparison; the published rows in a table."""
    chosen = Chosen(named("davis"), {"data": ["DAVIS 2017", "clips (mine)"]})
    report = Report("vvae", "x.pt", "clips", 49, 1, 16, 16, published=[vars(row) for row in chosen.protocol.published])
    report.scores, report.details = [Score("psnr-frame-8bit", [30.0])], {"protocol": chosen.facts(), "split": "all"}
    folder = make_run(tmp_path / "run", 64, 20.0)
    report.write(folder / "evaluation_2.json")
    run = read_run(folder)
    plain, ours, papers = run.section(most=2).tables
    assert "protocol" not in plain.caption
    told = "protocol davis+changed: data clips (mine) in place of DAVIS 2017; 49 frames of 16x16, split all"
    assert ours.caption == f"evaluation_2.json: {told}"
    assert papers.caption == "published for davis, not measured here"
    assert papers.rows[:2] == [
        ("method", "published", "source"), ("Cosmos CV4x8x8", "PSNR 35.85, rFVD 10.05", "arXiv 2501.03575"),
    ]  # fmt: skip
    how = [row[-1] for row in scores_table([run]).rows[1:]]
    assert how == ["psnr-frame-8bit, 8 frames of 16x16, split all", f"psnr-frame-8bit, {told}"]


def test_folders_of_the_same_names_are_rows_of_one_grid(tmp_path):
    """original/clip_0.mp4 is beside reconstruction/clip_0.mp4; numbers are in their natural order."""
    for kind in ("original", "reconstruction"):
        for number in (10, 2):
            video(tmp_path / "out" / kind / f"clip_{number}.mp4")
    (grid,) = clip_groups(tmp_path, most=8)
    assert {kind: [path.stem for path in paths] for kind, paths in grid.rows.items()} == {
        "original": ["clip_2", "clip_10"],
        "reconstruction": ["clip_2", "clip_10"],
    }
    assert [parse(stem) for stem in ("3_sample_0", "clip_007", "both", "4")] == [
        ("sample_0", 3),
        ("clip", 7),
        ("both", None),
        ("4", None),
    ]


@pytest.mark.posix
def test_several_runs_are_compared_and_escaped(tmp_path, capsys):
    """The page has the comparison first: differing keys alone, scores of like measurements in one row."""
    folders = [make_run(tmp_path / name, dim, psnr) for name, dim, psnr in (("a", 64, 20.0), ("<i>b", 96, 22.0))]
    main([*map(str, folders), "--out", str(tmp_path / "page")])
    index = tmp_path / "page" / "index.html"
    assert capsys.readouterr().out.strip() == str(index)
    page = Page(index.read_text())
    assert len(page.all("section")) == 3 and "a and <i>b" in page.text and "<i>" not in index.read_text()
    assert "model.dim" in page.text and "model.depth" not in page.text
    differences, same = config_differences([flatten(read_run(folder).config) for folder in folders])
    assert differences == [("model.dim", "64", "96")] and same == 2
    table = scores_table([read_run(folder) for folder in folders])
    assert [row[:3] for row in table.rows[1:]] == [("PSNR", "20 dB", "22 dB")]
    labels = {attributes.get("aria-label") for attributes in page.all("div") if attributes.get("class") == "group"}
    assert {"generated: original", "generated: sample 0", "Pictures, step 30: reconstruction"} < labels


@pytest.mark.posix
def test_names_of_files_folders_and_keys_are_text(tmp_path):
    """Signs of HTML, quotes and braces of a template reach the page as they are written; files get plain names."""
    evil = "<b> & \"q\" 'a' {{ 7*7 }}"
    folder = make_run(tmp_path / evil, 64, 20.0)
    video(folder / evil / f"{evil}.mp4")
    picture(folder / evil / f"{evil} too.png")
    (folder / "config.yaml").write_text(yaml.safe_dump({evil: evil}))
    main([str(folder), str(make_run(tmp_path / "b", 96, 22.0)), "--out", str(tmp_path / "page"), "--title", evil])
    text = (tmp_path / "page" / "index.html").read_text()
    page = Page(text)
    assert "<b>" not in text.replace("<b>0", "").replace("<b>3", "") and " 49 " not in page.text
    assert evil in [attributes.get("alt", "").removesuffix(" too") for attributes in page.all("img")]
    assert evil in [attributes.get("aria-label") for attributes in page.all("video")]
    assert page.text.count(evil) >= 8
    sources = [attributes["src"] for tag in ("video", "img") for attributes in page.all(tag)]
    assert sources and all(re.fullmatch(r"media/[a-z0-9.-]+", source) for source in sources)


def test_a_link_to_nothing_is_left_out_and_named(tmp_path, caplog):
    run = make_run(tmp_path / "run", 64, 20.0)
    (run / "generated" / "9_sample_0.mp4").symlink_to("nothing.mp4")
    main([str(run), "--out", str(tmp_path / "page")])
    assert (tmp_path / "page" / "index.html").is_file()
    assert "9_sample_0.mp4: is a link to nothing; it is left out" in caplog.text


def test_mistakes_are_one_line(tmp_path):
    """A folder that is missing, empty, or named twice."""
    run = make_run(tmp_path / "a", 64, 20.0)
    (tmp_path / "empty").mkdir()
    for runs, message in (
        ([tmp_path / "nowhere"], "nowhere: no such run folder"),
        ([tmp_path / "empty"], "empty: neither metrics.jsonl"),
        ([run, run], "named twice"),
    ):
        with pytest.raises(UserError, match=message):
            main([*map(str, runs), "--out", str(tmp_path / "page")])
    assert not (tmp_path / "page" / "index.html").exists()
