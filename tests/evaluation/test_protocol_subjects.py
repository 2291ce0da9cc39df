"""Every model of the project under every protocol that fits it: real files of tiny models, real miniatures of the data,
the command. What departs is what the flags say and nothing else.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from evaluation.protocols import BY_ID, NamedProtocol, plain
from scripts import evaluate
from tests.evaluation.tiny_models import GENERATORS, PREDICTORS, TOKENIZERS, lvt, river
from videodata.errors import UserError

OF_PREDICTION = ("bair-1-15", "bair-2-14", "k600-5-11", "kth-10-30", "kth-4-36", "clevrer-4-12", "moving-mnist-10-10")
SMALL = (16, 16)  # frames of a transformer, which samples code by code
FILMS = (48, 64)  # frames of the miniature of DAVIS
CLASSES = ("Archery", "HandstandPushups", "YoYo")


def result(protocol: NamedProtocol, folder: Path, monkeypatch, words: list[str], *flags: str) -> dict:
    """The JSON of an evaluation with as few clips as there can be; `asked`: in what it departs for that."""
    few = {"num_clips": 2, "samples": 1, "repetitions": 1, "generated": 8}
    settings = protocol.settings()
    less = {name: count for name, count in few.items() if settings[name] > count}
    if protocol.id.startswith("kth"):  # all of them are 24
        less["num_clips"] = 2
    if protocol.id == "mcl-jcv":  # large frames
        less["num_clips"] = 1
    flags += tuple(word for name, count in less.items() for word in (f"--{name}", str(count)))
    monkeypatch.chdir(folder)
    data = ["--data", f"data/{protocol.source['dataset']}", "--protocol", protocol.id, "--out", "out.json"]
    evaluate.main([*words, *data, "--device", "cpu", "--feature_cache", "none", *flags])
    found = json.loads(Path("out.json").read_text())
    assert {score["mean"] is not None for score in found["scores"]} == {True}
    found["asked"] = {name: [settings[name], count] for name, count in less.items()}
    return found


def departures(found: dict) -> dict:
    return found["details"]["protocol"]["departs_in"]


@pytest.mark.parametrize("name", ["ucf101-rfvd", "davis", "mcl-jcv"])
@pytest.mark.parametrize("kind", TOKENIZERS)
def test_tokenizers(kind, name, protocol_data, monkeypatch, tmp_path):
    """Of any size of frames: to the letter of the protocol, although none was made for clips like these."""
    protocol = BY_ID[name]
    large = name == "mcl-jcv" and kind != "tokenizer3d, KL"  # one of them takes its frames as large as they are
    size = FILMS if protocol.size is None or large else protocol.size
    flags = [] if size == protocol.size else ["--size", *map(str, size)]
    words = TOKENIZERS[kind](tmp_path, protocol.frames, (64, 64))
    found = result(protocol, protocol_data(protocol), monkeypatch, words, *flags, "--metrics", "psnr")
    assert departures(found) == found["asked"] | ({"size": [plain(protocol.size), plain(size)]} if large else {})
    assert name == "mcl-jcv" or found["details"]["protocol"]["id"] == name
    assert found["scores"][0]["name"] == "PSNR" and len(found["scores"][0]["per_frame"]) == protocol.frames
    assert (found["height"], found["width"]) == size


@pytest.mark.parametrize("name", OF_PREDICTION)
@pytest.mark.parametrize("kind", [*PREDICTORS, "lvt"])
def test_predictors(kind, name, protocol_data, monkeypatch, tmp_path):
    protocol = BY_ID[name]
    if kind == "lvt":
        words = lvt(tmp_path, protocol.frames, SMALL)
    else:
        words = PREDICTORS[kind](tmp_path, protocol.frames, protocol.size, protocol.stride)
    found = result(protocol, protocol_data(protocol), monkeypatch, words, "--metrics", "psnr")
    expected = dict(found["asked"])
    if kind == "lvt":
        expected["size"] = [plain(protocol.size), plain(SMALL)]
    assert departures(found) == expected
    assert found["excluded_frames"] == protocol.given and found["stride"] == protocol.stride
    assert len(found["scores"][0]["per_frame"]) == protocol.frames - protocol.given


@pytest.mark.parametrize("kind", GENERATORS)
def test_generators(kind, protocol_data, monkeypatch, tmp_path):
    """New clips of the classes that the real ones have."""
    protocol = BY_ID["ucf101-class"]
    size = SMALL if kind == "lvt" else protocol.size
    words = GENERATORS[kind](tmp_path, protocol.frames, size, CLASSES)
    found = result(protocol, protocol_data(protocol), monkeypatch, words, "--metrics", "fd-pca", "--force")
    assert departures(found) == found["asked"] | (
        {"size": [plain(protocol.size), plain(size)]} if kind == "lvt" else {}
    )
    assert found["scores"][0]["sizes"] == {"real": 2, "generated": 8}


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_tokenizers_of_frames_that_no_network_halves_evenly(kind, tmp_path):
    """Padded, and cut off again before anything is compared."""
    words = [*TOKENIZERS[kind](tmp_path, 4, (64, 64)), "--data", "shapes:2,frames=4,size=64", "--split", "all"]
    out = str(tmp_path / "out.json")
    evaluate.main([*words, "--frames", "4", "--size", "30", "42", "--metrics", "psnr", "--device", "cpu", "--out", out])
    found = json.loads(Path(out).read_text())
    assert (found["height"], found["width"]) == (30, 42) and found["scores"][0]["mean"] > 0


@pytest.mark.parametrize("model", [river, lvt])
def test_who_makes_one_size_alone_refuses_another(model, tmp_path):
    """In one line; a protocol's size, which the model has not, is a departure."""
    words = [*model(tmp_path, 16, SMALL), "--data", "shapes:20,frames=16,size=16", "--size", "32", "32"]
    with pytest.raises(UserError, match="--size 32 32: this model makes 16 16 alone"):
        evaluate.main([*words, "--device", "cpu", "--out", str(tmp_path / "out.json")])
    assert not (tmp_path / "out.json").exists()
