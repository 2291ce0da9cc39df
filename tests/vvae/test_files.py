"""Files through the model: frames, rates, sound, brightness and latents survive; memory does not grow."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path

import av
import h5py
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from scripts import reconstruct_vvae, vvae
from tests.vvae.conftest import make_tiny
from tests.vvae.live_memory import LiveMemory
from videodata import frame_folder
from videodata.errors import UserError
from vvae.src.distributions import DiagonalGaussianDistribution
from vvae.src.errors import VideoFileError, VVAEError
from vvae.src.images import SUFFIXES, read_image, to_clip, to_frames, write_image
from vvae.src.latent_files import LatentInfo, latent_writer, read_info
from vvae.src.streaming import Streaming, _describe, _reconstructed, fitted, reconstruct
from vvae.src.tiling import PIXEL, Windows
from vvae.src.video_io import probe, read_frames, read_video, write_video

ROOT = Path(__file__).resolve().parent.parent.parent


class Identity(nn.Module):
    """A model that keeps every pixel: its latent holds the pixels of each cell as channels."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1), requires_grad=False)
        self.decoder = nn.Module()
        self.decoder.z_channels = 3 * PIXEL[0] * PIXEL[1] * PIXEL[2]

    def encode(self, video: torch.Tensor) -> DiagonalGaussianDistribution:
        cells = video.unflatten(4, (-1, PIXEL[2])).unflatten(3, (-1, PIXEL[1])).unflatten(2, (-1, PIXEL[0]))
        mean = cells.permute(0, 1, 3, 5, 7, 2, 4, 6).flatten(1, 4)  # (B, C t h w, T/4, H/8, W/8)
        return DiagonalGaussianDistribution(torch.cat([mean, torch.zeros_like(mean)], dim=1))

    def decode(self, latent: torch.Tensor) -> torch.Tensor:
        cells = latent.unflatten(1, (3, *PIXEL)).permute(0, 1, 5, 2, 6, 3, 7, 4)
        return cells.flatten(6, 7).flatten(4, 5).flatten(2, 3)


def smooth_clip(frames: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    """Moving colour gradients, uint8 (T, H, W, 3)."""
    t, y, x = np.meshgrid(np.arange(frames), np.arange(height), np.arange(width), indexing="ij")
    waves = [np.sin((x + k * y + 2 * t) / (9 + 3 * k) + seed) for k in range(3)]
    return np.rint((np.stack(waves, axis=-1) * 0.4 + 0.5) * 255).astype(np.uint8)


def add_sound(path: Path, target: Path) -> None:
    """Copy a video and give it half a second of sound."""
    frames, fps = read_video(path)
    silent = target.with_name("sound.mkv")
    with av.open(str(silent), "w") as file:
        stream = file.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            file.mux(packet)
    write_video(target, frames, fps, audio_from=silent)


def duration_of_sound(path: Path) -> float:
    with av.open(str(path)) as file:
        return sum(frame.samples for frame in file.decode(audio=0)) / file.streams.audio[0].rate


def test_rate_size_length_and_sound_survive(tmp_path):
    """30000/1001 frames per second, an odd size, 18 frames and the sound come out as they went in."""
    write_video(tmp_path / "silent.mp4", smooth_clip(18, 46, 51), "30000/1001")
    add_sound(tmp_path / "silent.mp4", tmp_path / "in.mp4")
    assert reconstruct(make_tiny(), tmp_path / "in.mp4", tmp_path / "out.mp4") == 18
    frames, fps = read_video(tmp_path / "out.mp4")
    assert frames.shape == (18, 46, 51, 3) and fps == Fraction(30000, 1001)
    assert duration_of_sound(tmp_path / "out.mp4") == pytest.approx(duration_of_sound(tmp_path / "in.mp4"))


@pytest.mark.parametrize("colour", [(10, 200, 90), (128, 128, 128), (0, 0, 0), (255, 255, 255), (250, 3, 120)])
def test_constant_colours_come_back(colour, tmp_path):
    """A clip of one colour keeps its mean grey level to a tenth."""
    frames = np.broadcast_to(np.array(colour, np.uint8), (4, 32, 32, 3))
    write_video(tmp_path / "flat.mp4", frames, 10)
    drawn = read_video(tmp_path / "flat.mp4")[0]
    assert abs(drawn.mean(dtype=np.float64) - frames.mean(dtype=np.float64)) < 0.34  # one level in one channel
    assert np.abs(drawn.astype(int) - frames).max() <= 2


def test_frames_of_few_pixels_keep_their_brightness(tmp_path):
    """Where the errors of a lossy encoder would not average out."""
    frames = np.random.default_rng(0).integers(0, 256, (5, 4, 2, 3), dtype=np.uint8)
    write_video(tmp_path / "small.mp4", frames, 25)
    drawn = read_video(tmp_path / "small.mp4")[0]
    assert abs(drawn.mean(dtype=np.float64) - frames.mean(dtype=np.float64)) < 0.1


def test_the_call_of_torchvision(tmp_path):
    """write_video(path, tensor (T, H, W, C) of uint8, fps), which torchvision.io no longer has."""
    frames = torch.from_numpy(smooth_clip(5, 24, 32))
    assert write_video(tmp_path / "a.mp4", frames, 25) == 5
    drawn, fps = read_video(tmp_path / "a.mp4")
    assert fps == 25 and np.abs(drawn.astype(int) - frames.numpy()).mean() < 2


def test_one_clip_has_one_file(tmp_path):
    """Byte for byte, also while others are written. With the encoder's `mbtree`, files differed."""
    frames = [np.roll(frame, 2 * index, axis=1) for index, frame in enumerate(smooth_clip(60, 100, 100))]

    def written(index: int) -> bytes:
        write_video(tmp_path / f"{index}.mp4", frames, 25)
        return (tmp_path / f"{index}.mp4").read_bytes()

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(written, range(40)))) == 1


def test_live_tensors_do_not_depend_on_the_length(tmp_path):
    """The tensors that live while a short and a four times longer clip are reconstructed have the same peak."""
    model, peaks = make_tiny(), []
    for length in (28, 112):
        write_video(tmp_path / f"{length}.mp4", smooth_clip(length, 16, 16), 25)
        with LiveMemory() as memory:
            assert reconstruct(model, tmp_path / f"{length}.mp4", tmp_path / "out.mp4") == length
        peaks.append(memory.peak)
    assert peaks[1] < 1.02 * peaks[0]


PEAK_MEMORY = """
import resource, sys
import numpy as np
from tests.vvae.test_files import Identity, smooth_clip
from vvae.src.streaming import reconstruct
from vvae.src.video_io import write_video
picture = smooth_clip(1, 224, 240)[0]
for length in (64, 256):
    frames = (np.roll(picture, t, axis=1) for t in range(length))
    write_video(f"{sys.argv[1]}/{length}.mp4", frames, 25)
    assert reconstruct(Identity(), f"{sys.argv[1]}/{length}.mp4", f"{sys.argv[1]}/out.mp4") == length
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
@pytest.mark.posix
def test_memory_of_the_process_does_not_depend_on_the_length(tmp_path):
    """A process that has reconstructed 64 frames of 224x240 needs at most a tenth more for 256, in which it would not
    even have room for their pixels."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}
    result = subprocess.run(
        [sys.executable, "-c", PEAK_MEMORY, str(tmp_path)],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-2000:]
    short, long = (int(line) for line in result.stdout.split())
    assert long < 1.1 * short


def test_without_overlap_a_file_is_independent_chunks(tiny, tmp_path):
    """Every chunk of 8 frames is bit for bit the model's own result; the last one has 2 frames, padded to 4."""
    write_video(tmp_path / "in.mp4", smooth_clip(18, 24, 40), 25)
    frames = list(read_frames(tmp_path / "in.mp4"))
    streaming = Streaming(Windows(8, 0))
    info, _ = _describe(tiny, tmp_path / "in.mp4", streaming)
    drawn = np.stack(list(_reconstructed(tiny, frames, streaming, info, None)))
    with torch.inference_mode():
        for start in (0, 8, 16):
            chunk = frames[start : start + 8]
            padded = [*chunk, *[chunk[-1]] * (-len(chunk) % 4)]
            video = tiny.decode(tiny.encode(to_clip(padded)[None]).mode())[0]
            assert np.array_equal(drawn[start : start + 8], to_frames(video)[: len(chunk)])
    assert len(drawn) == 18


def test_latents_on_disk_give_the_same_video(tmp_path):
    """Encoding to a file and decoding it gives what reconstruct gives, for both formats; statistics are right."""
    write_video(tmp_path / "in.mp4", smooth_clip(21, 24, 40), 25)
    write_video(tmp_path / "second.mp4", smooth_clip(9, 24, 40, seed=2), 25)
    (tmp_path / "videos").mkdir()
    for name in ("in.mp4", "second.mp4"):
        (tmp_path / name).rename(tmp_path / "videos" / name)
    make_tiny().save_pretrained(tmp_path / "model")
    common = ["--ckpt", str(tmp_path / "model"), "--device", "cpu", "--overlap", "0"]
    for suffix in ("npy", "hdf5"):
        latents, videos = tmp_path / suffix, tmp_path / f"from_{suffix}"
        vvae.main(["encode", str(tmp_path / "videos"), str(latents), "--format", suffix, *common])
        vvae.main(["decode", str(latents), str(videos), *common])
        assert read_video(videos / "in.mp4")[0].shape == (21, 24, 40, 3)
    stored = np.load(tmp_path / "npy" / "in.npy")
    assert stored.shape == (6, 4, 3, 5)
    facts = json.loads((tmp_path / "npy" / "in.json").read_text())
    assert facts["frames"] == 21 and facts["fps"] == "25"
    output = tmp_path / "model" / "config.json"
    vvae.main(["statistics", str(tmp_path / "npy"), "--output", str(output)])
    both = np.concatenate([stored, np.load(tmp_path / "npy" / "second.npy")])
    found = json.loads(output.read_text())
    np.testing.assert_allclose(found["latents_mean"], both.mean(axis=(0, 2, 3)), rtol=1e-4)
    np.testing.assert_allclose(found["latents_std"], both.std(axis=(0, 2, 3)), rtol=1e-4)
    np.testing.assert_allclose(found["scaling_factor"], 1 / both.std(), rtol=1e-4)
    assert found["_class_name"] == "AutoencoderKL2plus1D_1dcnn"


def test_overlapping_windows_are_blended(tmp_path):
    """With a model that keeps pixels, any overlap gives the same video; the result of a real model has no jump."""
    write_video(tmp_path / "in.mp4", smooth_clip(30, 16, 24), 25)
    results = []
    for overlap in (0, 4, 8):
        streaming = Streaming(Windows(16, overlap))
        assert reconstruct(Identity(), tmp_path / "in.mp4", tmp_path / "out.mp4", streaming=streaming) == 30
        results.append(read_video(tmp_path / "out.mp4")[0])
    assert np.array_equal(results[0], results[1]) and np.array_equal(results[0], results[2])


def test_images_go_through_in_batches(tmp_path):
    """A folder of images of two sizes comes back with the same names and sizes; a broken one is named at the end."""
    source = tmp_path / "images"
    source.mkdir()
    pictures = {
        "a.png": smooth_clip(1, 20, 36)[0],
        "b.jpg": smooth_clip(1, 20, 36)[0],
        "c.png": smooth_clip(1, 16, 16)[0],
    }
    for name, picture in pictures.items():
        write_image(source / name, picture)
    (source / "b2.png").write_bytes(b"no image")
    make_tiny().save_pretrained(tmp_path / "model")
    with pytest.raises(UserError, match="1 of 4 files failed: .*b2.png: not a readable image"):
        reconstruct_vvae.main(
            [str(source), str(tmp_path / "out"), "--ckpt", str(tmp_path / "model"), "--device", "cpu"]
        )
    for name, picture in pictures.items():
        assert read_image(tmp_path / "out" / name).shape == picture.shape


def test_a_folder_with_a_bad_file_does_the_rest_and_fails(tmp_path):
    """The good videos are written, the bad one is named, and the command ends with an error; a second try does not
    write the good ones again. A single bad file is one line."""
    videos = tmp_path / "videos"
    videos.mkdir()
    write_video(videos / "good.mp4", smooth_clip(4, 16, 16), 25)
    (videos / "bad.avi").write_bytes(b"no video")
    make_tiny().save_pretrained(tmp_path / "model")
    flags = ["--ckpt", str(tmp_path / "model"), "--device", "cpu", "--dtype", "bf16"]
    with pytest.raises(UserError, match="1 of 2 files failed: .*bad.avi: is not a readable video"):
        reconstruct_vvae.main([str(videos), str(tmp_path / "out"), *flags])
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["good.mp4"]
    written = (tmp_path / "out" / "good.mp4").stat().st_mtime_ns
    with pytest.raises(UserError, match="1 of 2 files failed: .*bad.avi"):
        reconstruct_vvae.main([str(videos), str(tmp_path / "out"), "--skip_existing", *flags])
    assert (tmp_path / "out" / "good.mp4").stat().st_mtime_ns == written
    with pytest.raises(UserError, match=r"^\S*bad.avi: is not a readable video"):
        reconstruct_vvae.main([str(videos / "bad.avi"), str(tmp_path / "bad.mp4"), *flags])


def test_results_never_replace_their_sources(tmp_path):
    """An output that is the input, or a file name for a folder, is refused before anything is read."""
    write_video(tmp_path / "in.mp4", smooth_clip(4, 16, 16), 25)
    make_tiny().save_pretrained(tmp_path / "model")
    flags = ["--ckpt", str(tmp_path / "model"), "--device", "cpu"]
    with pytest.raises(UserError, match="would replace its source"):
        reconstruct_vvae.main([str(tmp_path / "in.mp4"), str(tmp_path / "in.mp4"), *flags])
    with pytest.raises(UserError, match="is a folder, so the output must be one too"):
        reconstruct_vvae.main([str(tmp_path), str(tmp_path / "out.mp4"), *flags])


def test_latents_that_are_not_what_their_facts_say_are_refused(tmp_path):
    """Files of latents with missing, damaged or contradicting facts are one line that names the file."""
    info = LatentInfo("in.mp4", Fraction(25), 8, 16, 24, 4, 16, 4)
    with latent_writer(tmp_path / "a.npy", info) as writer:
        writer.append(torch.zeros(4, 2, 2, 3))
    assert read_info(tmp_path / "a.npy") == info
    np.save(tmp_path / "a.npy", np.zeros((3, 4, 2, 3), np.float32))
    with pytest.raises(
        VVAEError, match=r"a.npy: the latents are \(3, 4, 2, 3\), but their facts describe \(2, 4, 2, 3\)"
    ):
        read_info(tmp_path / "a.npy")
    (tmp_path / "a.json").write_text('{"fps": 0}')
    with pytest.raises(VVAEError, match="a.json: not the description of a latent file"):
        read_info(tmp_path / "a.npy")
    with h5py.File(tmp_path / "b.hdf5", "w") as file:
        file["latents"] = np.zeros((2, 4, 2, 3), np.float32)
    with pytest.raises(VVAEError, match="b.hdf5: holds no data set `latents` with its facts"):
        read_info(tmp_path / "b.hdf5")
    with pytest.raises(VVAEError, match="in.mp4: not a latent file"):
        write_video(tmp_path / "in.mp4", smooth_clip(4, 16, 16), 25)
        read_info(tmp_path / "in.mp4")


def test_files_that_cannot_be_read_or_written_are_one_line(tmp_path):
    """Missing, empty and foreign files are errors that name the file."""
    (tmp_path / "empty.mp4").touch()
    for name in ("absent.mp4", "empty.mp4"):
        with pytest.raises(VideoFileError, match=name):
            probe(tmp_path / name)
    with pytest.raises(VideoFileError, match="must end in"):
        write_video(tmp_path / "out.avi", smooth_clip(1, 8, 8), 25)
    with pytest.raises(VVAEError, match=r"must end in \.npy"):
        write_video(tmp_path / "in.mp4", smooth_clip(4, 8, 8), 25)
        reconstruct(Identity(), tmp_path / "in.mp4", tmp_path / "out.mp4", save_latent=tmp_path / "latent.txt")


def test_resolution_keeps_the_aspect_ratio():
    """Larger frames are scaled down to fit, smaller ones stay."""
    assert fitted(1080, 1920, (720, 1280)) == (720, 1280)
    assert fitted(1920, 1080, (720, 1280)) == (720, 405)
    assert fitted(480, 864, (720, 1280)) is None and fitted(99, 7, None) is None


PLAIN = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
PICTURES = {
    "rgb.png": Image.fromarray(PLAIN),
    "grey.png": Image.fromarray(PLAIN[..., 0]),
    "palette.png": Image.fromarray(PLAIN).quantize(16),
    "black and white.png": Image.fromarray(PLAIN[..., 0] > 127),
    "cmyk.jpg": Image.fromarray(PLAIN).convert("CMYK"),
    "16 bits.png": Image.fromarray((PLAIN[..., 0].astype(np.uint16) << 8) + 200),
    "16 bits.tif": Image.fromarray((PLAIN[..., 1].astype(np.uint16) << 8) + 100),
    "alpha.png": Image.fromarray(np.dstack([PLAIN, PLAIN[..., :1]])),
    "grey and alpha.png": Image.fromarray(PLAIN[..., :2], "LA"),
    "held sideways.png": Image.fromarray(PLAIN),
}


@pytest.mark.parametrize("name", PICTURES)
def test_pictures_are_read_as_the_project_reads_them(tmp_path, name):
    """The package has a reader of its own, because it is copied into other projects: it gives the same pixels."""
    exif = Image.Exif()
    exif[0x0112] = 6 if "sideways" in name else 1  # orientation
    PICTURES[name].save(tmp_path / name, **({} if name.endswith(".tif") else {"exif": exif}))
    read = read_image(tmp_path / name)
    assert read.shape == ((7, 5, 3) if "sideways" in name else (5, 7, 3)) and read.dtype == np.uint8
    assert np.array_equal(read, frame_folder.read_image(tmp_path / name))


def test_what_the_project_does_not_read_is_refused(tmp_path):
    """Several pictures in one file, numbers without a white, damage; not the previews behind a camera's picture."""
    pages = [Image.fromarray(PLAIN), Image.fromarray(255 - PLAIN)]
    for name in ("pages.tif", "pages.gif", "pages.webp", "pages.png"):
        pages[0].save(tmp_path / name, save_all=True, append_images=pages[1:])
    Image.fromarray(PLAIN[..., 0].astype(np.float32)).save(tmp_path / "float.tif")
    (tmp_path / "damaged.png").write_bytes(b"\x89PNG\r\n\x1a\nrest")
    for path in sorted(tmp_path.iterdir()):
        with pytest.raises(
            VideoFileError, match="holds 2 pictures|nobody says which of them is white|not a readable image"
        ):
            read_image(path)
        with pytest.raises(UserError, match="holds 2 pictures|nobody says which of them is white|not a readable image"):
            frame_folder.read_image(path)
    pages[0].save(tmp_path / "camera.jpg", format="MPO", save_all=True, append_images=pages[1:])
    read = read_image(tmp_path / "camera.jpg")
    assert read.shape == PLAIN.shape and np.array_equal(read, frame_folder.read_image(tmp_path / "camera.jpg"))
    assert SUFFIXES == frame_folder.IMAGE_SUFFIXES


def test_latents_whose_files_are_damaged_are_one_line(tmp_path):
    """A header that NumPy cannot read, numbers that are none, and a data set of another kind."""
    info = LatentInfo("in.mp4", Fraction(25), 8, 16, 24, 4, 16, 4)
    for suffix in (".npy", ".hdf5"):
        with latent_writer(tmp_path / f"a{suffix}", info) as writer:
            writer.append(torch.zeros(4, 2, 2, 3))
    content = (tmp_path / "a.npy").read_bytes()
    (tmp_path / "a.npy").write_bytes(content.replace(b"(2, 4, 2, 3)", b"(2, 4, 2, 9" + b"9" * 30 + b")"))
    with pytest.raises(VVAEError, match="a.npy: not a readable .npy file"):
        read_info(tmp_path / "a.npy")
    (tmp_path / "a.npy").write_bytes(content.replace(b"<f4", b"<i4"))
    with pytest.raises(VVAEError, match="a.npy: the latents are int32"):
        read_info(tmp_path / "a.npy")
    with h5py.File(tmp_path / "a.hdf5", "r+") as file:
        facts = file["latents"].attrs["info"]
        del file["latents"]
        file.create_group("latents").attrs["info"] = facts
    with pytest.raises(VVAEError, match="a.hdf5: not a readable .hdf5 file"):
        read_info(tmp_path / "a.hdf5")
