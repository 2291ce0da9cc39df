"""Files as they come from other people: tags in any encoding, cut films, rates that vary, mirrors and flat pixels."""

import gc
import json
import logging
import os
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

import prepare_ucf101
from scripts import prepare_data
from tests.videodata.odd_films import (
    GROUP,
    SHIFT_JIS,
    changing_film,
    cut_off,
    film,
    number_of,
    numbers,
    picture,
    turned,
)
from videodata import VideoError, iter_frames, open_clips, probe, read_video, write_video
from videodata.datasets.youtube import cut_video
from videodata.prepare import SequenceSettings, expected_sequences
from videodata.resize import resize_frames
from videodata.torn_files import ends_in_a_piece
from videodata.video import VIDEO_SUFFIXES, count_frames
from videodata.video_folder import list_videos
from vvae.src.errors import VideoFileError
from vvae.src.video_io import read_frames

SIZE = ["--width", "40", "--height", "24", "--workers", "2"]
FAST_START = {"options": {"movflags": "+faststart"}}


def assert_windows(path: Path, right: list[int]) -> None:
    """The decode of the whole file shows these numbers, and so does every window of it; the count is theirs."""
    assert numbers(read_video(path)[0]) == right
    assert count_frames(path) == len(right)
    for start in range(len(right)):
        count = min(3, len(right) - start)
        assert numbers(read_video(path, start, count)[0]) == right[start : start + count], start
    half = (len(right) - 1) // 2
    assert not half or numbers(read_video(path, 1, half, step=2)[0]) == right[1 : 2 * half : 2]


@pytest.mark.parametrize(
    ("suffix", "codec"), [("mp4", "libx264"), ("mkv", "libx264"), ("avi", "mpeg4"), ("mov", "mpeg4")]
)
def test_tags_are_in_any_encoding(tmp_path, suffix, codec):
    """A title in Shift JIS: every reader gives the frames."""
    path = film(tmp_path / f"a.{suffix}", 20, codec, title=SHIFT_JIS)
    assert_windows(path, list(range(20)))
    assert probe(path).height == 96


# Packets that are left out of a film of 60 frames, and the numbers of the frames that no decoder then gives.
CUTS = {
    "between key frames": ({0, 1, 2, 3, 4}, range(GROUP)),
    "at a key frame": (set(range(GROUP)), range(GROUP)),
    "of all but the last group": (set(range(1, 4 * GROUP)), None),
    "in the middle": (set(range(26, 31)), None),
    "of a key frame in the middle": ({24}, None),
}


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts", "flv"])
@pytest.mark.parametrize("cut", CUTS)
def test_packets_that_promise_a_frame_which_no_decoder_gives(tmp_path, suffix, cut):
    """A recording cut between key frames: a window is the slice of the whole decode, the count that of its frames."""
    without, lost = CUTS[cut]
    path = film(tmp_path / f"a.{suffix}", without=without)
    whole = numbers(iter_frames(path, keep_damaged=True))
    if lost is not None:
        assert whole == [number for number in range(60) if number not in lost]
    assert_windows(path, whole)


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts"])
@pytest.mark.parametrize("cut", CUTS)
def test_lost_references_of_open_groups(tmp_path, suffix, cut):
    """HEVC passes over frames that are shown before a key frame and need one before it, at a cut anywhere."""
    path = film(tmp_path / f"a.{suffix}", codec="libx265", without=CUTS[cut][0])
    whole = numbers(iter_frames(path, keep_damaged=True))
    assert len(whole) < 60
    assert_windows(path, whole)


def test_what_no_decoder_gives_is_said(tmp_path, caplog):
    """The number of frames that are missing is in a warning."""
    path = film(tmp_path / "a.mp4", without=range(5))
    assert count_frames(path) == 60 - GROUP
    assert "7 of its 55 frames cannot be decoded" in caplog.text


def test_a_cut_recording(clips):
    """Frames 24 to 59 of a film, of whose first group no key frame is left; and HEVC cut at an open group."""
    assert_windows(clips / "reports/midgop.mp4", list(range(24, 60)))
    assert_windows(clips / "reports/hevc_cut_fmp4.mp4", list(range(36, 60)))


def variable_film(path: Path) -> Path:
    """Five seconds at 10 frames per second, then five at 30."""
    return film(path, 200, rate=30, times=[*range(0, 150, 3), *range(150, 300)])


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts", "mov"])
def test_seconds_are_found_by_the_times_of_frames(tmp_path, suffix):
    """Seconds 5 to 9 are frames 50 to 169, whatever the average rate; they play for four seconds."""
    path = variable_film(tmp_path / f"a.{suffix}")
    for start, end, right in [
        (5, 9, range(50, 170)),
        (0, 2, range(20)),
        (4, 6, range(40, 80)),
        (9.5, 20, range(185, 200)),
    ]:
        cut = cut_video(path, tmp_path / "cut.mp4", start, end)
        frames, fps = read_video(cut)
        assert numbers(frames) == list(right)
        assert float(len(right) / fps) == pytest.approx(min(end, 10) - start, rel=0.05)
    assert read_video(cut)[1] == pytest.approx(30, rel=0.01)


def test_seconds_of_a_film_with_a_steady_rate(tmp_path):
    """The rate of the film is kept exactly, also without times (AVI) and from the middle of a damaged film."""
    for name, codec in (("a.mp4", "libx264"), ("a.avi", "mpeg4"), ("a.mkv", "libx264")):
        frames, fps = read_video(cut_video(film(tmp_path / name, codec=codec), tmp_path / "cut.mp4", 1, 2))
        assert numbers(frames) == list(range(25, 50)) and fps == 25
    cut = film(tmp_path / "b.mp4", without=range(5))  # without its first twelve frames, of which seven have packets
    frames, _ = read_video(cut_video(cut, tmp_path / "cut.mp4", 0, 1))
    assert numbers(frames)[0] == GROUP
    with pytest.raises(VideoError, match="ends before second 3"):
        cut_video(tmp_path / "a.mp4", tmp_path / "cut.mp4", 3, 4)


def test_seconds_of_a_recording_with_a_variable_rate(clips, tmp_path):
    """A telephone's film: 50 to 169."""
    frames, fps = read_video(cut_video(clips / "reports/vfr.mp4", tmp_path / "cut.mp4", 5, 9))
    assert numbers(frames) == list(range(50, 170)) and fps == 30


MATRICES = {  # (a, b, c, d) of the display matrix, and what it does with the stored picture
    "as it is": ((1, 0, 0, 1), lambda p: p),
    "mirrored": ((-1, 0, 0, 1), lambda p: p[:, ::-1]),
    "upside down": ((1, 0, 0, -1), lambda p: p[::-1]),
    "half a turn": ((-1, 0, 0, -1), lambda p: p[::-1, ::-1]),
    "a quarter clockwise": ((0, 1, -1, 0), lambda p: np.rot90(p, -1)),
    "a quarter the other way": ((0, -1, 1, 0), lambda p: np.rot90(p)),
    "rows for columns": ((0, 1, 1, 0), lambda p: p.swapaxes(0, 1)),
    "and half a turn": ((0, -1, -1, 0), lambda p: np.rot90(p.swapaxes(0, 1), 2)),
}


@pytest.mark.parametrize("name", MATRICES)
def test_the_display_matrix_is_applied_as_players_do(tmp_path, name):
    """Flips where its determinant is negative, quarter turns, and both."""
    matrix, shown = MATRICES[name]
    path = turned(film(tmp_path / "a.mp4", 3), tmp_path / "turned.mp4", matrix)
    stored, right = read_video(tmp_path / "a.mp4")[0], read_video(path)[0]
    assert np.array_equal(right, np.stack([shown(frame) for frame in stored]))
    assert np.array_equal(right, stored) == (name == "as it is")
    info = probe(path)
    a, b, c, d = matrix
    assert (info.height, info.width) == right.shape[1:3] and info.mirrored == (a * d - b * c < 0)
    small = read_video(path, size=(40, 30), resize="pad")[0].astype(float)
    assert abs(small - resize_frames(right, (40, 30), "pad")).mean() < 2


def test_a_mirrored_recording(clips):
    """The stored frames with their columns reversed."""
    path = clips / "reports/hflip.mp4"
    with av.open(str(path)) as container:
        stored = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert (
        [number_of(frame[:, ::-1]) for frame in read_video(path)[0]] == [number_of(f) for f in stored] == [*range(60)]
    )


@pytest.mark.parametrize(("aspect", "width"), [(Fraction(2), 320), (Fraction(1, 2), 80), (Fraction(64, 45), 228)])
@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi"])
def test_pixels_become_square(tmp_path, suffix, aspect, width):
    """`probe` tells the size on the screen, frames have it, and crop and pad keep the shape of what is shown."""
    codec = "mpeg4" if suffix == "avi" else "libx264"
    path = film(tmp_path / f"a.{suffix}", 5, codec, pixel_aspect=aspect)
    info = probe(path)
    assert (info.height, info.width, info.pixel_aspect) == (96, width, aspect)
    frames, _ = read_video(path)
    assert frames.shape == (5, 96, width, 3) and numbers(frames) == list(range(5))
    padded = read_video(path, size=(64, 320), resize="pad")[0]
    assert (padded.max((0, 1, 3)) > 8).sum() == pytest.approx(64 * width / 96, abs=2)
    assert open_clips(path, 5, size=None)[0].shape == (3, 5, 96, width)


def test_a_turned_film_with_oblong_pixels(tmp_path):
    """The aspect is that of the stored pixels."""
    path = turned(film(tmp_path / "a.mp4", 2, pixel_aspect=Fraction(2)), tmp_path / "b.mp4", (0, 1, -1, 0))
    assert read_video(path)[0].shape == (2, 320, 96, 3)
    assert (probe(path).height, probe(path).width) == (320, 96)


@pytest.mark.parametrize("aspect", [Fraction(1280, 1281), Fraction(400, 1)])
def test_pixels_that_are_as_good_as_square_are_kept(tmp_path, aspect):
    """No blur for the sake of a rounded header, no giant pictures for that of a wrong one."""
    assert read_video(film(tmp_path / "a.mp4", 2, pixel_aspect=aspect))[0].shape == (2, 96, 160, 3)


def test_a_film_that_changes_its_size(tmp_path):
    """One line with the frame and both sizes; frames of one size where one is asked for."""
    path = changing_film(tmp_path / "a.ts")
    for read in (read_video, lambda path: list(iter_frames(path))):
        with pytest.raises(VideoError, match=r"frame 20 is 160x96, those before are 96x160 .*give a size"):
            read(path)
    frames, _ = read_video(path, size=(96, 160), resize="squeeze")
    assert numbers(frames) == [*range(20), *range(20)]
    assert numbers(read_video(path, 18, 4, size=(96, 160), resize="squeeze")[0]) == [18, 19, 0, 1]


CONTAINERS = {
    "mkv": ("libx264", {}), "webm": ("libvpx-vp9", {}), "flv": ("libx264", {}), "mxf": ("mpeg2video", {}),
    "ts": ("libx264", {}), "m2ts": ("libx264", {"format": "mpegts", "options": {"mpegts_m2ts_mode": "1"}}),
    "mpg": ("mpeg2video", {}), "vob": ("mpeg2video", {}), "wmv": ("wmv2", {}), "ogv": ("libvpx", {"format": "ogg"}),
    "mp4": ("libx264", FAST_START), "mov": ("libx264", FAST_START),
}  # fmt: skip


@pytest.mark.parametrize("suffix", CONTAINERS)
def test_a_film_that_was_cut_off_says_so(tmp_path, suffix):
    """A whole one is read, a part of it is damaged, and its frames are there for who wants them."""
    codec, options = CONTAINERS[suffix]
    whole = film(tmp_path / f"whole.{suffix}", 100, codec, **options)
    assert count_frames(whole) == len(read_video(whole)[0]) == 100
    for share in (0.47, 0.71, 0.88):
        path = cut_off(whole, tmp_path / f"cut.{suffix}", share)
        for read in (read_video, count_frames):
            with pytest.raises(VideoError, match="damaged: .*keep_damaged"):
                read(path)
        kept = numbers(read_video(path, keep_damaged=True)[0])
        assert 4 < len(kept) <= 100 and kept[:-4] == list(range(len(kept) - 4))  # three wait for one that follows them


@pytest.mark.parametrize("read", [read_video, read_frames], ids=["project", "vvae"])
def test_a_gif_that_was_cut_off_says_so(tmp_path, read):
    """Within a picture, whose rest FFmpeg takes from the one before; without its last byte it is whole."""
    whole = write_video(tmp_path / "a.gif", np.stack([picture(number) for number in range(12)]), 10)
    for share in (0.3, 0.6, 0.97):
        with pytest.raises((VideoError, VideoFileError), match="damaged: "):
            list(read(cut_off(whole, tmp_path / "cut.gif", share)))
    (tmp_path / "open.gif").write_bytes(whole.read_bytes().removesuffix(b";"))
    assert numbers(read_video(tmp_path / "open.gif")[0]) == list(range(12))


def test_a_hole_that_ends_a_wmv_early_says_so(tmp_path):
    """FFmpeg reads no further than a packet that is none, and the header knows how long the film is."""
    path = film(tmp_path / "a.wmv", 100, "wmv2")
    data, middle = bytearray(path.read_bytes()), path.stat().st_size // 2
    data[middle : middle + 4000] = bytes(4000)
    path.write_bytes(data)
    for read in (read_video, count_frames):
        with pytest.raises(VideoError, match="damaged: "):
            read(path)


@pytest.mark.parametrize("suffix", ["mkv", "webm", "mp4"])
def test_a_film_that_lacks_a_single_frame_says_so(tmp_path, suffix):
    """Less than the rounding of headers: the container's own lengths tell. What is behind the pictures is no loss."""
    codec, options = {**CONTAINERS, "mp4": ("libx264", FAST_START)}[suffix]
    whole = film(tmp_path / f"whole.{suffix}", 20, codec, size=(32, 32), **options)
    outcomes = set()
    for share in np.linspace(0.8, 0.999, 50):
        path = cut_off(whole, tmp_path / f"cut.{suffix}", share)
        try:
            assert len(read_video(path)[0]) == count_frames(path) == 20, share
            outcomes.add("whole")
        except VideoError as error:
            assert "damaged: " in str(error)
            outcomes.add("damaged")
    assert outcomes == ({"damaged"} if suffix == "mp4" else {"damaged", "whole"})


def test_a_length_beyond_all_files_is_one_of_damage(tmp_path):
    """Eight bytes of length can be more than can be sought in a file."""
    header, segment = bytes.fromhex("1a45dfa380"), bytes.fromhex("18538067") + bytes.fromhex("01fffffffffffffe")
    for name, content in (("segment", segment), ("cluster", segment + bytes.fromhex("1f43b67501fffffffffffffe"))):
        (tmp_path / name).write_bytes(header + content + bytes(100))
        assert ends_in_a_piece(tmp_path / name, {"matroska"})
    (tmp_path / "header").write_bytes(bytes.fromhex("1a45dfa301fffffffffffffe") + bytes(100))
    assert not ends_in_a_piece(tmp_path / "header", {"matroska"})


def test_a_fragment_that_was_cut_off_says_so(tmp_path):
    """Its header counts no frames; the box in which they lie is longer than the file."""
    options = {"options": {"movflags": "+frag_keyframe+empty_moov"}}
    whole = film(tmp_path / "a.mp4", 30, size=(32, 32), **options)
    assert count_frames(whole) == 30
    data = whole.read_bytes()
    for last in range(data.rindex(b"mdat") + 4, data.rindex(b"mfra") - 4, 7):
        (tmp_path / "cut.mp4").write_bytes(data[:last])
        with pytest.raises(VideoError, match="damaged: "):
            read_video(tmp_path / "cut.mp4")


def test_a_recording_that_was_cut_off(clips):
    """24 of 60 frames."""
    path = clips / "reports/mkv_trunc.mkv"
    with pytest.raises(VideoError, match=r"damaged: cut off after 0.96 of the 2.40 seconds"):
        read_video(path)
    assert numbers(read_video(path, keep_damaged=True)[0]) == list(range(24))


@pytest.mark.parametrize("suffix", ["mkv", "mp4", "flv"])
def test_sound_that_goes_on_is_no_damage(tmp_path, suffix):
    """The header states how long the sound is, which is there to its end."""
    path = film(tmp_path / f"a.{suffix}", 25, sound=4)
    assert probe(path).seconds > 3
    assert_windows(path, list(range(25)))


@pytest.mark.parametrize(("suffix", "codec", "name"), [("mp4", "libx264", b"avc1"), ("avi", "mpeg4", b"FMP4")])
def test_pictures_that_nothing_decodes(tmp_path, suffix, codec, name):
    """A format without a name, or one that FFmpeg does not know: one line."""
    path = film(tmp_path / f"a.{suffix}", 5, codec)
    data = path.read_bytes()
    at = data.rindex(name)
    path.write_bytes(data[:at] + b"\0xyz" + data[at + 4 :])
    for read in (probe, count_frames, read_video):
        with pytest.raises(VideoError, match="are in a format that FFmpeg has no decoder for"):
            read(path)


@pytest.mark.parametrize("frames_of", [iter_frames, read_frames], ids=["project", "vvae"])
def test_no_frame_outlives_its_use(tmp_path, frames_of):
    """Frames that wait for the garbage collector fill the memory, and cost a tenth of the time."""
    path = film(tmp_path / "a.mp4", 100)
    gc.collect()
    gc.disable()
    try:
        assert sum(1 for _ in frames_of(path)) == 100
        assert gc.collect() < 30
    finally:
        gc.enable()


def test_a_song_with_a_cover_is_no_film(clips):
    """One line that says so, from every reader."""
    for read in (probe, count_frames, read_video):
        with pytest.raises(VideoError, match="sound with a cover picture, no video"):
            read(clips / "reports/cover.mp4")


def test_the_one_list_of_suffixes(tmp_path):
    """Each of these is found in a folder, in upper and lower case."""
    for suffix in ("mts", "m2ts", "vob", "asf", "mxf", "3g2", "f4v", "y4m", "divx", "MTS", "mp4", "ts"):
        assert f".{suffix.lower()}" in VIDEO_SUFFIXES
        (tmp_path / f"a.{suffix}").touch()
    assert len(list_videos(tmp_path)) == 12


@pytest.mark.parametrize("suffix", ["mkv", "webm", "ts"])
def test_what_the_result_will_need_is_estimated(tmp_path, suffix):
    """Their headers count no frames: the length in seconds tells, and where nothing does, it is said."""
    film(tmp_path / f"a.{suffix}", 100, "libx264" if suffix != "webm" else "libvpx-vp9")
    videos, settings = list_videos(tmp_path), SequenceSettings(10, 8, 8)
    assert expected_sequences(videos, settings) == pytest.approx(10, abs=1)


def test_an_unknown_size_is_said(tmp_path, caplog, capsys):
    """A live recording says neither how many frames it has nor how long it is."""
    caplog.set_level(logging.INFO)
    (tmp_path / "videos").mkdir()
    film(tmp_path / "videos/a.webm", 20, "libvpx-vp9", options={"live": "1"})
    out = tmp_path / "out.npy"
    command = ["--video_folder", str(tmp_path / "videos"), "--output_npy_file", str(out), *SIZE, "--num_frames", "4"]
    prepare_ucf101.main([*command, "--dry_run"])
    assert "unknown before the videos are decoded" in capsys.readouterr().out
    prepare_ucf101.main(command)
    assert np.load(out).shape == (5, 4, 24, 40, 3)
    assert "unknown before they are decoded" in caplog.text


@pytest.mark.parametrize(
    "name",
    [
        *(
            pytest.param(name, marks=pytest.mark.posix)
            for name in ("12:30:45 clip.mp4", "file:a.mp4", "concat:a|b.mp4")
        ),
        *("-i.mp4", "a%03d.mp4", "tür\udcff.mp4"),
    ],
)
def test_names_are_never_addresses(tmp_path, monkeypatch, name):
    """Any name in the current folder is read and written."""
    monkeypatch.chdir(tmp_path)
    written = write_video(name, np.stack([picture(number) for number in range(5)]), 10)
    assert os.listdir() == [name] and written == Path(name)
    assert numbers(read_video(name)[0]) == list(range(5))
    assert numbers(read_video(name, 2, 2)[0]) == [2, 3]
    assert open_clips(name, 5, 32)[0].shape == (3, 5, 32, 32)


def test_a_list_of_other_files_is_no_film(tmp_path):
    """Files of others are data: a text does not make the reader open what it names."""
    film(tmp_path / "inside.mp4", 8)
    text = tmp_path / "a.mp4"
    text.write_text("ffconcat version 1.0\nfile inside.mp4\n")
    with pytest.raises(VideoError, match="a list of other files"):
        read_video(text)
    playlist = tmp_path / "b.mp4"
    playlist.write_text("#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:9,\ninside.mp4\n#EXT-X-ENDLIST\n")
    with pytest.raises(VideoError):
        read_video(playlist)


BAD = {
    "text.mp4": lambda path: path.write_text("no film at all\n" * 50),
    "cut.mkv": lambda path: cut_off(film(path.with_name("whole.mkv")).rename(path.with_name(".whole")), path, 0.5),
    "tag.mp4": lambda path: film(path, 12, title=SHIFT_JIS),
    "size.ts": changing_film,
}


@pytest.fixture(params=["first", "middle", "last"])
def mixed(request, tmp_path) -> Path:
    """Three good films, and among them a text, a film that was cut off, and two odd ones that can be read."""
    root = tmp_path / "videos"
    prefix = {"first": "a", "middle": "m", "last": "z"}[request.param]
    for name in ("b", "l", "y"):
        root.mkdir(exist_ok=True)
        film(root / f"{name}.mp4", 12)
    for name, make in BAD.items():
        make(root / f"{prefix}_{name}")
    (root / ".whole").unlink()
    return root


def test_one_file_never_ends_the_preparing(mixed, tmp_path, capsys):
    """The good ones come out right, the bad ones are named with the reason, and the exit status is that of success."""
    size = [*SIZE, "--num_frames", "4"]
    out = tmp_path / "out.npy"
    prepare_ucf101.main(["--video_folder", str(mixed), "--output_npy_file", str(out), *size])
    prepare_data.main(["folder", str(mixed), "--out", str(tmp_path / "again"), *size])
    for path in (out, tmp_path / "again/clips.npy"):
        sidecar = json.loads(path.with_suffix(".json").read_text())
        skipped = {entry["id"]: entry["reason"] for entry in sidecar["skipped"]}
        assert sorted(name[2:] for name in skipped) == ["cut", "text"]
        assert any("cut off after" in reason for reason in skipped.values())
        assert any("not a readable video" in reason for reason in skipped.values())
        array = np.load(path)
        for video in sidecar["videos"]:
            found = array[video["first_sequence"] :][: video["sequences"]]
            right = [*range(20), *range(20)] if "size" in video["id"] else [*range(12)]
            assert numbers(found.reshape(-1, 24, 40, 3)) == right
    assert "skipped" in capsys.readouterr().out


def test_one_file_never_ends_the_opening(mixed):
    """What cannot be read is left out with its name; all others give their frames."""
    with pytest.raises(VideoError, match=r"cut|text"):
        open_clips(mixed, 12, (24, 40), resize="squeeze")
    dataset = open_clips(mixed, 12, (24, 40), resize="squeeze", windows="first", on_error="skip")
    assert len(dataset) == 5 and sorted(Path(error.path).name[2:] for error in dataset.source.broken) == [
        "cut.mkv",
        "text.mp4",
    ]
    for item in range(len(dataset)):
        shown = (dataset[item].movedim(0, -1).numpy() + 1) * 127.5
        assert numbers(shown) == list(range(12))


def test_whatever_the_codecs_raise_is_the_error_of_one_file(tmp_path, monkeypatch):
    """Not only their own errors: a reader that fails in any way fails with the name of the file."""
    path = film(tmp_path / "a.mp4", 5)
    for error in (
        UnicodeDecodeError("utf-8", b"\x83", 0, 1, "invalid"),
        ValueError("x"),
        OverflowError("x"),
        EOFError(),
    ):

        def refuse(*arguments, error=error, **options):
            raise error

        with monkeypatch.context() as patch, pytest.raises(VideoError, match="a.mp4") as raised:
            patch.setattr(av, "open", refuse)
            read_video(path)
        assert "\n" not in str(raised.value)
