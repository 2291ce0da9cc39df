import json
import math
import os
import re
from fractions import Fraction
from html.parser import HTMLParser

import numpy as np
import pytest

from evaluation.gallery import Gallery, Grid, Overview, Panel, Row
from evaluation.gallery.content import Curve, Line, place
from evaluation.gallery.page import draw, nice_ticks, template
from evaluation.gallery.runs import read_line
from tests.evaluation.browser import Browser, find_browser
from tests.videodata.odd_films import film, turned
from videodata.encode import write_video
from videodata.errors import UserError
from videodata.video import probe, read_video

HOSTILE = "<script>alert(\"x\")</script> & '$title'"
HOSTILE_FILE = 'x" onerror="alert(1).png' if hasattr(os, "fork") else "x' onerror='alert(1).png"  # no " on Windows
VOID = {"meta", "img", "input", "br"}


def curve_figure(curve):
    """The HTML of a curve: title, legend with last values, diagram."""
    return str(template().module.curve(draw(curve)))


class Page(HTMLParser):
    """Parses the page, checks that elements nest, and keeps tags, attributes and text."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.text = [], [], ""
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def media(tmp_path_factory):
    """A folder with three short videos and a picture of hostile name."""
    folder = tmp_path_factory.mktemp("clips")
    for name, frames in (("a", 16), ("b", 16), ("short", 8)):
        pixels = np.zeros((frames, 48, 64, 3), np.uint8)
        for t in range(frames):
            pixels[t, 10:30, 2 * t : 2 * t + 20] = (240, 160, 40)
        write_video(folder / f"{name}.mp4", pixels, Fraction(8))
    (folder / HOSTILE_FILE).write_bytes(b"not looked into")
    return folder


def build(media, folder):
    gallery = Gallery(HOSTILE, HOSTILE)
    row = Row(HOSTILE, [(HOSTILE, media / "a.mp4"), ("b", media / "b.mp4"), ("short", media / "short.mp4")])
    picture = Row("strip", [("picture", media / HOSTILE_FILE)])
    curve = Curve(HOSTILE, [Line(HOSTILE, [(0, 1), (10, 0.5)])], x_label=HOSTILE, unit=HOSTILE)
    gallery.add_section(
        HOSTILE,
        HOSTILE,
        clips=[row, picture],
        curves=[curve],
        table=[[HOSTILE, "mean"], [HOSTILE, 1.23456]],
        config={HOSTILE: HOSTILE},
        overview=[Overview(HOSTILE, HOSTILE, HOSTILE, HOSTILE)],
    )
    grid = Grid(HOSTILE, {HOSTILE: [media / "a.mp4"], "b": [media / "b.mp4"]}, [HOSTILE], given=4, note=HOSTILE)
    gallery.add_section("second", "plain", clips=[Row("again", [("a", media / "a.mp4")]), grid])
    return gallery.write(folder)


def test_page_is_one_folder_and_every_name_is_escaped(media, tmp_path):
    """Names appear as text, never as markup; all media lie in the folder and nothing is loaded from elsewhere."""
    index = build(media, tmp_path / "page")
    text = index.read_text()
    page = Page(text)
    assert len(page.all("script")) == 1
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    assert page.text.count(HOSTILE) >= 10
    sources = [attributes["src"] for tag in ("video", "img") for attributes in page.all(tag)]
    assert len(sources) == 7 and all(re.fullmatch(r"media/[a-z0-9.-]+", source) for source in sources)
    assert all((index.parent / source).is_file() for source in sources)
    assert "http" not in re.sub(r"http-equiv", "", text) and "@import" not in text
    assert len(text) < 60_000
    assert sorted(path.name for path in index.parent.iterdir()) == ["index.html", "media"]
    assert len(page.all("section")) == 2 and "1.235" in page.text


def test_each_control_has_a_name_and_navigation_leads_to_the_sections(media, tmp_path):
    """Rows with videos can be focused; buttons, sliders and media have labels; links have targets."""
    page = Page(build(media, tmp_path).read_text())
    rows = [attributes for attributes in page.all("div") if attributes.get("class") == "group"]
    assert ["tabindex" in attributes for attributes in rows] == [True, False, True, True]
    for tag in ("video", "dialog"):
        assert page.all(tag) and all(attributes["aria-label"] for attributes in page.all(tag))
    buttons = [attributes for attributes in page.all("button") if attributes.get("class")]
    assert len(buttons) == 9 and all(attributes["aria-label"] for attributes in buttons)
    ids = {attributes["id"] for attributes in page.all("section")}
    assert {link["href"] for link in page.all("a") if "media/" not in link["href"]} == {f"#{name}" for name in ids}


@pytest.mark.parametrize("matrix", [(-1, 0, 0, 1), (1, 0, 0, -1), (0, 1, 1, 0), (-1, 0, 0, -1), (0, 1, -1, 0)])
def test_films_that_are_stored_otherwise_than_shown_are_written_anew(tmp_path, matrix):
    """Mirrored and turned ones: the page needs no player that knows their display matrix. Others are copied."""
    plain = film(tmp_path / "plain.mp4", 4)
    path = turned(plain, tmp_path / "turned.mp4", matrix)
    place(plain, tmp_path, "copy")
    assert (tmp_path / "copy.mp4").read_bytes() == plain.read_bytes()
    medium = place(path, tmp_path, "anew")
    info, right = probe(tmp_path / medium.name), read_video(path)[0]
    assert not info.mirrored and info.rotation == 0
    shown = read_video(tmp_path / medium.name)[0]
    assert shown.shape == right.shape and abs(shown.astype(float) - right).mean() < 3


def test_missing_and_unknown_media_are_one_line(media, tmp_path):
    """The line names the file."""
    with pytest.raises(UserError, match="nothing.mp4: no such clip"):
        Gallery("t").add_section("m", "i", clips=[Row("r", [("c", media / "nothing.mp4")])]).write(tmp_path)
    with pytest.raises(UserError, match=r"clip.txt: a page shows videos and pictures"):
        Gallery("t").add_section("m", "i", clips=[Row("r", [("c", "clip.txt")])]).write(tmp_path)
    with pytest.raises(UserError, match=r"a.mp4: 64 pixels are not 3 panels"):
        Gallery("t").add_section("m", "i", clips=[Row("r", [("c", Panel(media / "a.mp4", 0, 3))])]).write(tmp_path)
    (tmp_path / "no.mp4").write_bytes(b"no video")
    with pytest.raises(UserError, match="no.mp4"):
        Gallery("t").add_section("m", "i", clips=[Row("r", [("c", tmp_path / "no.mp4")])]).write(tmp_path)
    assert not (tmp_path / "index.html").exists()


def test_what_browsers_do_not_play_is_written_anew(media, tmp_path):
    """Odd sizes, GIFs and parts of a video become H.264 that plays everywhere; frames and rate stay."""
    pixels = np.zeros((5, 33, 70, 3), np.uint8)
    pixels[:, :, 36:] = (0, 200, 0)
    write_video(tmp_path / "odd.mp4", pixels, Fraction(30000, 1001))
    write_video(tmp_path / "moving.gif", pixels[:, :32, :64], Fraction(10))
    sides = [(str(index), Panel(tmp_path / "odd.mp4", index, gap=2)) for index in (0, 1)]
    clips = [("odd", tmp_path / "odd.mp4"), ("gif", tmp_path / "moving.gif"), *sides]
    page = Page(Gallery("t").add_section("m", "i", clips=[Row("r", clips)]).write(tmp_path / "page").read_text())
    infos = [probe(tmp_path / "page" / attributes["src"]) for attributes in page.all("video")]
    assert [(info.width, info.height) for info in infos] == [(70, 34), (64, 32), (34, 34), (34, 34)]
    assert {(info.codec, info.pixel_format, info.frames) for info in infos} == {("h264", "yuv420p", 5)}
    assert infos[0].fps == infos[2].fps == Fraction(30000, 1001)
    right = read_video(tmp_path / "page" / page.all("video")[3]["src"])[0]
    assert np.abs(right.reshape(-1, 3).mean(0) - (0, 200, 0)).max() < 3
    Gallery("t").add_section("m", "i", clips=[Row("r", clips[:1])]).write(tmp_path / "page")
    assert [path.name for path in (tmp_path / "page" / "media").iterdir()] == ["0-m-0-0.mp4"]


def test_curves_are_read_from_metrics_and_drawn_to_scale(tmp_path):
    """Half-written lines and other records are skipped; the last value is in the legend; points lie where they must."""
    path = tmp_path / "metrics.jsonl"
    records = [
        {"step": 1, "loss": 4.0},
        {"step": 2, "psnr": 9.0},
        {"step": 3, "loss": math.nan},
        {"step": 5, "loss": 2},
    ]
    path.write_text("\n".join(json.dumps(record) for record in records) + '\n{"step": 6, "lo')
    line = read_line(path, "loss")
    assert [point for point in line.points if not math.isnan(point[1])] == [(1, 4), (5, 2)]
    figure = Page(curve_figure(Curve("Loss", [line, Line("base", [(0, 3.0)], baseline=True)])))
    assert "2" in figure.text
    curve, baseline = (
        [tuple(map(float, point.split(","))) for point in attributes["points"].split()]
        for attributes in figure.all("polyline")
    )
    assert len(curve) == 2 and curve[0][0] < curve[1][0] and curve[0][1] < curve[1][1]  # SVG's y points down
    assert baseline[0][1] == baseline[1][1] == pytest.approx((curve[0][1] + curve[1][1]) / 2, abs=0.1)
    with pytest.raises(UserError, match="nowhere.jsonl"):
        read_line(tmp_path / "nowhere.jsonl", "loss")
    assert "no values yet" in curve_figure(Curve("Empty", [Line("x", [])]))
    assert len(curve_figure(Curve("Long", [Line("x", [(i, i % 7) for i in range(100_000)])]))) < 10_000


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-3, 7), (13.2, 21.9), (0, 600), (1e-5, 3e-5)])
def test_ticks_are_round_and_inside(low, high):
    """Three to ten ticks at equal distance within the range."""
    ticks = nice_ticks(low, high)
    assert 3 <= len(ticks) <= 10 and low - 1e-9 <= ticks[0] and ticks[-1] <= high + 1e-9
    assert np.allclose(np.diff(ticks), ticks[1] - ticks[0])


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """A headless Chromium."""
    program = find_browser()
    if not program:
        pytest.skip("needs a quiet machine and a Chromium (Debian: apt install chromium): CHROMIUM=$(which chromium)")
    with Browser(program, tmp_path_factory.mktemp("profile")) as opened:
        opened.view(1280, 900)
        yield opened


WATCH = """new Promise(resolve => {
  const [a, b] = document.querySelectorAll(".group video"), times = [], apart = [];
  const look = () => {
    times.push(a.currentTime); apart.push(Math.abs(a.currentTime - b.currentTime));
    if (times.some((time, i) => i && time < times[i - 1] - 0.5) && times.length > 30) resolve([times, apart]);
    else setTimeout(look, 40);
  };
  look();
})"""
# Frame of each clip of the first group; a clip that has ended stands on its last one.
FRAMES = """[...document.querySelector(".group").querySelectorAll("video")]
    .map(video => Math.min(video.dataset.frames - 1, Math.floor(video.currentTime * 8 + 1e-3)))"""
SETTLED = "[...document.querySelectorAll('video')].every(video => !video.seeking)"
PAUSED = "[...document.querySelectorAll('video')].every(video => video.paused)"


@pytest.mark.slow
def test_clips_play_in_step_in_a_browser_and_nothing_leaves_the_page(media, browser, tmp_path):
    """In Chromium, from the disk: clips have a length, loop together and stop on one frame; nothing is loaded."""
    index = build(media, tmp_path / "page")
    browser.open(index)
    browser.wait_for("[...document.querySelectorAll('video')].every(video => video.duration > 0.9)")
    times, apart = browser.run(WATCH)
    assert max(times) > 1.0 and np.median(apart) < 0.3
    browser.run("document.querySelector('.group').focus()")
    browser.press(" ")
    browser.wait_for("document.querySelector('.group video').paused")
    browser.wait_for(f"new Set(({FRAMES}).slice(0, 2)).size === 1")
    browser.press("p")  # the second group still plays: all stop
    browser.wait_for(PAUSED)
    assert browser.run("document.querySelectorAll('script').length") == 1  # no name became markup
    assert browser.run("document.querySelector('.group video').classList.contains('enlarged')")
    assert browser.run("document.documentElement.scrollWidth") <= 1280
    assert not browser.complaints
    assert browser.requests and all(address.startswith(index.parent.as_uri()) for address in browser.requests)


@pytest.mark.slow
def test_keys_slider_and_speed_move_all_clips_of_a_group(media, browser, tmp_path):
    """Frames are met exactly; shorter clips wait on their last frame."""
    browser.open(build(media, tmp_path / "page"))
    browser.wait_for("[...document.querySelectorAll('video')].every(video => video.duration > 0)")
    browser.run("document.querySelector('.group').focus()")
    browser.press("p")
    browser.wait_for(PAUSED)
    browser.press("Home")
    for key, expected in (("ArrowRight", [1, 1, 1]), ("End", [15, 15, 7]), ("ArrowLeft", [14, 14, 7])):
        browser.press(key)
        browser.wait_for(f"String({FRAMES}) === '{','.join(map(str, expected))}' && {SETTLED}")
    assert browser.run("document.querySelector('.time').textContent") == "15 / 16"
    browser.run("""(() => { const slider = document.querySelector(".group input");
        slider.value = 4; slider.dispatchEvent(new Event("input")); })()""")
    browser.wait_for(f"String({FRAMES}) === '4,4,4'")
    browser.press("]")
    browser.press(" ")
    browser.wait_for("document.querySelector('.group video').playbackRate === 2")
    browser.press("j")
    assert browser.run("document.activeElement.getAttribute('aria-label')") == "again"
    browser.press("p")
    browser.wait_for(PAUSED)


@pytest.mark.slow
def test_nothing_overflows_a_narrow_window(media, browser, tmp_path):
    """A telephone shows the page without scrolling sideways."""
    browser.view(360, 700)
    browser.open(build(media, tmp_path / "page"))
    browser.wait_for("[...document.querySelectorAll('video')].every(video => video.clientWidth > 60)")
    assert browser.run("document.documentElement.scrollWidth") <= 360
