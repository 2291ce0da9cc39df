"""Writing: what comes back has the colours, the frame count, the size and the rate that were written."""

import errno
import os
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from itertools import product

import av
import numpy as np
import pytest
import torch

from videodata import UserError, probe, read_video, to_uint8, write_video
from videodata.shapes import Shapes
from vvae.src.errors import VVAEError
from vvae.src.video_io import read_video as read_with_vvae
from vvae.src.video_io import write_video as write_with_vvae

PRIMARIES = list(product((0, 255), repeat=3))
HALVES = list(product((0, 128, 255), repeat=3))
WRITERS = pytest.mark.parametrize("write", [write_video, write_with_vvae], ids=["project", "vvae"])
REFUSALS = (UserError, VVAEError)
GREYS = [(level, level, level) for level in range(0, 256, 5)]


@pytest.mark.parametrize("size", [(16, 16), (17, 15)])
def test_a_constant_colour_comes_back(tmp_path, size):
    """Black, white, primaries, their halves and greys: mean error below 0.1 grey level, no channel off by over 2."""
    colours = dict.fromkeys(PRIMARIES + HALVES + GREYS)
    for colour in colours:
        frames = np.broadcast_to(np.array(colour, np.uint8), (2, *size, 3))
        write_video(tmp_path / "c.mp4", frames, 25)
        error = read_video(tmp_path / "c.mp4")[0].astype(float) - frames
        assert abs(error.mean()) < 0.1, colour
        assert abs(error).max() <= 2, colour
    tall = np.broadcast_to(np.array((0, 128, 255), np.uint8), (2, 720, 16, 3))  # BT.709 from 720 lines up
    write_video(tmp_path / "c.mp4", tall, 25)
    assert abs(read_video(tmp_path / "c.mp4")[0].astype(float) - tall).max() <= 1


def test_a_natural_clip_keeps_38_decibels(clips, tmp_path):
    """H.264 at the default quality, read back with the same colours."""
    frames, _ = read_video(clips / "kinetics400/WUzgd7C1pWA.mp4", 0, 8)
    write_video(tmp_path / "c.mp4", frames, 25)
    error = read_video(tmp_path / "c.mp4")[0].astype(float) - frames
    assert abs(error.mean()) < 0.1
    assert 10 * np.log10(255**2 / (error**2).mean()) > 38


def test_pictures_keep_their_brightness(tmp_path):
    """Mean error below 0.1 grey level over moving shapes and over noise."""
    shapes = Shapes(1, size=64).read(0, 0, 8)
    write_video(tmp_path / "c.mp4", shapes, 25)
    assert abs((read_video(tmp_path / "c.mp4")[0].astype(float) - shapes).mean()) < 0.1
    noise = np.random.default_rng(0).integers(0, 256, (8, 64, 64, 3), dtype=np.uint8)
    write_video(tmp_path / "c.mp4", noise, 25)
    assert abs((read_video(tmp_path / "c.mp4")[0].astype(float) - noise).mean()) < 0.1


@pytest.mark.parametrize("frames", [1, 2, 17])
@pytest.mark.parametrize("fps", [1, 8, 25, "30000/1001", Fraction(24000, 1001), Fraction(60000, 1001), 12.5, 120])
def test_rate_and_frame_count_are_exact(tmp_path, frames, fps):
    """A rational frame rate survives the file exactly, also in a file of one frame."""
    write_video(tmp_path / "c.mp4", np.zeros((frames, 16, 16, 3), np.uint8), fps)
    read, rate = read_video(tmp_path / "c.mp4")
    assert rate == Fraction(fps)
    assert len(read) == frames


@pytest.mark.parametrize("size", [(1, 1), (2, 2), (33, 48), (48, 33), (31, 21)])
def test_any_size_is_kept(tmp_path, size):
    """Even sizes are yuv420p, which all browsers play; odd ones keep every row and column in yuv444p."""
    write_video(tmp_path / "c.mp4", np.full((3, *size, 3), 90, np.uint8), 10)
    info = probe(tmp_path / "c.mp4")
    assert (info.height, info.width) == size
    assert info.codec == "h264"
    assert info.pixel_format == ("yuv420p" if size[0] % 2 == size[1] % 2 == 0 else "yuv444p")


def test_the_colour_matrix_is_tagged_and_the_file_streams(tmp_path):
    """No reader has to guess the matrix; the index stands before the pictures."""
    path = write_video(tmp_path / "c.mp4", np.zeros((2, 16, 16, 3), np.uint8), 10)
    with av.open(str(path)) as container:
        context = container.streams.video[0].codec_context
        assert (context.colorspace, context.color_range) == (6, 1)
    data = path.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")


def test_float_clips_are_rounded_and_iterables_stream(tmp_path):
    """A float (3, T, H, W) clip in [-1, 1], its uint8 frames and a generator of them give the same file."""
    clip = torch.rand(3, 4, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    frames = to_uint8(clip)
    first = write_video(tmp_path / "float.mp4", clip, 10).read_bytes()
    assert write_video(tmp_path / "uint8.mp4", frames, 10).read_bytes() == first
    assert write_video(tmp_path / "stream.mp4", (frame for frame in frames), 10).read_bytes() == first


def test_lossless_is_lossless(tmp_path):
    """Every pixel of noise comes back."""
    noise = np.random.default_rng(0).integers(0, 256, (3, 16, 18, 3), dtype=np.uint8)
    write_video(tmp_path / "c.mp4", noise, 10, lossless=True)
    assert np.array_equal(read_video(tmp_path / "c.mp4")[0], noise)


@pytest.mark.parametrize(("fps", "read_back"), [(10, Fraction(10)), (25, Fraction(25)), (8, None)])
def test_gif_keeps_frames_colours_and_length(tmp_path, fps, read_back):
    """Equal frames are not merged, few colours are exact, many have no bias, and the playing time is right."""
    frames = np.repeat(Shapes(1, size=(33, 40)).read(0, 0, 5), 2, axis=0)
    path = write_video(tmp_path / "c.gif", frames, fps)
    read, rate = read_video(path)
    assert read.shape == frames.shape
    assert abs((read.astype(float) - frames).mean()) < 0.1
    assert rate == read_back or read_back is None
    with av.open(str(path)) as container:
        seconds = sum(packet.duration for packet in container.demux() if packet.size) / 100
    assert seconds == pytest.approx(10 / fps, abs=0.011)
    flags = np.array(HALVES, np.uint8).reshape(1, 3, 9, 3)
    assert np.array_equal(read_video(write_video(tmp_path / "flag.gif", flags, 10))[0], flags)


def test_a_failed_write_leaves_nothing(tmp_path):
    """An error in the middle keeps the old file and leaves no other."""
    path = write_video(tmp_path / "c.mp4", np.zeros((2, 16, 16, 3), np.uint8), 10)
    before = path.read_bytes()

    def frames():
        yield np.zeros((16, 16, 3), np.uint8)
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        write_video(path, frames(), 10)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("name", "frames", "fps", "reason"),
    [
        ("c.avi", np.zeros((1, 8, 8, 3), np.uint8), 10, "must end in .mp4 or .gif"),
        ("c.mp4", np.zeros((0, 8, 8, 3), np.uint8), 10, "no frame"),
        ("c.mp4", np.zeros((1, 3, 8, 8), np.uint8), 10, r"found shape \(1, 3, 8, 8\)"),
        ("c.mp4", np.zeros((1, 8, 8, 3), np.int64), 10, "int64"),
        ("c.mp4", [np.zeros((8, 8, 3), np.uint8), np.zeros((8, 9, 3), np.uint8)], 10, r"found uint8 \(8, 9, 3\)"),
        ("c.mp4", np.zeros((1, 8, 8, 3), np.uint8), 0, "fps must be positive"),
        ("c.mp4", np.zeros((1, 8, 8, 3), np.uint8), "fast", "fps must be a number"),
        ("c.gif", np.zeros((1, 8, 8, 3), np.uint8), 60, "at most 50"),
    ],
)
def test_what_cannot_be_written_is_refused(tmp_path, name, frames, fps, reason):
    """One line that says what is wrong, and no file."""
    with pytest.raises(UserError, match=reason):
        write_video(tmp_path / name, frames, fps)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("size", "count"), [((8, 8), 200), ((100, 100), 40), ((48, 64), 40)])
def test_one_input_has_one_file(size, count, tmp_path):
    """Byte for byte, also while others are written. With the encoder's `mbtree`, files differed."""
    noise = np.random.default_rng(4).integers(0, 256, (70, *size, 3), dtype=np.uint8)
    moving = np.stack([np.roll(noise[0], shift, axis=1) for shift in range(70)]) // 2 + noise // 8

    def written(index: int) -> bytes:
        return write_video(tmp_path / f"{index}.mp4", moving, 25).read_bytes()

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(written, range(count)))) == 1


@WRITERS
@pytest.mark.parametrize(
    ("fps", "right"),
    [
        (np.float32(25), Fraction(25)),
        (np.float32(30000 / 1001), Fraction(30000, 1001)),
        (np.float64(23.976), Fraction(2997, 125)),
        (np.int64(12), Fraction(12)),
        (torch.tensor(25), Fraction(25)),
        (torch.tensor(24000 / 1001), Fraction(24000, 1001)),
        (torch.tensor([[12.5]], dtype=torch.float64), Fraction(25, 2)),
    ],
    ids=str,
)
def test_rates_may_be_scalars_of_arrays(tmp_path, write, fps, right):
    """In 32 bits too, where 30000/1001 is another number than in 64."""
    write(tmp_path / "c.mp4", np.zeros((3, 16, 16, 3), np.uint8), fps)
    assert read_video(tmp_path / "c.mp4")[1] == read_with_vvae(tmp_path / "c.mp4")[1] == right


@WRITERS
@pytest.mark.parametrize(
    "fps",
    [
        np.float32("nan"),
        float("inf"),
        torch.tensor([24.0, 25.0]),
        torch.tensor(-1.0),
        np.float64(0),
        "fast",
        "1/0",
        None,
    ],
    ids=str,
)
def test_what_is_no_rate_is_refused(tmp_path, write, fps):
    """One line, and no file."""
    with pytest.raises(REFUSALS, match="fps must be") as raised:
        write(tmp_path / "c.mp4", np.zeros((3, 16, 16, 3), np.uint8), fps)
    assert "\n" not in str(raised.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("kind", [torch.from_numpy, np.asarray], ids=["torch", "numpy"])
def test_values_without_a_colour_are_refused(tmp_path, kind, value):
    """One pixel of NaN is not written as black."""
    clip = np.zeros((3, 4, 16, 16), np.float32)
    clip[1, 2, 3, 4] = value
    with pytest.raises(UserError, match="hold NaN or infinite values"):
        write_video(tmp_path / "c.mp4", kind(clip), 10)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "frames",
    [
        np.zeros((2, 8, 8, 3), np.float32),
        np.zeros((2, 8, 8), np.uint8),
        np.zeros((2, 8, 8, 4), np.uint8),
        np.zeros((2, 0, 8, 3), np.uint8),
        [np.zeros((8, 8, 3), np.uint8), np.zeros((8, 9, 3), np.uint8)],
    ],
)
def test_what_are_no_frames_is_refused_by_the_other_writer_too(tmp_path, frames):
    """Numbers that are no bytes, no colours, an alpha channel, no rows, two sizes."""
    with pytest.raises(VVAEError, match="each frame must be uint8|cannot follow others"):
        write_with_vvae(tmp_path / "c.mp4", frames, 10)
    assert not list(tmp_path.iterdir())


@WRITERS
def test_places_that_cannot_be_written_are_one_line(tmp_path, write):
    """A file where a folder must be, a folder where the file must be, a name that no disk takes."""
    (tmp_path / "file").touch()
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "folder.mp4" / "inside").touch()
    for name in ("file/c.mp4", "folder.mp4", f"{'a' * 300}.mp4"):
        with pytest.raises(REFUSALS, match="cannot be written|File name too long") as raised:
            write(tmp_path / name, np.zeros((2, 16, 16, 3), np.uint8), 10)
        assert "\n" not in str(raised.value)
    assert sorted(entry.name for entry in tmp_path.rglob("*")) == ["file", "folder.mp4", "inside"]


@WRITERS
@pytest.mark.parametrize(
    "error",
    [PermissionError(errno.EACCES, "Permission denied"), OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))],
    ids=["locked", "full"],
)
def test_errors_of_the_disk_are_one_line(tmp_path, monkeypatch, write, error):
    """They end with the name and the reason; the file that was there stays, and no other is left."""
    path = tmp_path / "c.mp4"
    write(path, np.zeros((2, 16, 16, 3), np.uint8), 10)
    before, opened = path.read_bytes(), av.open

    def refuse(file, mode="r", **options):
        if mode == "w":
            raise error
        return opened(file, mode, **options)

    monkeypatch.setattr(av, "open", refuse)
    with pytest.raises(REFUSALS, match=f"c.mp4: .*{error.strerror}") as raised:
        write(path, np.full((2, 16, 16, 3), 9, np.uint8), 10)
    assert "\n" not in str(raised.value)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


@WRITERS
@pytest.mark.parametrize("error", [OSError("of the frames"), ValueError("of the frames"), KeyError("of the frames")])
def test_errors_of_the_frames_come_through(tmp_path, write, error):
    """They are none of writing: whoever makes the frames has to know them."""

    def frames():
        yield np.zeros((16, 16, 3), np.uint8)
        raise error

    with pytest.raises(type(error), match="of the frames") as raised:
        write(tmp_path / "c.mp4", frames(), 10)
    assert raised.value is error and not list(tmp_path.iterdir())
