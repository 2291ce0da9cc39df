"""Real clips through a model that keeps every pixel: count, size, rate, sound and brightness survive."""

import numpy as np
import pytest

from tests.vvae.test_files import Identity
from vvae.src.streaming import reconstruct
from vvae.src.video_io import probe, read_frames, write_video

REAL = [
    "kinetics400/WUzgd7C1pWA.mp4",
    "ucf101/v_ApplyEyeMakeup_g01_c01.avi",
    "hmdb51/TrumanShow_wave_f_nm_np1_fr_med_26.avi",
    "mmaction2/part_0.mp4",
    "decord/video_90.mov",
    "imageio/newtonscradle.gif",
    "videovaeplus/40.mp4",
    "videovaeplus/closeshot.mp4",
    "synthetic/vfr_128x96_60f.mp4",
    "torchcodec/h264_10bits.mp4",
    "torchcodec/h265_video.mp4",
    "torchcodec/nasa_13013.mp4",
    "moviepy/transparent.webm",
    "moviepy/no_duration.webm",
    "tfds_fake/ucf101/videos/UCF101/v_Archery_g09_c03.avi",  # 2x4 pixels
    "tfds_fake/ucf101/videos/UCF101/v_Nunchucks_g09_c05.avi",
    "tfds_fake/ucf101/videos/UCF101/v_Nunchucks_g09_c06.avi",
]


@pytest.mark.parametrize("name", REAL)
def test_real_clips_keep_their_brightness(name, clips, tmp_path):
    """With a model that changes nothing, count, size, rate and sound stay and the mean moves by less than 0.1 level."""
    source, target = clips / name, tmp_path / "out.mp4"
    before = probe(source)
    scale = min(1.0, 200 / max(before.height, before.width))  # smaller, so that the test takes seconds
    size = (round(before.height * scale), round(before.width * scale))
    frames = list(read_frames(source, size))[:32]
    write_video(tmp_path / "in.mp4", frames, before.fps, audio_from=source)
    count = reconstruct(Identity(), tmp_path / "in.mp4", target)
    after, original = probe(target), np.stack(list(read_frames(tmp_path / "in.mp4")))
    assert (after.fps, after.audio, (after.height, after.width)) == (before.fps, before.audio, size)
    drawn = np.stack(list(read_frames(target)))
    assert count == len(frames) and drawn.shape == original.shape
    assert abs(drawn.mean(dtype=np.float64) - original.mean(dtype=np.float64)) < 0.1
