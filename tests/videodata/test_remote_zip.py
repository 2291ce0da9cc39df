"""Videos out of a zip on a web server, without the rest of it."""

import http.server
import io
import json
import ssl
import threading
import urllib.error
import zipfile
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

import prepare_ucf101
from videodata import remote_zip, write_video
from videodata.errors import UserError
from videodata.remote_zip import RangeFile, fetch_members

SIZE = ["--num_frames", "4", "--width", "24", "--height", "16", "--workers", "1"]
PADDING = 400_000  # bytes of another file between the videos


@dataclass
class Behaviour:
    """How the test server treats the next requests, and what it was asked."""

    data: bytes = b""
    ranges: bool = True
    etag: str = '"one"'
    status: list[int] = field(default_factory=list)  # per request: answer with this status alone
    cut: list[int] = field(default_factory=list)  # per request: bytes after which the connection is closed
    sent: int = 0


class _Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *arguments: object) -> None:
        pass

    def do_GET(self) -> None:
        how: Behaviour = self.server.behaviour
        if how.status and (status := how.status.pop(0)) != 200:
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        body, wanted = how.data, self.headers.get("Range")
        self.send_response(206 if how.ranges and wanted else 200)
        if how.ranges and wanted:
            first, last = (int(number) for number in wanted.removeprefix("bytes=").split("-"))
            body = body[first : last + 1]
            self.send_header("Content-Range", f"bytes {first}-{first + len(body) - 1}/{len(how.data)}")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", how.etag)
        self.end_headers()
        body = body[: how.cut.pop(0)] if how.cut else body
        how.sent += len(body)
        self.wfile.write(body)


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> bytes:
    """A flat zip as the mirror's: five videos of 9 frames, with a large file after each, one of them hidden."""
    folder, memory = tmp_path_factory.mktemp("videos"), io.BytesIO()
    with zipfile.ZipFile(memory, "w") as opened:
        for index, name in enumerate(("Archery_g10_c01", "Archery_g02_c01", "YoYo_g01_c01", "YoYo_g01_c02")):
            frames = np.full((9, 16, 24, 3), 40 * index, np.uint8)
            path = write_video(folder / f"v_{name}.mp4", frames, Fraction(25))
            opened.write(path, f"UCF101/{path.name}")
            opened.writestr(f"UCF101/padding{index}.bin", bytes(PADDING))
        opened.writestr("__MACOSX/UCF101/._v_Archery_g02_c01.mp4", b"note")
    return memory.getvalue()


@pytest.fixture
def server(archive, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(remote_zip.time, "sleep", lambda seconds: None)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.behaviour = Behaviour(archive)
    server.url = f"http://127.0.0.1:{server.server_port}/UCF101_videos.zip"
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def prepare(server, out: str, *flags: str) -> list[str]:
    """Ids of the videos in the array that the command makes."""
    prepare_ucf101.main(["--dataset_url", server.url, "--output_npy_file", out, *SIZE, *flags])
    return [video["id"] for video in json.loads(Path(out).with_suffix(".json").read_text())["videos"]]


def test_a_part_of_the_videos_costs_a_part_of_the_bytes(server):
    """--max_videos and --classes fetch only what they choose, in natural order, and each video once."""
    first = prepare(server, "first.npy", "--max_videos", "2")
    assert first == ["Archery/v_Archery_g02_c01", "Archery/v_Archery_g10_c01"]
    np.testing.assert_allclose(np.load("first.npy").mean(axis=(1, 2, 3, 4)), [40, 40, 0, 0], atol=2)
    assert server.behaviour.sent < PADDING
    assert sorted(path.name for path in Path().iterdir()) == ["UCF101.some", "first.json", "first.npy"]
    assert len(list(Path("UCF101.some/UCF101").iterdir())) == 2
    server.behaviour.sent = 0
    (Path("UCF101.some/UCF101") / "v_Archery_g10_c01.mp4").write_bytes(b"damaged")
    assert prepare(server, "classes.npy", "--classes", "archery") == first
    assert Path("classes.npy").read_bytes() == Path("first.npy").read_bytes()
    assert prepare(server, "yoyo.npy", "--classes", "YoYo", "--max_videos", "1") == ["YoYo/v_YoYo_g01_c01"]
    assert server.behaviour.sent < 2 * PADDING


def test_without_a_choice_or_without_ranges_the_whole_archive_is_downloaded(server, caplog):
    """A server that sends whole files only is told of, and serves the same array."""
    server.behaviour.ranges = False
    assert prepare(server, "some.npy", "--max_videos", "1", "--rar_path", "whole.zip") == ["Archery/v_Archery_g02_c01"]
    assert "does not send parts of files: the whole archive is downloaded" in caplog.text
    assert Path("whole.zip").stat().st_size == len(server.behaviour.data)
    server.behaviour.ranges = True
    assert len(prepare(server, "all.npy", "--rar_path", "all.zip", "--extract_path", "all")) == 4
    assert not Path("all.some").exists()


def test_dry_run_asks_nobody(server, capsys):
    """The plan names the folder of the chosen videos; no request is made."""
    prepare_ucf101.main(["--dataset_url", server.url, "--max_videos", "3", "--dry_run", *SIZE])
    assert f"download the chosen videos alone from {server.url} to UCF101.some" in capsys.readouterr().out
    assert server.behaviour.sent == 0


def refuse_certificate(*_: object) -> bytes:
    raise urllib.error.URLError(ssl.SSLCertVerificationError(1, "unable to get local issuer certificate"))


def test_a_busy_server_and_cut_connections_are_asked_again(server, monkeypatch):
    """Reading goes on after status 503 and after half an answer; status 404 and a wrong certificate are final."""
    server.behaviour.status, server.behaviour.cut = [503, 200, 503], [1, 10]
    source = RangeFile(server.url)
    source.seek(100)
    assert source.read(50) == server.behaviour.data[100:150] and source.tell() == 150
    source.seek(-7, 2)
    assert source.read() == server.behaviour.data[-7:]
    server.behaviour.status = [404] * 2
    with pytest.raises(UserError, match="cannot be read in parts .*404"):
        RangeFile(server.url)
    assert server.behaviour.status == [404]
    monkeypatch.setattr(RangeFile, "_request", refuse_certificate)
    with pytest.raises(UserError, match="--insecure goes on without this check"):
        RangeFile(server.url)


def test_a_file_that_changes_meanwhile_is_refused(server):
    """Another ETag between two requests: what was read does not belong together."""
    source = RangeFile(server.url)
    server.behaviour.etag = '"two"'
    with pytest.raises(UserError, match="the file on the server changed"):
        source.read(10)


def test_damage_and_lack_of_room_are_one_line(server, monkeypatch):
    """A wrong checksum leaves no file; a full disk is told before the first video; no zip is no zip."""
    data = server.behaviour.data
    place = data.index(b"ftyp")
    server.behaviour.data = data[:place] + b"FTYP" + data[place + 4 :]
    with pytest.raises(UserError, match="is no intact zip archive .*v_Archery_g10_c01.mp4"):
        prepare(server, "x.npy", "--max_videos", "2")
    assert [path.name for path in Path("UCF101.some").rglob("*.mp4")] == ["v_Archery_g02_c01.mp4"]
    with pytest.raises(UserError, match="need 1000.0 GB,"):
        fetch_members(server.url, Path("y"), lambda names: [], reserve=10**12)
    with pytest.raises(UserError, match="the server offers .* bytes, expected 5"):
        fetch_members(server.url, Path("y"), lambda names: [], size=5)
    server.behaviour.data = b"no zip" * 100
    with pytest.raises(UserError, match="is no intact zip archive"):
        prepare(server, "z.npy", "--max_videos", "2")
