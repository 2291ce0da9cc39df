"""The one reader of pictures: every kind of file becomes the 8-bit RGB that a viewer shows."""

import numpy as np
import pytest
from PIL import Image

from videodata.errors import VideoError
from videodata.frame_folder import read_image

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
