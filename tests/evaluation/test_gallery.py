import http.server
import json
import math
import re
import shutil
import subprocess
import threading
import time
from fractions import Fraction
from html.parser import HTMLParser

import numpy as np
import pytest

from evaluation.curves import Curve, Line, curve_figure, nice_ticks, read_line
from evaluation.gallery import Gallery, Row
from videodata.errors import UserError
from videodata.write_video import write_video

HOSTILE = "<script>alert(\"x\")</script> & '$title'"
VOID = {"meta", "img", "input", "br"}


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
    (folder / 'x" onerror="alert(1).png').write_bytes(b"not looked into")
    return folder


def build(media, folder):
    gallery = Gallery(HOSTILE, HOSTILE)
    row = Row(HOSTILE, [(HOSTILE, media / "a.mp4"), ("b", media / "b.mp4"), ("short", media / "short.mp4")])
    picture = Row("strip", [("picture", media / 'x" onerror="alert(1).png')])
    curve = Curve(HOSTILE, [Line(HOSTILE, [(0, 1), (10, 0.5)])], x_label=HOSTILE, unit=HOSTILE)
    gallery.add_section(
        HOSTILE,
        HOSTILE,
        clips=[row, picture],
        curves=[curve],
        table=[[HOSTILE, "mean"], [HOSTILE, 1.23456]],
        config={HOSTILE: HOSTILE},
        headline=[(HOSTILE, HOSTILE)],
    )
    gallery.add_section("second", "plain", clips=[Row("again", [("a", media / "a.mp4")])])
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
    assert len(sources) == 5 and all(re.fullmatch(r"media/[a-z0-9.-]+", source) for source in sources)
    assert all((index.parent / source).is_file() for source in sources)
    assert "http" not in re.sub(r"http-equiv", "", text) and "@import" not in text
    assert len(text) < 40_000
    assert sorted(path.name for path in index.parent.iterdir()) == ["index.html", "media"]
    assert len(page.all("section")) == 2 and "1.235" in page.text


def test_each_control_has_a_name_and_navigation_leads_to_the_sections(media, tmp_path):
    """Rows with videos can be focused; buttons, sliders and media have labels; links have targets."""
    page = Page(build(media, tmp_path).read_text())
    rows = [attributes for attributes in page.all("div") if attributes.get("class") == "row"]
    assert ["tabindex" in attributes for attributes in rows] == [True, False, True]
    for tag in ("button", "input", "video", "svg"):
        assert page.all(tag) and all(attributes["aria-label"] for attributes in page.all(tag))
    ids = {attributes["id"] for attributes in page.all("section")}
    assert {attributes["href"] for attributes in page.all("a")} == {f"#{name}" for name in ids}


def test_missing_and_unknown_media_are_one_line(media, tmp_path):
    """The line names the file."""
    with pytest.raises(UserError, match="nothing.mp4: no such clip"):
        Gallery("t").add_section("m", "i", clips=[Row("r", [("c", media / "nothing.mp4")])]).write(tmp_path)
    with pytest.raises(UserError, match=r"clip.avi: a page shows .*\.mp4"):
        Gallery("t").add_section("m", "i", clips=[Row("r", [("c", "clip.avi")])]).write(tmp_path)
    assert not (tmp_path / "index.html").exists()


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


PROBE = """<script>
const row = document.querySelector(".row"), clips = [...row.querySelectorAll("video")];
const wait = seconds => new Promise(resolve => setTimeout(resolve, 1000 * seconds));
const press = key => row.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
(async () => {
  await wait(1.2);
  const drifts = [], times = [];
  for (let i = 0; i < 60; i++) {
    times.push(clips[0].currentTime);
    drifts.push(Math.abs(clips[0].currentTime - clips[1].currentTime));
    await wait(0.05);
  }
  drifts.sort((a, b) => a - b);
  press(" "); await wait(0.1);
  const paused = clips.every(clip => clip.paused), before = clips[0].currentTime;
  const slider = row.querySelector("input");
  slider.value = 500; slider.dispatchEvent(new Event("input")); await wait(0.6);
  const middle = clips.map(clip => clip.currentTime);
  press("ArrowRight"); await wait(0.6);
  const stepped = clips[0].currentTime;
  document.body.dispatchEvent(new KeyboardEvent("keydown", { key: "p", bubbles: true })); await wait(0.2);
  const all = [...document.querySelectorAll("video")].some(clip => !clip.paused);
  fetch("$address", { method: "POST", mode: "no-cors", body: JSON.stringify({
    median: drifts[30], spread: Math.max(...times) - Math.min(...times),
    wrapped: times.some((t, i) => i && t < times[i - 1]), paused, middle, stepped, all,
    enlarged: clips[0].classList.contains("enlarged"),
    injected: document.querySelectorAll("script").length }) });
})();
</script></body>"""


@pytest.mark.slow
def test_rows_play_in_step_in_a_browser(media, tmp_path):
    """In Chromium: clips loop together, Space pauses, the slider and the arrow keys move all, P stops or starts all."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if not browser:
        pytest.skip("no Chromium here")
    index = build(media, tmp_path)
    page = re.sub(r'<meta http-equiv="Content-Security-Policy".*?>', "", index.read_text())
    result = run_in_browser(browser, page, tmp_path, deadline=60)
    assert result["median"] < 0.2 and result["spread"] > 1.0 and result["wrapped"]
    assert result["paused"] and result["enlarged"] and result["all"] is False
    assert result["middle"][:2] == pytest.approx([1.0, 1.0], abs=0.05)
    assert result["stepped"] == pytest.approx(1.0 + 2.0 / 24, abs=0.05)
    assert result["injected"] == 2  # the page's own and the probe


def run_in_browser(browser, page, folder, deadline):
    """Open the page with the probe from the disk and wait for what the probe posts to a loopback server."""
    results = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            results.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        probe = folder / "probe.html"
        address = f"http://127.0.0.1:{server.server_port}/"
        probe.write_text(page.replace("</body>", PROBE.replace("$address", address)))
        flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}"]
        flags += ["--remote-debugging-port=0", "--autoplay-policy=no-user-gesture-required"]
        command = [browser, *flags, probe.as_uri()]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            end = time.monotonic() + deadline
            while not results and time.monotonic() < end:
                time.sleep(0.1)
        finally:
            process.terminate()
            process.wait(20)
            server.shutdown()
    assert results, "the page did not answer"
    return results[0]
