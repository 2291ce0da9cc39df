"""Every tokenizer under every generator that fits its kind: trained two steps, sampled, and evaluated, by the commands.

A generator reads what scripts/encode.py wrote, or takes pictures and `--tokenizer`; it decodes with the tokenizer that
it was trained on: what an evaluation says of the true frames is what that tokenizer makes of them.
"""

import json

import numpy as np
import pytest
import torch
import yaml

from evaluation import psnr
from scripts import encode, evaluate, generate_flow_videos, generate_videos, train_flow_pred, train_lvt
from tests.conftest import ROOT
from tests.flow_pred.tiny import tiny_values
from tests.training.tiny_tokenizers import SIDE, store_tokenizer
from training.checkpoint import newest_weights
from training.tokenizer import decode_array, latent_frames, open_tokenizer
from videodata import open_clips
from videodata.errors import UserError
from videodata.frame_folder import write_png
from videodata.pixels import to_uint8

DECODERS = {"causal": "VT_tiny", "masked": "VT_masked_frame_tiny"}  # MODEL.AUTOREGRESSIVE.VT.DECODER and a file of it
LIKELIHOOD = {  # evaluator, its task and a key of it, the metric of evaluate.py
    "causal": ("BitsEvaluator", "likelihood", "bits_per_dim", "bits"),
    "masked": ("MaskedBitsEvaluator", "masked likelihood", "bits bound", "masked-bits"),
}
PREDICTORS = {"river": "--checkpoint", "sde": "--ckpt-f"}
FUNCTIONS = {"river": "river", "sde": "f_nll"}
FRAMES = {"kl": 17, "fsq": 17, "vvae": 16}  # of a clip; 8 of the others
GIVEN = {"kl": 5, "fsq": 5, "vvae": 8}  # 2 of the others
SETTINGS = {"fsq": ",codebooks=2"}  # beside the folder of a tokenizer
CODES = ("vqgan", "ldm", "lvt-vqvae", "fsq")
LATENTS = ("vqgan", "ldm", "vvae", "ours", "identity", "kl")
ALWAYS = {  # each tokenizer with one generator, each generator with two or more tokenizers
    *(("fsq", "causal"), ("lvt-vqvae", "causal"), ("vqgan", "masked"), ("ldm", "masked")),
    *(("vvae", "river"), ("ours", "river"), ("ldm", "river"), ("kl", "sde"), ("vqgan", "sde"), ("identity", "sde")),
}


def pairs(tokenizers, generators):
    """All of them, those that are not tested in any case as exhaustive."""
    found = [(tokenizer, generator) for tokenizer in tokenizers for generator in generators]
    return [pair if pair in ALWAYS else pytest.param(*pair, marks=pytest.mark.exhaustive) for pair in found]


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """What opens a tokenizer of a type; made when it is asked for."""
    made = {}

    def store(kind):
        if kind not in made:
            made[kind] = store_tokenizer(kind, tmp_path_factory.mktemp(kind))
        prefix = "tokenizer3d:" if kind in SETTINGS else ""
        return prefix + made[kind] + SETTINGS.get(kind, "")

    return store


def data_of(kind):
    return f"digits:20,frames={FRAMES.get(kind, 8)},size={SIDE},colour=1"


def call(main, *arguments):
    return main([str(argument) for argument in arguments])


def encoded(stored, kind, what, folder):
    """Codes or latents of both splits of the data."""
    frames = ["--frames", FRAMES[kind]] if kind in FRAMES else []
    call(
        encode.main, "--checkpoint", stored(kind), "--data", data_of(kind), "--size", SIDE, "--kind", what,
        "--out", folder, "--dtype", "float32", "--device", "cpu", *frames,
    )  # fmt: skip
    return folder


def reconstruction(tokenizer, clips):
    return decode_array(tokenizer, tokenizer.encode(clips))


def score(path, name):
    """A mean in the result of an evaluation."""
    (found,) = [row for row in json.loads(path.read_text())["scores"] if row["name"] == name]
    return found["mean"]


def lvt_arguments(tokenizer, kind, decoder):
    """Keys of a tiny transformer over the codes of a tokenizer."""
    t, h, w, c = tokenizer.shape(FRAMES.get(kind, 8), SIDE, SIDE)
    given = latent_frames(tokenizer, GIVEN.get(kind, 2))
    values = {
        "MODEL.AUTOREGRESSIVE.VT": {
            "NC": c, "NV": tokenizer.size, "D": 16, "DA": 4, "DE": 8, "KERNEL": (3, 1, 1), "STRIDE": (t, 1, 1),
            "BLOCKS_E": [[1, h, w]], "BLOCKS_D": [[1, h, w]], "N_HEAD_E": [2], "N_HEAD_D": [2], "N_PRIME": given,
        },
        "INPUT": {"N_FRAMES_PER_VIDEO_TRAIN": t, "N_FRAMES_PER_VIDEO_TEST": t, "SIZE": SIDE},
        "SOLVER": {"IMS_PER_BATCH": 2, "MAX_ITER": 2, "WARMUP_ITERS": 1, "PRECISION": "fp32"},
        "TEST": {"EVALUATORS": f"{LIKELIHOOD[decoder][0]},VTSampler", "N_SAMPLES": 1, "EVAL_PERIOD": 2},
        "TEST.VT_SAMPLER": {"N_PRIME": given, "NUM_SAMPLES": 1},
        "MODEL": {"DEVICE": "cpu"},
    }  # fmt: skip
    pairs = {f"{node}.{key}": value for node, keys in values.items() for key, value in keys.items()}
    return [str(text) for pair in {**pairs, "VIS_PERIOD": 2}.items() for text in pair]


@pytest.mark.parametrize(("kind", "decoder"), pairs(CODES, DECODERS))
def test_a_transformer_over_the_codes_of_any_tokenizer(stored, tmp_path, kind, decoder):
    codes = encoded(stored, kind, "codes", tmp_path / "codes")
    tokenizer, run = open_tokenizer(codes), tmp_path / "run"
    call(
        train_lvt.main, "--config-file", ROOT / f"configs/lvt/{DECODERS[decoder]}.yaml", "--data", codes,
        "--run_dir", run, *lvt_arguments(tokenizer, kind, decoder),
    )  # fmt: skip
    results = json.loads((run / "evaluation.json").read_text())[str(codes)]
    values = results[LIKELIHOOD[decoder][1]]
    assert values[LIKELIHOOD[decoder][2]] > 0
    assert decoder == "masked" or values["bits_per_subpixel"] < values["bits_per_dim"]
    assert any((run / "samples").rglob("*continuation*"))
    drawn = np.load(next((run / "inference/samples").rglob("codes.npy")))  # (t, C, h, w)
    t, h, w, c = tokenizer.shape(FRAMES.get(kind, 8), SIDE, SIDE)
    assert drawn.shape == (t, c, h, w) and drawn.min() >= 0 and drawn.max() < tokenizer.size

    frames, given = FRAMES.get(kind, 8), GIVEN.get(kind, 2)
    clip = open_clips(data_of(kind), frames, SIDE, split="val", windows="first")[0]
    for number, frame in enumerate(to_uint8(clip)[:given]):
        write_png(tmp_path / "given" / f"{number}.png", frame)
    call(
        generate_videos.main, "--checkpoint", run, "--video-dir", tmp_path / "given", "--given", given, "--samples", 2,
        "--out", tmp_path / "made", "--device", "cpu",
    )  # fmt: skip
    assert len(list((tmp_path / "made").glob("*.png"))) == frames and (tmp_path / "made/samples.mp4").is_file()

    call(
        evaluate.main, "lvt", "--checkpoint", run, "--data", data_of(kind), "--split", "val", "--num_clips", 2,
        "--metrics", "psnr", LIKELIHOOD[decoder][3], "codebook", "--device", "cpu", "--out", tmp_path / "scores.json",
    )  # fmt: skip
    clips = open_clips(data_of(kind), frames, SIDE, split="val", total_videos=2, windows="random")
    clips = torch.stack([clips[0], clips[1]])
    expected = psnr(clips[:, :, given:], reconstruction(tokenizer, clips)[:, :, given:]).mean()
    found = score(tmp_path / "scores.json", "PSNR reconstruction of the true frames")
    assert found == pytest.approx(float(expected), abs=0.05)


def flow_config(tokenizer, kind, predictor, folder):
    """The file of a tiny predictor over the latents of a tokenizer."""
    frames, given = FRAMES.get(kind, 8), GIVEN.get(kind, 2)
    t, h, w, c = tokenizer.shape(frames, SIDE, SIDE)
    values = tiny_values(FUNCTIONS[predictor], latent_mean="auto", latent_std="auto")
    values["data"] |= {"data_root": data_of(kind), "input_size": SIDE, "crop_size": SIDE, "frames_per_sample": frames}
    values["model"]["vector_field_regressor"] |= {"state_size": c, "state_res": [h, w], "backbone": "conv"}
    values["training"] |= {
        "num_observations": min(t, 4),
        "condition_frames": given,
        "frames_to_generate": frames - given,
    }
    values["training"]["optimizer"]["num_training_steps"] = 2
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def sampled_and_scored(run, predictor, kind, folder):
    """The pictures of a predictor, and the result of its evaluation."""
    frames, given = FRAMES.get(kind, 8), GIVEN.get(kind, 2)
    call(
        generate_flow_videos.main, PREDICTORS[predictor], run, "--num-videos", 1, "--steps", 1, "--format", "npy",
        "--metrics", "--device", "cpu", "--out", folder / "out",
    )  # fmt: skip
    assert np.load(folder / "out/0000.npy").shape == (frames, SIDE, SIDE, 3)
    call(
        evaluate.main, "flow_pred", "--checkpoint", run, "--data", data_of(kind), "--split", "val", "--num_clips", 2,
        "--metrics", "psnr", "--steps", 1, "--device", "cpu", "--out", folder / "scores.json",
    )  # fmt: skip
    assert json.loads((folder / "scores.json").read_text())["excluded_frames"] == given
    assert 0 < score(folder / "scores.json", "PSNR") < 60


@pytest.mark.parametrize(("kind", "predictor"), pairs(LATENTS, PREDICTORS))
def test_a_predictor_over_the_latents_of_any_tokenizer(stored, tmp_path, kind, predictor):
    latents = encoded(stored, kind, "latents", tmp_path / "latents")
    tokenizer, run = open_tokenizer(latents), tmp_path / "run"
    call(
        train_flow_pred.main, "--config", flow_config(tokenizer, kind, predictor, tmp_path), "--run-dir", run,
        "--num-gpus", 0, "--pictures_every", 2, f"data.latents={latents}",
    )  # fmt: skip
    assert any((run / "samples").rglob("*prediction*"))
    sampled_and_scored(run, predictor, kind, tmp_path)


@pytest.mark.parametrize(
    ("kind", "predictor"), [("kl", "river"), pytest.param("vvae", "sde", marks=pytest.mark.exhaustive)]
)
def test_a_predictor_over_pictures_encodes_whole_clips(stored, tmp_path, kind, predictor):
    """Of the same data it sees the same latents as one that reads them from the disk: the same weights come out."""
    latents = encoded(stored, kind, "latents", tmp_path / "latents")
    config = flow_config(open_tokenizer(latents), kind, predictor, tmp_path)
    weights = []
    for name, source in (("pictures", ["--tokenizer", stored(kind)]), ("latents", [f"data.latents={latents}"])):
        moments = [f"model.latent_{key}={[float(value)] * (16 if kind == 'vvae' else 4)}"
                   for key, value in (("mean", 0), ("std", 1))]  # fmt: skip
        call(
            train_flow_pred.main, "--config", config, "--run-dir", tmp_path / name, "--num-gpus", 0, *source[:2],
            *moments,
        )  # fmt: skip
        weights.append(torch.load(next((tmp_path / name / "checkpoints").glob("final_step_*.pth")), weights_only=True))
    for key, value in weights[0]["model"].items():
        torch.testing.assert_close(value, weights[1]["model"][key], rtol=0, atol=1e-4)
    sampled_and_scored(tmp_path / "pictures", predictor, kind, tmp_path)


def test_frames_that_a_tokenizer_cannot_take_are_one_line(stored, tmp_path):
    """Before any training, and before any sampling; with the numbers that would do."""
    latents = encoded(stored, "kl", "latents", tmp_path / "latents")
    config = flow_config(open_tokenizer(latents), "kl", "river", tmp_path)
    arguments = ["--config", config, "--run-dir", tmp_path / "run", "--num-gpus", 0, f"data.latents={latents}"]
    for change, message in (
        ("data.frames_per_sample=16", "data.frames_per_sample: a clip of 16 frames.*the nearest are 13 or 17"),
        ("training.condition_frames=4", "condition_frames: a beginning of 4 frames.*the nearest are 1 or 5"),
        ("data.skip_frames=1", "encoded with --stride 1, and data.skip_frames"),
        ("model.vector_field_regressor.state_size=3", r"latents are \(4, 4, 4\)"),
    ):
        with pytest.raises(UserError, match=message):
            call(train_flow_pred.main, *arguments, change)
    assert newest_weights(tmp_path / "run" / "checkpoints") is None
    call(train_flow_pred.main, *arguments)
    for flags, message in (
        (["--context", 4], "a context of 4 frames.*the nearest are 1 or 5"),
        (["--frames", 3], "a clip with its context of 8 frames.*the nearest are 5 or 9"),
    ):
        with pytest.raises(UserError, match=message):
            call(generate_flow_videos.main, "--checkpoint", tmp_path / "run", "--out", tmp_path / "out", *flags)


def test_codes_of_another_tokenizer_than_the_transformer_is_made_for_are_one_line(stored, tmp_path):
    codes = encoded(stored, "fsq", "codes", tmp_path / "codes")
    arguments = lvt_arguments(open_tokenizer(codes), "fsq", "causal")
    start = ["--config-file", ROOT / "configs/lvt/VT_tiny.yaml", "--data", codes, "--run_dir", tmp_path / "run"]
    with pytest.raises(UserError, match=r"2 codebook\(s\) of 16 codes.*set MODEL.AUTOREGRESSIVE.VT.NC 2"):
        call(train_lvt.main, *start, *arguments, "MODEL.AUTOREGRESSIVE.VT.NV", 128)
    with pytest.raises(UserError, match="makes latents, and codes are asked for"):
        call(train_lvt.main, *start[:-2], "--tokenizer", stored("kl"), *start[-2:], *arguments)
