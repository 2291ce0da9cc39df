"""Video files through the tokenizer: same length, size, rate and sound, in memory that does not grow; latent files."""

from dataclasses import replace
from fractions import Fraction

import av
import numpy as np
import pytest
import torch

from tests.tokenizer3d.tiny import clip, tiny
from tests.vvae.live_memory import LiveMemory
from tokenizer3d import films
from tokenizer3d.films import decode_file, decoded, encode_file, read_latents
from videodata import UserError, probe, read_video, to_uint8, write_video

FSQ = {"regularizer": "fsq", "levels": (8, 8, 8, 8)}
KINDS = [{}, {"version": "1.1"}, {"causal": False}, FSQ]
RATE = Fraction(30000, 1001)


def film(path, frames=11, height=18, width=22):
    """A video of noise that drifts."""
    return write_video(path, to_uint8(clip(frames, height, width)[0]), RATE)


def with_sound(path):
    """A film of ten frames at 10 per second, and one second of a tone."""
    write_video(path.with_suffix(".silent.mp4"), to_uint8(clip(10, 16, 16)[0]), 10)
    with av.open(str(path.with_suffix(".silent.mp4"))) as source, av.open(str(path), "w") as out:
        stream = out.add_stream_from_template(source.streams.video[0])
        sound = out.add_stream("aac", rate=8000)
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                out.mux(packet)
        tone = (np.sin(np.arange(8000) * 0.3)[None] * 0.5).astype(np.float32)
        frame = av.AudioFrame.from_ndarray(tone, format="fltp", layout="mono")
        frame.sample_rate = 8000
        out.mux(sound.encode(frame))
        out.mux(sound.encode(None))
    return path


@pytest.mark.parametrize("settings", KINDS, ids=str)
def test_a_video_comes_back_with_its_length_size_and_rate(settings, tmp_path):
    model, source = tiny(**settings), film(tmp_path / "in.mp4")
    assert model.reconstruct(source, tmp_path / "out.mp4") == 11
    frames, fps = read_video(tmp_path / "out.mp4")
    assert frames.shape == (11, 18, 22, 3) and fps == RATE
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.mp4", "out.mp4"]


def test_what_is_reconstructed_is_what_the_model_makes_of_the_clip(tmp_path):
    model = tiny(version="1.1")
    source = film(tmp_path / "in.mp4")
    x = torch.cat(list(films.clips_of(model, source)), 2)
    with torch.no_grad():
        expected = model(x)[1]
    assert torch.equal(torch.cat(list(films.reconstructed(model, x.split(3, 2))), 2), expected)


def test_the_sound_goes_along(tmp_path):
    source = with_sound(tmp_path / "in.mp4")
    model = tiny()
    model.reconstruct(source, tmp_path / "out.mp4")
    encode_file(model, source, tmp_path / "a.safetensors")
    decode_file(model, tmp_path / "a.safetensors", tmp_path / "decoded.mp4", sound_from=source)
    for name in ("out.mp4", "decoded.mp4"):
        with av.open(str(tmp_path / name)) as made, av.open(str(source)) as original:
            ours, theirs = ([bytes(packet) for packet in each.demux(audio=0)] for each in (made, original))
        assert ours == theirs and len(b"".join(ours)) > 100


@pytest.mark.slow
def test_memory_does_not_grow_with_the_film(tmp_path):
    """Nor does anything stay after the call."""
    model, peaks = tiny(ch=4), []
    for frames in (65, 257):
        source = film(tmp_path / f"{frames}.mp4", frames, 64, 64)
        with LiveMemory() as memory:
            model.reconstruct(source, tmp_path / "out.mp4")
        peaks.append(memory.peak)
        weights = {value.untyped_storage()._cdata for value in model.parameters()}  # of which views were made
        assert not [
            key for key, (reference, _) in memory.live.items() if not reference.expired() and key not in weights
        ]
    assert peaks[1] < 1.05 * peaks[0]


def test_tokens_need_no_table_of_the_codebook():
    """A model of 262,144 codes needs the memory of one without codes."""
    x, peaks = clip(17, 64, 64), []
    for settings in ({"z_channels": 6}, {"z_channels": 6, "regularizer": "fsq", "levels": (8,) * 6}):
        model = tiny(**settings)
        with torch.no_grad(), LiveMemory() as memory:
            model(x)
        peaks.append(memory.peak)
    assert peaks[1] < 1.2 * peaks[0]


@pytest.mark.parametrize("settings", KINDS, ids=str)
def test_latent_files_decode_as_their_latents(settings, tmp_path):
    model, source = tiny(**settings), film(tmp_path / "in.mp4")
    notes = encode_file(model, source, tmp_path / "a.safetensors")
    latents, again = read_latents(tmp_path / "a.safetensors", model)
    assert again == notes and (notes.frames, notes.height, notes.width, notes.fps) == (11, 18, 22, "30000/1001")
    assert notes.padding == [(2 if model.is_causal else 1), 6, 2]
    assert latents.dtype == (torch.int16 if model.codebook_size else torch.float32)
    x = torch.cat(list(films.clips_of(model, source)), 2)
    with torch.no_grad():
        found = model.encode(x)
        direct = model.decode(found, 11, size=(18, 22))
    assert torch.equal(latents, found.indices.short() if model.codebook_size else found.mode())
    assert torch.equal(torch.cat(list(decoded(model, latents, notes)), 2), direct)
    assert decode_file(model, tmp_path / "a.safetensors", tmp_path / "out.mp4") == 11
    assert probe(tmp_path / "out.mp4").fps == RATE


def test_many_codes_are_int32_and_latents_are_of_the_type_asked_for(tmp_path):
    source = film(tmp_path / "in.mp4", 2)
    encode_file(tiny(z_channels=6, regularizer="fsq", levels=(8,) * 6), source, tmp_path / "a.safetensors")
    assert read_latents(tmp_path / "a.safetensors")[0].dtype == torch.int32
    encode_file(tiny(), source, tmp_path / "b.safetensors", "fp16")
    assert read_latents(tmp_path / "b.safetensors")[0].dtype == torch.float16


def test_files_of_other_models_are_refused(tmp_path):
    model, path = tiny(**FSQ), tmp_path / "a.safetensors"
    encode_file(model, film(tmp_path / "in.mp4", 2), path)
    others = {
        "version": tiny(version="1.1", **FSQ),
        "levels": tiny(regularizer="fsq", levels=(8, 8, 8, 7)),
        "name": tiny(name="another", **FSQ),
        "regularizer": tiny(),
    }
    for what, other in others.items():
        with pytest.raises(UserError, match=f"by a model whose {what} is"):
            read_latents(path, other)
    with torch.no_grad():
        model.decoder.conv_out.conv.bias += 1
    with pytest.raises(UserError, match="other weights"):
        read_latents(path, model)


def test_damaged_files_are_one_line(tmp_path):
    model, path = tiny(), tmp_path / "a.safetensors"
    notes = encode_file(model, film(tmp_path / "in.mp4", 2), path)
    content = path.read_bytes()
    for damaged in (content[: len(content) // 2], b"", content.replace(b'clip"', b'clap"')):
        path.write_bytes(damaged)
        with pytest.raises(UserError) as error:
            read_latents(path)
        assert "\n" not in str(error.value)
    films.write_latents(path, torch.zeros(1, 4, 1, 3, 3), replace(notes, kind="latents", fps="24"))
    assert read_latents(path)[1].fps == "24"


@pytest.mark.parametrize("settings", [{}, FSQ], ids=str)
@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"fps": "nan"}, "fps must be"), ({"fps": "1/0"}, "fps must be"), ({"fps": "-3"}, "fps must be"),
        ({"frames": -1}, "says that it holds -1"), ({"frames": 10**12}, "and its notes speak of"),
        ({"height": 0}, "says that it holds"), ({"width": 10**9}, "and its notes speak of"),
    ],
)  # fmt: skip
def test_notes_that_do_not_fit_the_content_are_refused(settings, changed, said, tmp_path):
    """They say how long and how large the video is: with others a shorter or smaller one came out, or a traceback."""
    model, path = tiny(**settings), tmp_path / "a.safetensors"
    notes = encode_file(model, film(tmp_path / "in.mp4", 2), path)
    films.write_latents(path, read_latents(path)[0], replace(notes, **changed))
    with pytest.raises(UserError, match=said):
        decode_file(model, path, tmp_path / "out.mp4")
    assert not (tmp_path / "out.mp4").exists()


@pytest.mark.parametrize("settings", [{}, FSQ], ids=str)
def test_content_of_another_shape_or_type_is_refused(settings, tmp_path):
    model, path = tiny(**settings), tmp_path / "a.safetensors"
    notes = encode_file(model, film(tmp_path / "in.mp4", 5), path)
    latents = read_latents(path)[0]
    other = latents.int() if latents.is_floating_point() else latents.float()
    for spoilt in (torch.cat([latents, latents]), latents[..., :-1], latents[..., :1, :], other):
        films.write_latents(path, spoilt, notes)
        with pytest.raises(UserError, match="encode the video again"):
            read_latents(path, model)


def test_tokens_of_another_precision_are_refused(tmp_path):
    model, path = tiny(**FSQ), tmp_path / "a.safetensors"
    encode_file(model, film(tmp_path / "in.mp4", 2), path)
    with pytest.raises(UserError, match="was made at precision fp32, and the model has bf16"):
        read_latents(path, model.to(torch.bfloat16))
