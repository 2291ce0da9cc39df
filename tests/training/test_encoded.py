"""Data that a tokenizer encoded: the format, its reading, and that a killed command goes on to the same bytes."""

import json
import multiprocessing
import signal
import time

import numpy as np
import pytest

from scripts import encode
from tests.training.tiny_tokenizers import CODES, SIDE, STORED, store_tokenizer
from training import encoded
from training.encoded import Encoded, encode_data, is_encoded
from training.tokenizer import open_tokenizer, tokenizer_digest
from videodata.clips import open_clips
from videodata.errors import UserError
from videodata.growing_array import GrowingArray
from videodata.pixels import to_float
from videodata.splits import open_split

DATA = f"digits:24,frames=8,size={SIDE},digits=1"


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    return {kind: store_tokenizer(kind, tmp_path_factory.mktemp(kind)) for kind in STORED}


def contents(folder):
    """Name -> bytes of the files of a folder."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("kind", STORED)
def test_the_array_is_what_the_tokenizer_makes_of_each_video(stored, tmp_path, kind):
    """In the smallest type, with ids, labels, provenance and moments beside it."""
    count = 5 if kind in ("kl", "fsq") else 8
    path = encode_data(stored[kind], DATA, "train", tmp_path, size=SIDE, dtype="fp32", frames=count)
    found, tokenizer = Encoded(path), open_tokenizer(tmp_path)
    source, videos = open_split(DATA, "train")
    clip = to_float(source.read_clip(videos[3], 0, count, 1, (SIDE, SIDE)))[None]
    expected = tokenizer.encode(clip)[0].numpy()
    assert is_encoded(tmp_path) and is_encoded(path) and not is_encoded(tmp_path.parent)
    assert found.kind == tokenizer.kind and found.tokenizer["digest"] == tokenizer_digest(tokenizer)
    np.testing.assert_allclose(found.read(3), expected, atol=1e-5)
    assert found.array.dtype == (np.uint8 if found.kind == "codes" else np.float32)
    assert [entry.id for entry in found.clips] == [source.id(video) for video in videos]
    assert [entry.label for entry in found.clips] == [source.label(video) for video in videos]
    assert found.provenance == open_clips(DATA, 1, None, split="train").provenance()
    if found.kind == "latents":
        flat = found.array.reshape(-1, tokenizer.width).astype(np.float64)
        np.testing.assert_allclose(found.moments[0], flat.mean(0), rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(found.moments[1], flat.std(0), rtol=1e-4)


def test_whole_videos_and_clips(stored, tmp_path):
    """A tokenizer of frames takes whole videos; one with a time factor clips that follow each other."""
    frames = Encoded(encode_data(stored["vqgan"], DATA, "val", tmp_path / "vqgan", size=SIDE))
    assert {(entry.start, entry.frames, entry.length) for entry in frames.clips} == {(0, 8, 8)}
    assert not frames.whole_clips
    clips = Encoded(encode_data(stored["vvae"], DATA, "val", tmp_path / "vvae", size=SIDE, frames=4))
    assert [(entry.start, entry.frames, entry.length) for entry in clips.clips][:3] == [(0, 4, 1), (4, 4, 1), (0, 4, 1)]
    assert len(clips.clips) == 2 * len(frames.clips) and clips.whole_clips
    assert clips.provenance["ids"][0] == clips.provenance["ids"][1]


def test_a_stride_leaves_out_frames(stored, tmp_path):
    path = encode_data("identity", DATA, "val", tmp_path, size=SIDE, frames=3, stride=2, dtype="fp32")
    source, videos = open_split(DATA, "val")
    clip = to_float(source.read_clip(videos[0], 0, 3, 2, (SIDE, SIDE)))
    np.testing.assert_allclose(Encoded(path).read(0), clip.movedim(0, -1).numpy(), atol=1e-6)


class Stopped(Exception):
    """The process dies."""


@pytest.mark.parametrize("kind", ["vqgan", "vvae"])
@pytest.mark.parametrize("where", ["first clip", "a clip", "last clip", "json", "publish", "published"])
def test_a_command_that_was_killed_goes_on_to_the_same_bytes(stored, tmp_path, monkeypatch, kind, where):
    """Wherever it stops; what is there is not encoded again."""
    options = {"size": SIDE, "frames": 8}
    encode_data(stored[kind], DATA, "train", tmp_path / "straight", **options)
    monkeypatch.setattr(encoded, "NOTE_EVERY", 3)
    total = len(Encoded(tmp_path / "straight" / "train.npy").clips)
    stop, calls = {"first clip": 0, "a clip": 7, "last clip": total - 1}.get(where), []
    own_encode, own_json, own_publish = encoded.encode_one, encoded.write_json, GrowingArray.publish

    def encode_one(plan, number, *others):
        calls.append(number)
        if number == stop:
            raise Stopped
        return own_encode(plan, number, *others)

    def write_json(path, value):
        if where == "json" and path.name == "train.json":
            raise Stopped
        own_json(path, value)

    def publish(self):
        if where != "publish":
            own_publish(self)
        if where in ("publish", "published"):
            raise Stopped

    monkeypatch.setattr(GrowingArray, "publish", publish)
    for name, function in (("encode_one", encode_one), ("write_json", write_json)):
        monkeypatch.setattr(encoded, name, function)
    with pytest.raises(Stopped):
        encode_data(stored[kind], DATA, "train", tmp_path / "killed", **options)
    if where != "published":
        with pytest.raises(UserError, match="no encoded data"):
            Encoded(tmp_path / "killed" / "train.npy")
    done = len(calls)
    stop, where = None, "nowhere"
    encode_data(stored[kind], DATA, "train", tmp_path / "killed", **options)
    assert contents(tmp_path / "killed") == contents(tmp_path / "straight")
    assert len(calls) - done <= total - done + 3 + 1  # none but those after the last note


@pytest.mark.slow
@pytest.mark.posix
def test_a_process_that_is_killed_goes_on(stored, tmp_path):
    """kill -9 in the middle of the script."""

    def command(out):
        words = ["--checkpoint", stored["lvt-vqvae"], "--data", "digits:160,frames=16,size=16", "--size", "16"]
        encode.main([*words, "--splits", "train", "--out", str(out)])

    process = multiprocessing.get_context("fork").Process(target=command, args=(tmp_path / "killed",))
    process.start()
    while not (tmp_path / "killed/train.npy.progress").exists():
        assert process.is_alive()
        time.sleep(0.01)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL and not (tmp_path / "killed/train.npy").exists()
    for name in ("killed", "straight"):
        command(tmp_path / name)
    assert contents(tmp_path / "killed") == contents(tmp_path / "straight")


def test_a_folder_of_something_else_is_refused(stored, tmp_path):
    """Another tokenizer, other frames, other data, other weights."""
    encode_data(stored["vqgan"], DATA, "val", tmp_path, size=SIDE)
    before = contents(tmp_path)
    for arguments, options, message in (
        ((stored["lvt-vqvae"], DATA, "val"), {"size": SIDE}, "name another folder"),
        ((stored["vqgan"], DATA, "val"), {"size": 8}, "frame_size"),
        ((f"vqgan:{stored['vqgan']},rows=2", DATA, "val"), {"size": SIDE}, "holds data of tokenizer .*'rows': 2"),
        ((stored["vqgan"], "digits:30,frames=8,size=16", "val"), {"size": SIDE}, "was made from"),
        ((stored["vqgan"], DATA, "val"), {"size": SIDE, "stride": 2}, "whole videos are encoded without a stride"),
        ((stored["vvae"], DATA, "val"), {"size": SIDE, "frames": 5}, "the nearest are 4 or 8"),
        ((stored["vvae"], DATA, "val"), {"size": SIDE}, "no video of the split val has 16 frames"),
    ):
        with pytest.raises(UserError, match=message):
            encode_data(*arguments, tmp_path, **options)
    assert contents(tmp_path) == before
    record = json.loads((tmp_path / "tokenizer.json").read_text())
    for damage in ("", "[]", json.dumps({**record, "tokenizer": 3}), json.dumps({**record, "time_factor": 0})):
        (tmp_path / "tokenizer.json").write_text(damage)
        with pytest.raises(UserError, match="names no tokenizer"):
            Encoded(tmp_path / "val.npy")
    (tmp_path / "tokenizer.json").write_text(json.dumps({**record, "digest": "0" * 16}))
    with pytest.raises(UserError, match="was made by other weights"):
        open_tokenizer(tmp_path)


def test_latents_that_do_not_fit_their_type_are_refused(tmp_path, monkeypatch):
    tokenizer = open_tokenizer("identity")
    monkeypatch.setattr(tokenizer, "encode_frames", lambda frames: frames * 1e6)
    monkeypatch.setattr(encoded, "open_tokenizer", lambda *others: tokenizer)
    with pytest.raises(UserError, match="too large for float16; use --dtype fp32"):
        encode_data("identity", DATA, "val", tmp_path / "new", size=SIDE)
    assert not (tmp_path / "new").exists()  # whose tokenizer.json would keep every other tokenizer out


def test_a_file_of_the_users_is_not_replaced(tmp_path):
    (tmp_path / "val.json").write_text('{"mine": 1}')
    with pytest.raises(UserError, match="val.json: is a file of yours"):
        encode_data("identity", DATA, "val", tmp_path, size=SIDE)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("val.json", '{"mine": 1}')]


def test_damaged_files_are_one_line(stored, tmp_path):
    path = encode_data(stored["vqgan"], DATA, "val", tmp_path, size=SIDE)
    facts = json.loads(path.with_suffix(".json").read_text())
    for damage in ({"clips": facts["clips"][:-1]}, {"format": "other"}, {"clips": 3}, {"provenance": None}):
        path.with_suffix(".json").write_text(json.dumps({**facts, **damage}))
        with pytest.raises(UserError, match="damaged"):
            Encoded(path)
    path.with_suffix(".json").write_text(json.dumps(facts))
    np.save(path, np.zeros((3, 2, 2, 1), np.uint8))
    with pytest.raises(UserError, match="not what its .json says"):
        Encoded(path).read(0)


def test_the_script_writes_each_split_and_names_what_comes_next(stored, tmp_path, capsys):
    for kind, size, told in (
        ("vqgan", [], f"MODEL.AUTOREGRESSIVE.VT.NC 1 MODEL.AUTOREGRESSIVE.VT.NV {CODES}"),
        ("fsq", ["--frames", "5"], "INPUT.N_FRAMES_PER_VIDEO_TRAIN 2 INPUT.N_FRAMES_PER_VIDEO_TEST 2"),  # of codes
        ("vqgan", ["--kind", "latents"], "train_flow_pred.py --config CONFIG data.latents="),
    ):
        out = tmp_path / f"{kind}{len(size)}"
        arguments = ["--checkpoint", stored[kind], "--data", DATA, "--out", str(out), "--size", str(SIDE), *size]
        encode.main([*arguments, "--max-videos", "2"])
        printed = capsys.readouterr().out
        assert told in printed and len(Encoded(out / "train.npy").clips) == len(Encoded(out / "val.npy").clips) == 2
