"""Windows and tiles: seamless where they overlap, exact where they do not, and light."""

import numpy as np
import pytest
import torch
from torch import nn

from scripts import reconstruct_vvae, vvae
from tests.vvae.conftest import make_tiny
from tests.vvae.live_memory import peak_bytes
from videodata.errors import UserError
from vvae import AutoencoderKL2plus1D_1dcnn
from vvae.src.errors import VVAEError
from vvae.src.tiling import LATENT, PIXEL, Blender, Tiling, Windows, blend_tiles, blend_weights, cut, spans
from vvae.src.video_io import write_video


class Shrink(nn.Module):
    """A stand-in for an encoder that only averages its cells: no tile can show."""

    def forward(self, video: torch.Tensor) -> torch.Tensor:
        return nn.functional.avg_pool3d(video, PIXEL)


def test_blend_weights_sum_to_one_everywhere():
    """Over all covering tiles the weights add up to 1, also where more than two overlap."""
    for length, size, stride in ((33, 8, 6), (20, 8, 3), (9, 16, 12), (64, 32, 24), (17, 8, 8)):
        for keep_size in (False, True):
            cuts = spans(length, size, stride, keep_size)
            total = torch.zeros(length * 8)
            for (start, end), weight in zip(cuts, blend_weights(cuts, 8), strict=True):
                assert (weight > 0).all()
                total[start * 8 : end * 8] += weight
            torch.testing.assert_close(total, torch.ones_like(total))


def test_last_tiles_are_short_in_time_and_full_in_space():
    """Chunks in time end short, as in the original; tiles in space move left to keep the size that was trained."""
    assert spans(5, 4, 4) == [(0, 4), (4, 5)]
    assert spans(33, 32, 24, keep_size=True) == [(0, 32), (1, 33)]
    assert spans(3, 4, 3, keep_size=True) == [(0, 3)]


def test_models_without_neighbourhood_have_no_seams():
    """Blending the tiles of a cell-wise model gives the untiled result, for encoding and decoding."""
    video = torch.rand(1, 3, 20, 72, 88)
    tiling = Tiling(8, 32, 40, 4, 24, 24)
    cuts = tiling.spans((5, 9, 11))
    assert all(len(axis) > 1 for axis in cuts)
    latent = blend_tiles(Shrink(), video, cuts, PIXEL, LATENT)
    torch.testing.assert_close(latent, Shrink()(video), atol=1e-6, rtol=0)
    grow = nn.Upsample(scale_factor=PIXEL)
    torch.testing.assert_close(blend_tiles(grow, latent, cuts, LATENT, PIXEL), grow(latent), atol=1e-6, rtol=0)


def test_without_overlap_tiling_is_independent_chunks(tiny):
    """With stride equal to size, every chunk is bit for bit the result of its own call; the last one is shorter."""
    video = torch.rand(1, 3, 20, 16, 16) * 2 - 1
    chunks = [tiny.encode(part).mode() for part in video.split(8, dim=2)]
    tiny.enable_tiling(256, 256, 8, 256, 256, 8)
    latent = tiny.encode(video).mode()
    assert torch.equal(latent, torch.cat(chunks, dim=2))
    decoded = tiny.decode(latent)
    tiny.disable_tiling()
    assert torch.equal(decoded, torch.cat([tiny.decode(part) for part in latent.split(2, dim=2)], dim=2))


def test_tiles_of_one_axis_do_not_need_the_others_to_be_long(tiny):
    """A short clip is still tiled in space, and the tiled result differs from the whole one: tiling took place."""
    video = torch.rand(1, 3, 4, 64, 64) * 2 - 1
    whole = tiny.encode(video).mode()
    tiny.enable_tiling(32, 32, 16, 24, 24, 12)
    tiled = tiny.encode(video).mode()
    assert tiled.shape == whole.shape and not torch.equal(tiled, whole)
    assert tiny.decode(tiled).shape == video.shape


@pytest.mark.parametrize("length", [1, 7, 16, 17, 28, 29, 33])
def test_a_stream_is_cut_like_a_clip_and_blended_back(length):
    """Windows of a stream are those of `spans`; blending windows of the stream itself gives the stream."""
    windows = Windows(16, 4)
    found = list(cut(range(length), windows.size, windows.overlap))
    starts = [window[0] for window, _ in found]
    assert [(start, start + len(window)) for start, (window, _) in zip(starts, found, strict=True)] == spans(
        length, 16, 12
    )
    assert [last for _, last in found] == [False] * (len(found) - 1) + [True]
    blender = Blender(4)
    parts = [blender.push(torch.tensor(window, dtype=torch.float32).view(1, -1, 1, 1), last) for window, last in found]
    torch.testing.assert_close(torch.cat(parts, dim=1).flatten(), torch.arange(length, dtype=torch.float32))


def test_impossible_windows_and_tiles_are_refused():
    """Sizes that do not fit the model's units are errors that name them."""
    with pytest.raises(VVAEError, match="multiples of 4 frames, found 16 and 3"):
        Windows(16, 3)
    with pytest.raises(VVAEError, match="more than half"):
        Windows(16, 12)
    with pytest.raises(VVAEError, match="height 250"):
        Tiling(height=250)


def test_too_little_memory_is_one_line_that_names_what_needs_less(tmp_path, monkeypatch):
    """The command names tiles and windows, and leaves no output."""

    def fail(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    make_tiny().save_pretrained(tmp_path / "model")
    write_video(tmp_path / "in.mp4", np.zeros((4, 16, 16, 3), np.uint8), 25)
    monkeypatch.setattr(AutoencoderKL2plus1D_1dcnn, "encode", fail)
    with pytest.raises(UserError, match="^out of memory: .*--tile.*--chunk_size.*--dtype bf16$"):
        reconstruct_vvae.main(
            [
                *map(str, (tmp_path / "in.mp4", tmp_path / "out.mp4")),
                "--ckpt",
                str(tmp_path / "model"),
                "--device",
                "cpu",
            ]
        )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.mp4", "model"]


def test_a_window_needs_little_more_than_the_activations_of_one_layer():
    """Inside a window, slices keep the peak near two full-size tensors, where whole tensors take about twice that."""
    model, shape = make_tiny(), (1, 3, 16, 64, 64)
    video, latent = torch.zeros(shape), torch.zeros(1, 4, 4, 8, 8)
    tensor = 32 * 16 * 64 * 64 * 4  # bytes of the largest activations: all channels of all frames
    peaks = {}
    for frames in (1, 16):
        model.encoder.slice_frames = model.decoder.slice_frames = frames
        with torch.inference_mode():
            peaks[frames] = [peak_bytes(model.encoder, video), peak_bytes(model.decoder, latent)]
    for sliced, whole in zip(peaks[1], peaks[16], strict=True):
        assert sliced < 2.8 * tensor
        assert sliced < 0.75 * whole


def test_tiles_that_their_overlap_fills(tmp_path):
    """The line names the flag that has to change, before anything is read."""
    command = ["reconstruct", str(tmp_path / "missing.mp4"), str(tmp_path / "out.mp4"), "--ckpt", "none.ckpt"]
    with pytest.raises(UserError, match="--tile 32 64: tiles must be larger than --tile_overlap 64; lower that"):
        vvae.main([*command, "--tile", "32", "64"])
    with pytest.raises(UserError, match="missing.mp4: no such file"):
        vvae.main([*command, "--tile", "32", "64", "--tile_overlap", "16"])
