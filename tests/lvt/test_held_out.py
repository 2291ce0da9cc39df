"""What the data declares as val or test is never trained on; runs remember their clips, and evaluations count them."""

import json

import numpy as np
import pytest

from lvt.codes import CodeWindows, open_codes, write_codes
from lvt.datasets import thinned
from scripts import evaluate, train_lvt
from tests.lvt.test_scripts import VQVAE, VT, call, config
from training import trained_on
from videodata.clips import open_clips
from videodata.npy import NpySource
from videodata.provenance import overlap
from videodata.shapes import Shapes

COUNTS = {"train": 5, "val": 2, "test": 3}


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """A folder that declares three parts, and what was read of them while the two networks were trained."""
    folder, read = tmp_path_factory.mktemp("held_out"), []
    data, vqvae, vt = folder / "data", folder / "vqvae", folder / "vt"
    data.mkdir()
    for seed, (name, count) in enumerate(COUNTS.items()):
        shapes = Shapes(count, frames=6, size=16, seed=seed)
        np.save(data / f"{name}.npy", np.stack([shapes.read(video) for video in range(count)]))
    with pytest.MonkeyPatch.context() as patch:
        read_clip = NpySource.read_clip
        patch.setattr(NpySource, "read_clip", lambda self, *given, **more: (
            read.append(str(self.path)), read_clip(self, *given, **more))[1])  # fmt: skip
        options = [*VQVAE, "DATASETS.TRAIN", f"('{data}',)", "DATASETS.TEST", f"('{data}',)", "SOLVER.MAX_ITER", 2]
        first = ["--config-file", config("VQVAE_tiny.yaml")]
        assert call(train_lvt.main, *first, *options, "OUTPUT_DIR", vqvae) == 0
        options += ["DATASETS.TEST", f"('{data}#train', '{data}#val')", "TEST.EVALUATORS", "CodesExtractor"]
        assert call(train_lvt.main, *first, "--eval-only", *options, "OUTPUT_DIR", vqvae) == 0
        second = ["--config-file", config("VT_tiny.yaml"), "--data", vqvae / "inference" / "data", *VT]
        second += [text for part in ("ENCODER", "GENERATOR", "CODEBOOK")
                   for text in (f"TEST.VT_SAMPLER.VQ_VAE.{part}_WEIGHTS", vqvae)]  # fmt: skip
        second += ["SOLVER.MAX_ITER", 2, "TEST.EVALUATORS", "", "OUTPUT_DIR", vt]
        assert call(train_lvt.main, *second) == 0
    return {"data": data, "vqvae": vqvae, "vt": vt, "read": set(read)}


def test_no_test_clip_is_read_in_training(parts):
    """Neither by the VQ-VAE, nor for the codes, nor by the transformer; the runs say what they were trained on."""
    assert parts["read"] == {str(parts["data"] / "train.npy"), str(parts["data"] / "val.npy")}
    for run in ("vqvae", "vt"):
        record = trained_on(parts[run])
        assert record["source"] == str(parts["data"]) and record["split"] == "train"
        assert len(record["ids"]) == COUNTS["train"] and all("train.npy" in name for name in record["ids"])


@pytest.mark.parametrize("run", ["vqvae", "vt"])
@pytest.mark.parametrize(("split", "seen"), [("test", 0), ("train", COUNTS["train"])])
def test_an_evaluation_says_how_many_clips_were_trained_on(parts, tmp_path, capsys, run, split, seen):
    """None of the test clips, all of the training clips, loudly: in the table, the JSON file and at the end."""
    out = tmp_path / "e.json"
    arguments = ["--checkpoint", parts[run], "--data", parts["data"], "--split", split, "--device", "cpu"]
    assert call(evaluate.main, "lvt", *arguments, "--metrics", "psnr", "--output", out) == 0
    stored, printed = json.loads(out.read_text()), capsys.readouterr()
    assert (stored["clips"], stored["clips_trained_on"]) == (COUNTS[split], seen)
    note = f"of these {COUNTS[split]} clips, {seen} were in this run's training set"
    assert note in printed.out and (f"WARNING: {note}" in printed.err) == bool(seen)


def test_evaluators_count_too(parts, tmp_path):
    """Results of TEST.EVALUATORS have the count of each task. They lie beside those of another protocol, which stay."""
    first = (parts["vqvae"] / "evaluation.json").read_bytes()
    arguments = ["--config-file", config("VQVAE_tiny.yaml"), "--eval-only", *VQVAE, "OUTPUT_DIR", parts["vqvae"]]
    names = [f"{parts['data']}#{split}" for split in ("train", "test")]
    assert call(train_lvt.main, *arguments, "DATASETS.TEST", repr(tuple(names)), "TEST.EVALUATORS", "MSEEvaluator") == 0
    assert call(train_lvt.main, *arguments, "DATASETS.TEST", repr(tuple(names)), "TEST.EVALUATORS", "MSEEvaluator") == 0
    assert (parts["vqvae"] / "evaluation.json").read_bytes() == first
    assert sorted(path.name for path in parts["vqvae"].glob("*.json")) == [
        "evaluation.json", "evaluation_2.json", "trained_on.json",
    ]  # fmt: skip
    results = json.loads((parts["vqvae"] / "evaluation_2.json").read_text())
    assert [results[name]["reconstruction"]["clips_trained_on"] for name in names] == [COUNTS["train"], 0]
    assert [results[name]["reconstruction"]["clips"] for name in names] == [COUNTS["train"], COUNTS["test"]]


@pytest.mark.parametrize("kind", ["clips", "codes"])
def test_only_the_clips_that_are_measured_are_counted(tmp_path, kind):
    """Of items that are spread over a data set that was trained on in part, those of the videos that were."""
    every = open_clips("shapes:10", 4, 16, split=None, windows="consecutive")
    if kind == "codes":
        videos = [(f"video {number}", None, 4) for number in range(10)]
        codes = np.zeros((10, 4, 1, 2, 2), dtype=np.int64)
        made_from = open_clips("shapes:10", 4, 16, split=None).provenance()
        write_codes(tmp_path / "codes.npy", videos, codes.__getitem__, 8, provenance=made_from)
        every = CodeWindows(open_codes(tmp_path / "codes.npy"), 4, random=False)
    known = every.provenance()
    record = {**known, "ids": [*known["ids"][:3], known["ids"][9]]}
    some = thinned(every, 4)
    last_of_a_video = [len(every) // 10 * (number + 1) for number in range(10)]
    videos = [next(number for number, last in enumerate(last_of_a_video) if item < last) for item in some.indices]
    assert overlap(record, some) == sum(video < 3 or video == 9 for video in videos) == 2
    assert overlap(record, every) == 4 * len(every) // 10


@pytest.mark.parametrize("name", ["{data}#test", "{data}#val", "bair_test", "bair_test_seq"])
def test_held_out_parts_are_refused_in_training(parts, tmp_path, capsys, name):
    """By their mark, or by the name that the original gave them."""
    name = name.format(data=parts["data"])
    arguments = [*VQVAE, "DATASETS.TRAIN", f"('{name}',)", "OUTPUT_DIR", tmp_path / "run"]
    assert call(train_lvt.main, "--config-file", config("VQVAE_tiny.yaml"), *arguments) == 2
    assert "never trained on" in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_codes_of_held_out_videos_are_refused_in_training(parts, tmp_path, capsys):
    """Codes know which part of the data they are of, whatever their folder is called."""
    codes = parts["vqvae"] / "inference" / "data-val"
    assert CodeWindows(open_codes(codes), 4, random=False).provenance()["split"] == "val"
    arguments = [*VT, "DATASETS.TRAIN", f"('{codes}',)", "TEST.EVALUATORS", "", "OUTPUT_DIR", tmp_path / "run"]
    assert call(train_lvt.main, "--config-file", config("VT_tiny.yaml"), *arguments) == 2
    assert "never trained on" in capsys.readouterr().err
