"""Every named protocol from the data set's own files to the JSON of a result, in miniature.

What a result says, but for its values, stands in frozen_protocols.json. Where it is meant to change:

    VIDEOGEN_FREEZE=1 python -m pytest tests/evaluation/test_protocol_runs.py
"""

from __future__ import annotations

import json
import os
from importlib import import_module
from pathlib import Path

import pytest

from evaluation.protocols import BY_ID, NamedProtocol
from evaluation.subject import Subject
from scripts import evaluate
from training.randomness import SampleNoise

FROZEN = Path(__file__).with_name("frozen_protocols.json")
SMALL = {"num_clips": 4, "samples": 2, "repetitions": 2, "generated": 6}  # where a protocol has more
MODELS = {"prediction": "river", "generation": "video_vae", "reconstruction": "vvae"}
FOLDERS = {"river": "flow_pred"}
NETWORKS = {"fvd", "jedi", "lpips"}
OF_THE_RUN = {"command", "data_fingerprint", "checkpoint_sha256", "device"}


class Noisy(Subject):
    """What it is shown, with noise behind the frames that are given."""

    random = True

    def __init__(self, task: str, given: int) -> None:
        self.paired, self.context = task != "generation", given

    def make(self, batch):
        noise = SampleNoise(batch.seed, batch.items).normal(*batch.clips.shape[1:])
        noise[:, :, : self.context] = 0
        return batch.clips + 0.2 * noise


def result_of(protocol: NamedProtocol, folder: Path, monkeypatch, *flags: str) -> dict:
    """The JSON of an evaluation by that protocol, of the model of a line that does what it asks for."""
    model = MODELS[protocol.task]

    def open_subject(args):
        subject = Noisy(protocol.task, getattr(args, "given", 0))
        subject.classes = ("Archery",) if protocol.classes else ()
        return subject.made_for(args.frames, getattr(args, "size", None) or protocol.size, args.stride)

    monkeypatch.setattr(import_module(f"{FOLDERS.get(model, model)}.evaluate"), "open_subject", open_subject)
    monkeypatch.chdir(folder)
    place = protocol.source["dataset"] + ("_128" if protocol.id == "k600-5-11-128" else "")
    command = [model, "--checkpoint", "none", "--data", f"data/{place}", "--protocol", protocol.id, "--out", "out.json"]
    evaluate.main([*command, "--device", "cpu", "--feature_cache", "none", *flags])
    return json.loads(Path("out.json").read_text())


def small(protocol: NamedProtocol) -> list[str]:
    """Flags that keep it short."""
    asked = protocol.settings()
    fewer = {name: few for name, few in SMALL.items() if asked[name] > few}
    if protocol.source["dataset"] == "kth":  # all of them are 24
        fewer["num_clips"] = SMALL["num_clips"]
    flags = [text for name, few in fewer.items() for text in (f"--{name}", str(few))]
    flags += ["--allow_random_features", "--force"] if NETWORKS & set(protocol.metrics) else []
    return [*flags, *(["--size", "48", "64"] if protocol.size is None else [])]


def without_values(result: dict) -> dict:
    """What says how it was measured: ids and names, and all that the protocol fixes or was departed in."""
    kept = ("model", "frames", "stride", "height", "width", "excluded_frames", "repetitions", "clips", "published")
    details = {key: value for key, value in result["details"].items() if key not in OF_THE_RUN}
    scores = [[score["name"], score["definition"], score.get("sizes")] for score in result["scores"]]
    return {**{key: result[key] for key in kept}, "details": details, "scores": scores}


def as_text(results: dict[str, dict]) -> str:
    """JSON of few lines, of which a changed one can be read."""
    lines = {
        name: ",\n".join(f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in results[name].items())
        for name in BY_ID
        if name in results
    }
    return "{\n" + ",\n".join(f"{json.dumps(name)}: {{\n{text}\n}}" for name, text in lines.items()) + "\n}\n"


@pytest.mark.parametrize("name", BY_ID)
def test_a_result_says_what_it_always_said(name, protocol_data, monkeypatch):
    """The data set's own files, its preparing command, the flags, the evaluation, the file."""
    protocol = BY_ID[name]
    found = without_values(result_of(protocol, protocol_data(protocol), monkeypatch, *small(protocol)))
    frozen = json.loads(FROZEN.read_text()) if FROZEN.is_file() else {}
    if os.environ.get("VIDEOGEN_FREEZE") == "1":
        FROZEN.write_text(as_text(frozen | {name: found}))
    else:
        assert found == frozen[name]


def test_nothing_else_is_frozen():
    assert list(json.loads(FROZEN.read_text())) == list(BY_ID)
