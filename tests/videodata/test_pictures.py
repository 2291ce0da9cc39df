"""The one reader of pictures: every kind of file becomes the 8-bit RGB that a viewer shows."""

import errno
import os
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scripts import convert_to_h5
from videodata import open_clips
from videodata.errors import VideoError
from videodata.frame_folder import read_image, write_png
from vvae.src import images as vvae_images

PICTURE = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)


def test_plain_kinds(tmp_path):
    """RGB, grey, palette and black-and-white."""
    Image.fromarray(PICTURE).save(tmp_path / "rgb.png")
    Image.fromarray(PICTURE[..., 0]).save(tmp_path / "grey.png")
    Image.fromarray(PICTURE[..., 0]).convert("P").save(tmp_path / "palette.png")
    assert np.array_equal(read_image(tmp_path / "rgb.png"), PICTURE)
    for name in ("grey", "palette"):
        assert np.array_equal(read_image(tmp_path / f"{name}.png"), PICTURE[..., :1].repeat(3, -1))


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bits_are_rounded_to_eight(tmp_path, suffix):
    """Black stays black, white white, and every 8-bit level comes back from its 16-bit form."""
    levels = np.arange(256, dtype=np.uint16)[None] * 257
    Image.fromarray(levels).save(tmp_path / f"levels.{suffix}")
    assert np.array_equal(read_image(tmp_path / f"levels.{suffix}")[0, :, 1], np.arange(256))


def test_transparent_parts_lie_over_black(tmp_path):
    """A pixel counts by its opacity."""
    rgba = np.dstack([PICTURE, np.full((5, 7), 128, np.uint8)])
    rgba[0, 0, 3] = 0
    Image.fromarray(rgba).save(tmp_path / "a.png")
    read = read_image(tmp_path / "a.png").astype(int)
    assert read[0, 0].tolist() == [0, 0, 0] and abs(read[1:] - PICTURE[1:] * (128 / 255)).max() <= 1


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_upright(tmp_path, orientation):
    """A camera notes how it was held: the picture is turned and mirrored as it says."""
    undo = {
        1: lambda p: p, 2: lambda p: p[:, ::-1], 3: lambda p: p[::-1, ::-1], 4: lambda p: p[::-1],
        5: lambda p: p.swapaxes(0, 1), 6: lambda p: np.rot90(p, 1), 7: lambda p: np.rot90(p.swapaxes(0, 1), 2),
        8: lambda p: np.rot90(p, -1),
    }  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(undo[orientation](PICTURE)))
    stored.save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(read_image(tmp_path / "a.png"), PICTURE)


@pytest.mark.parametrize("suffix", ["tif", "gif", "webp", "png"])
def test_several_pictures_in_one_file_are_refused(tmp_path, suffix):
    """Nobody knows which one is meant, and none is lost silently."""
    pages = [Image.fromarray(PICTURE), Image.fromarray(255 - PICTURE)]
    pages[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=pages[1:])
    with pytest.raises(VideoError, match="holds 2 pictures"):
        read_image(tmp_path / f"a.{suffix}")


def test_what_is_no_picture(tmp_path):
    """Damaged files and numbers without a white are one line."""
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\nrest")
    with pytest.raises(VideoError, match="not a readable image"):
        read_image(tmp_path / "a.png")
    Image.fromarray(PICTURE[..., 0].astype(np.float32)).save(tmp_path / "f.tif")
    with pytest.raises(VideoError, match="floating-point"):
        read_image(tmp_path / "f.tif")


WHOLE = np.array([[0, 1000, 40_000, 65_535]], np.uint16)  # 0, 3.89, 155.6 and 255 levels


def sixteen_bit_tiff(path: Path, order: str) -> None:
    """Grey, in the order of bytes "<" or ">", which Pillow writes in one of them only."""
    data, mark = WHOLE.astype(f"{order}u2").tobytes(), {"<": b"II", ">": b"MM"}[order]
    tags = [(256, 4), (257, 1), (258, 16), (259, 1), (262, 1), (273, 122), (277, 1), (278, 1), (279, len(data))]
    entries = b"".join(struct.pack(f"{order}HHII", tag, 4, 1, value) for tag, value in tags)
    head = mark + struct.pack(f"{order}HIH", 42, 8, len(tags)) + entries + bytes(4)
    path.write_bytes(head + data)


ODD = {
    "little.tif": lambda path: sixteen_bit_tiff(path, "<"),
    "big.tif": lambda path: sixteen_bit_tiff(path, ">"),
    "grey.png": lambda path: Image.fromarray(WHOLE).save(path),
    "grey.pgm": lambda path: path.write_bytes(b"P5 4 1 65535\n" + WHOLE.astype(">u2").tobytes()),
    "float.tif": lambda path: Image.fromarray((WHOLE / 65_535).astype(np.float32)).save(path),
}


@pytest.mark.parametrize("name", ODD)
def test_every_level_of_sixteen_bits(tmp_path, name):
    """Divided by 257 and rounded, whatever the format; floating-point numbers in [0, 1] mean black to white."""
    ODD[name](tmp_path / name)
    assert read_image(tmp_path / name)[0, :, 0].tolist() == [0, 4, 156, 255]
    assert np.array_equal(read_image(tmp_path / name), vvae_images.read_image(tmp_path / name))


@pytest.mark.parametrize(
    ("values", "found"),
    [
        (np.array([[0, 2.5]], np.float32), "floating-point numbers from 0.0 to 2.5, not from 0 to 1"),
        (np.array([[-0.5, 1]], np.float32), "floating-point numbers from -0.5 to 1.0"),
        (np.array([[0.5, np.nan]], np.float32), "floating-point numbers from nan to nan"),
        (np.array([[0, 70_000]], np.int32), "whole numbers from 0 to 70000, not from 0 to 65535"),
        (np.array([[-1, 7]], np.int32), "whole numbers from -1 to 7"),
    ],
)
def test_numbers_without_a_white_are_refused(tmp_path, values, found):
    """One line says which numbers there are; none becomes white or black silently, in either reader."""
    Image.fromarray(values).save(tmp_path / "a.tif")
    with pytest.raises(VideoError, match=found):
        read_image(tmp_path / "a.tif")
    with pytest.raises(vvae_images.VideoFileError, match="nobody says which of them is white"):
        vvae_images.read_image(tmp_path / "a.tif")


def test_the_reader_of_the_package_that_is_copied_gives_the_same(tmp_path):
    """Colours, opacity, palettes, orientation: two readers, one rule."""
    rgba = np.dstack([PICTURE, np.arange(35, dtype=np.uint8).reshape(5, 7) * 7])
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(rgba).save(tmp_path / "alpha.png")
    Image.fromarray(rgba).save(tmp_path / "alpha.webp", lossless=True)
    Image.fromarray(PICTURE).save(tmp_path / "held.jpg", exif=exif)
    Image.fromarray(PICTURE).quantize(9).save(tmp_path / "palette.png", transparency=3)
    Image.fromarray(PICTURE).convert("CMYK").save(tmp_path / "print.tif")
    for path in tmp_path.iterdir():
        assert np.array_equal(read_image(path), vvae_images.read_image(path)), path


@pytest.mark.filterwarnings("ignore")
def test_damage_of_any_kind_is_one_line(tmp_path, monkeypatch):
    """Bytes changed and cut off anywhere in a picture: the picture or a VideoError, never anything else."""
    rng = np.random.default_rng(0)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100_000)
    for suffix in ("png", "jpg", "tif", "webp", "bmp", "ppm"):
        Image.fromarray(np.kron(PICTURE, np.ones((4, 4, 1), np.uint8))).save(tmp_path / f"whole.{suffix}")
        data = (tmp_path / f"whole.{suffix}").read_bytes()
        for _ in range(60):
            broken = bytearray(data)
            for place in rng.integers(0, min(len(data), 200), rng.integers(1, 6)):
                broken[place] = rng.integers(256)
            path = tmp_path / f"a.{suffix}"
            path.write_bytes(broken[: rng.integers(1, len(data) + 1)])
            for reader, refusal in ((read_image, VideoError), (vvae_images.read_image, vvae_images.VideoFileError)):
                try:
                    assert reader(path).dtype == np.uint8
                except refusal as error:
                    assert "\n" not in str(error)


def test_a_tree_of_sixteen_bit_frames(tmp_path):
    """The same levels as clips, and in the shards that are made of them."""
    levels = np.arange(0, 256, 16, dtype=np.uint16).repeat(16).reshape(16, 16) * 257
    for frame in range(3):
        for place in (tmp_path / "frames/train/v", tmp_path / "eight/train/v"):
            place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(levels).save(tmp_path / f"frames/train/v/{frame}.png")
        Image.fromarray((levels // 257).astype(np.uint8)).save(tmp_path / f"eight/train/v/{frame}.png")
    for root in ("frames", "eight"):
        options = ["--image_size", "16", "--extension", "png"]
        convert_to_h5.main(["--out_dir", str(tmp_path / f"{root}_h5"), "--data_dir", str(tmp_path / root), *options])
    shown = [
        open_clips(tmp_path / name, 3, None, dtype="uint8")[0]
        for name in ("frames/train", "eight/train", "frames_h5/train", "eight_h5/train")
    ]
    assert all(clip.equal(shown[0]) for clip in shown) and shown[0].max() == 240


def test_a_picture_is_whole_or_absent(tmp_path, monkeypatch):
    """A disk that refuses in the middle leaves the picture of before, and nothing beside it."""
    place = tmp_path / "new" / "a.png"
    frame = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    assert write_png(place, frame) == place and np.array_equal(read_image(place), frame)

    def torn(image, file, **_):
        file.write(b"\x89PNG")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Image.Image, "save", torn)
    with pytest.raises(OSError, match="No space"):
        write_png(place, 255 - frame)
    assert np.array_equal(read_image(place), frame) and [path.name for path in place.parent.iterdir()] == ["a.png"]
