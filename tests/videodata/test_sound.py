"""The sound of one video in another: copied where mp4 takes it, else encoded again."""

import av
import numpy as np
import pytest

from videodata import write_video

FRAMES = np.random.default_rng(0).integers(0, 255, (10, 16, 16, 3), dtype=np.uint8)
SECONDS, RATE = 1, 8000


def source(path, codec, sound_format):
    """A film of 10 frames per second with a tone of one second."""
    with av.open(str(path), "w") as out:
        pictures = out.add_stream("mpeg4", rate=10)
        pictures.width = pictures.height = 16
        sound = out.add_stream(codec, rate=RATE)
        for picture in FRAMES:
            out.mux(pictures.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        out.mux(pictures.encode(None))
        tone = np.sin(np.arange(RATE * SECONDS) * 0.3)[None] * 0.5
        tone = tone.astype(np.float32) if sound_format == "fltp" else (tone * 32767).astype(np.int16)
        frame = av.AudioFrame.from_ndarray(tone, format=sound_format, layout="mono")
        frame.sample_rate = RATE
        out.mux(sound.encode(frame))
        out.mux(sound.encode(None))
    return path


def packets(path):
    with av.open(str(path)) as file:
        return [bytes(packet) for packet in file.demux(audio=0) if packet.size]


def heard(path):
    """The samples of the first channel, and the name of the codec."""
    with av.open(str(path)) as file:
        name = file.streams.audio[0].codec_context.name
        return np.concatenate([frame.to_ndarray()[0] for frame in file.decode(audio=0)]), name


def test_packets_are_copied(tmp_path):
    original = source(tmp_path / "a.mp4", "aac", "fltp")
    write_video(tmp_path / "b.mp4", FRAMES, 10, sound_from=original)
    assert packets(tmp_path / "b.mp4") == packets(original)
    with av.open(str(tmp_path / "b.mp4")) as made:
        assert made.streams.video[0].frames == len(FRAMES)


def test_what_mp4_does_not_take_is_encoded_again(tmp_path, caplog):
    original = source(tmp_path / "a.mkv", "pcm_s16le", "s16")
    write_video(tmp_path / "b.mp4", FRAMES, 10, sound_from=original)
    samples, codec = heard(tmp_path / "b.mp4")
    assert codec == "aac" and samples.size == pytest.approx(RATE * SECONDS, rel=0.3)
    assert samples[1000:7000].std() == pytest.approx(0.25, rel=0.1)  # two channels of a tone of half the full volume
    assert "encoded again as AAC" in caplog.text


def test_a_film_without_sound_stays_without(tmp_path):
    write_video(tmp_path / "a.mp4", FRAMES, 10)
    write_video(tmp_path / "b.mp4", FRAMES, 10, sound_from=tmp_path / "a.mp4")
    with av.open(str(tmp_path / "b.mp4")) as made:
        assert not made.streams.audio
