"""Other people's films through the package's own reader: what the project's reader gives or refuses, it does too."""

import ast
import os
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

import videodata
from tests.videodata.odd_films import SHIFT_JIS, changing_film, cut_off, film, number_of, numbers, picture, turned
from tests.vvae.test_files import Identity, add_sound
from videodata import VideoError
from videodata.video import VIDEO_SUFFIXES
from vvae.src.errors import VideoFileError
from vvae.src.streaming import Streaming, reconstruct
from vvae.src.video_io import READ_SUFFIXES, probe, read_frames, read_video, write_video

ROOT = Path(__file__).resolve().parents[2]


def assert_read_alike(path: Path) -> np.ndarray:
    """Both readers give the same pictures, but for the rounding of their scalers, and describe them so."""
    (frames, fps), (right, rate) = read_video(path), videodata.read_video(path)
    assert frames.shape == right.shape and fps == rate
    assert abs(frames.astype(int) - right).max() <= 1
    info = probe(path)
    assert (info.height, info.width, info.fps) == (*right.shape[1:3], rate)
    return frames


# What a film in a tar, which only the project's own files know, is opened by.
OWN = {"container.py": {"open_video", "open_file"}, "torn_files.py": {"ends_in_a_piece"}}


@pytest.mark.parametrize("name", OWN)
def test_the_copies_are_those_of_the_project(name):
    """The package is copied into other projects, so it has these files of its own: with the same definitions."""
    found = []
    for folder in ("vvae/src", "videodata"):
        tree = ast.parse((ROOT / folder / name).read_text().replace(" | Stretch", ""))
        defined = (node for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Assign))
        found.append([ast.unparse(node) for node in defined if getattr(node, "name", "") not in OWN[name]])
    assert found[0] == found[1] and len(found[0]) > 5
    assert READ_SUFFIXES == VIDEO_SUFFIXES


@pytest.mark.parametrize(("suffix", "codec"), [("mp4", "libx264"), ("mkv", "libx264"), ("avi", "mpeg4")])
def test_tags_are_in_any_encoding(tmp_path, suffix, codec):
    """A title in Shift JIS, and the sound of such a file."""
    path = film(tmp_path / f"a.{suffix}", 12, codec, title=SHIFT_JIS)
    assert numbers(assert_read_alike(path)) == list(range(12))
    assert write_video(tmp_path / "out.mp4", read_frames(path), 25, audio_from=path) == 12


@pytest.mark.parametrize("matrix", [(-1, 0, 0, 1), (1, 0, 0, -1), (0, 1, 1, 0), (0, -1, -1, 0), (0, 1, -1, 0)])
def test_the_display_matrix_is_applied_as_players_do(tmp_path, matrix):
    """Mirrors and quarter turns, also where the frames get another size."""
    path = turned(film(tmp_path / "a.mp4", 3), tmp_path / "turned.mp4", matrix)
    shown = assert_read_alike(path)
    assert not np.array_equal(shown, read_video(tmp_path / "a.mp4")[0])
    small = np.stack(list(read_frames(path, (40, 30)))).astype(int)
    right = videodata.read_video(path, size=(40, 30), resize="squeeze")[0]
    assert abs(small - right).max() <= 1


def test_a_mirrored_film_is_reconstructed_as_it_is_shown(tmp_path):
    """The columns are the other way round in the new file."""
    path = turned(film(tmp_path / "a.mp4", 4), tmp_path / "mirrored.mp4", (-1, 0, 0, 1))
    assert reconstruct(Identity(), path, tmp_path / "out.mp4") == 4
    assert [number_of(frame[:, ::-1]) for frame in read_video(tmp_path / "out.mp4")[0]] == list(range(4))


@pytest.mark.parametrize(("aspect", "width"), [(Fraction(2), 320), (Fraction(1, 2), 80), (Fraction(1280, 1281), 160)])
def test_pixels_become_square(tmp_path, aspect, width):
    """In height and width as they are told, in the frames, and in what is written; turned films too."""
    path = film(tmp_path / "a.mp4", 4, pixel_aspect=aspect)
    assert assert_read_alike(path).shape == (4, 96, width, 3)
    assert_read_alike(turned(path, tmp_path / "turned.mp4", (0, 1, -1, 0)))
    reconstruct(Identity(), path, tmp_path / "out.mp4")
    assert read_video(tmp_path / "out.mp4")[0].shape == (4, 96, width, 3)


def test_a_film_that_changes_its_size(tmp_path):
    """One line with the frame and both sizes; frames of one size where one is asked for, by a resolution too."""
    path = changing_film(tmp_path / "a.ts")
    change = r"a.ts: changes its size: frame 20 is 160x96, those before are 96x160 \(height x width\)"
    for read in (read_video, lambda path: reconstruct(Identity(), path, tmp_path / "out.mp4")):
        with pytest.raises(VideoFileError, match=change):
            read(path)
    assert not (tmp_path / "out.mp4").exists()
    assert numbers(list(read_frames(path, (96, 160)))) == [*range(20), *range(20)]
    for limit in ((48, 80), (720, 1280)):
        assert reconstruct(Identity(), path, tmp_path / "out.mp4", streaming=Streaming(resolution=limit)) == 40


@pytest.mark.parametrize(
    "name",
    [
        *(
            pytest.param(name, marks=pytest.mark.posix)
            for name in ("12:30:45 clip.mp4", "file:a.mp4", "concat:a|b.mp4")
        ),
        *("-i.mp4", "a%03d.mp4"),
    ],
)
def test_names_are_never_addresses(tmp_path, monkeypatch, name):
    """Any name in the current folder is read, written, and taken sound from."""
    monkeypatch.chdir(tmp_path)
    assert write_video(name, [picture(number) for number in range(5)], 10, audio_from=film(tmp_path / "a.mp4", 2)) == 5
    assert sorted(os.listdir()) == sorted([name, "a.mp4"])
    assert numbers(assert_read_alike(Path(name))) == list(range(5))
    add_sound(Path(name), tmp_path / "with sound.mp4")
    assert write_video("copy.mp4", read_frames(name), 10, audio_from="with sound.mp4") == 5
    assert probe("copy.mp4").audio


@pytest.mark.parametrize("suffix", ["mkv", "webm", "ts", "mp4"])
def test_a_film_that_was_cut_off_says_so(tmp_path, suffix):
    """In the words of the project; what is there can be had."""
    codec = "libvpx" if suffix == "webm" else "libx264"
    whole = film(
        tmp_path / f"a.{suffix}", 30, codec, **({"options": {"movflags": "+faststart"}} if suffix == "mp4" else {})
    )
    for share in (0.8, 0.95):
        path = cut_off(whole, tmp_path / f"cut.{suffix}", share)
        with pytest.raises(VideoError) as right:
            videodata.read_video(path)
        with pytest.raises(VideoFileError) as raised:
            read_video(path)
        assert str(raised.value) == str(right.value) and "damaged: " in str(raised.value)
        kept = numbers(list(read_frames(path, keep_damaged=True)))
        assert kept == numbers(videodata.read_video(path, keep_damaged=True)[0])


def test_what_is_no_film_is_refused_in_the_same_words(tmp_path, clips):
    """Nothing there, a folder, a text, no byte, a song with its cover."""
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "text.mp4").write_text("no film at all\n" * 50)
    (tmp_path / "empty.mp4").touch()
    paths = [tmp_path / f"{name}.mp4" for name in ("absent", "folder", "text", "empty")]
    for path in (*paths, clips / "reports/cover.mp4"):
        with pytest.raises(VideoError) as right:
            videodata.probe(path)
        for read in (probe, read_video):
            with pytest.raises(VideoFileError) as raised:
                read(path)
            assert str(raised.value) == str(right.value)
