"""The masked recipe keeps what every model promises, and the commands work with it from end to end."""

import json
import logging
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml

from lvt import config as configuration
from lvt import scores as scores_of_lvt
from lvt.codes import CodesFile, CodeWindows
from lvt.evaluators import evaluators_of
from lvt.files import build_transformer
from lvt.scores import COLLAPSED, Continuations
from lvt.solver import kinds_of_weights
from lvt.train import FREE_KEYS, MaskedTransformerRecipe, build_recipe, shape_of_model
from scripts import evaluate, generate_videos, train_lvt
from tests.contract import ModelContract
from tests.lvt.test_config import CONFIGS
from tests.lvt.test_masked import masked_model
from tests.lvt.test_scripts import VQVAE, call
from tests.lvt.test_train import tiny, write_random_codes
from training.folder import check_config
from training.recipe import Step
from videodata import read_video
from videodata.errors import UserError

SIZES = {
    "MODEL.AUTOREGRESSIVE.VT": {
        "N_PRIME": 1, "NC": 2, "NV": 16, "D": 24, "DA": 8, "DE": 12, "KERNEL": [3, 3, 3], "STRIDE": [2, 2, 2],
        "BLOCKS_E": [[2, 2, 2]], "N_HEAD_E": [2], "BLOCKS_D": [[2, 2, 2]], "N_HEAD_D": [2],
        "MASKED": {"STEPS": 2, "CONTEXT_DROP": 0.2, "TOKEN_DROPOUT": 0.2, "MASKS": "passes"},
    },
    "SOLVER": {"SLICES_PER_CLIP": 2, "PRECISION": "fp32"},
}  # fmt: skip
NODE = "MODEL.AUTOREGRESSIVE.VT"


class TestMaskedTransformer(ModelContract):
    """The contract for the transformer with a masked decoder."""

    checkpointing_override = {"MODEL.GRADIENT_CHECKPOINTING": True}

    @pytest.fixture(autouse=True)
    def codes(self, tmp_path_factory):
        cls = type(self)
        if not hasattr(cls, "path"):
            cls.path = tmp_path_factory.mktemp("codes") / "codes.npy"
            write_random_codes(cls.path)

    def build_recipe(self, **overrides):
        config = tiny("VT_masked_tiny.yaml", SIZES, **overrides)
        return MaskedTransformerRecipe(build_transformer(config), config)

    def dataset(self):
        return CodeWindows(CodesFile(self.path), 4, random=True)

    def test_validation_is_of_each_clip(self):
        """The same numbers whatever else is in the batch, and none that a causal model has."""
        recipe, (batch, step) = self.build_recipe(), self.batch()
        with torch.no_grad():
            together = recipe.evaluate(batch, step, recipe.networks)
            alone = {name: values[1:2] for name, values in batch.items()}
            single = Step(0, 1, type(step.noise)(0, [1]), step.device)
            found = recipe.evaluate(alone, single, recipe.networks)
        assert set(found) == {"bits_bound", "accuracy_of_half"} and recipe.best_metric == ("bits_bound", "min")
        for name, values in found.items():
            torch.testing.assert_close(values, together[name][1:2])


def test_the_optimiser_knows_the_tables_of_the_decoder():
    """Mask embeddings are rows of a table, and so are the taps of the convolution over them."""
    changes = {f"{NODE}.TABLE_START": "taps", "VIS_PERIOD": 10**9}
    recipe = build_recipe(tiny("VT_masked_tiny.yaml", SIZES, **changes))
    assert isinstance(recipe, MaskedTransformerRecipe)
    model = recipe.networks["transformer"]
    tables = {id(parameter) for parameter in kinds_of_weights(model)["tables"]}
    assert {id(model.decoder.mask_embedding), id(model.decoder.conv.conv.weight)} <= tables


def test_the_way_of_sampling_is_no_shape():
    """A run may go on with other passes; one of before, which has none of these keys, has the shape that it had."""
    shapes = []
    for name, pairs in (
        ("VT_masked_tiny", []),
        ("VT_masked_tiny", [f"{NODE}.MASKED.STEPS", "3", f"{NODE}.MASKED.ORDER", "random"]),
        ("VT_tiny", []),
        ("VT_tiny", [f"{NODE}.DECODER", "masked"]),
    ):
        shapes.append(shape_of_model(configuration.load_config(CONFIGS / f"{name}.yaml", pairs)))
    assert shapes[0] == shapes[1] != shapes[2] != shapes[3]
    assert "DECODER" not in shapes[2]["VT"] and "MASKED" not in shapes[2]["VT"]


@pytest.mark.parametrize("name", ["VT_masked_tiny", "VT_tiny"])
def test_runs_without_the_newer_keys_go_on(name, tmp_path):
    """They were trained with what is the default now; another loss is another training."""
    new = {**configuration.load_config(CONFIGS / f"{name}.yaml"), "engine": {}}
    old = json.loads(json.dumps(new))
    node = old["MODEL"]["AUTOREGRESSIVE"]["VT"]["MASKED"]
    del node["MASKS"], node["RANDOM_GIVEN"], old["TEST"]["VT_SAMPLER"]["PRECISION"]
    check_config(old, new, False, FREE_KEYS, tmp_path)
    with pytest.raises(UserError, match=r"SOLVER\.PRECISION"):
        check_config({**old, "SOLVER": {**old["SOLVER"], "PRECISION": "bf16"}}, new, False, FREE_KEYS, tmp_path)
    node["LOSS"] = "all"
    with pytest.raises(UserError, match=r"MASKED\.LOSS"):
        check_config(old, new, False, FREE_KEYS, tmp_path)


def test_evaluators_are_of_one_decoder():
    """The exact bits are never those of a masked one."""
    for name, own, other in (
        ("VT_tiny", "BitsEvaluator", "MaskedBitsEvaluator"),
        ("VT_masked_tiny", "MaskedBitsEvaluator", "BitsEvaluator"),
    ):
        config = configuration.load_config(CONFIGS / f"{name}.yaml", ["TEST.EVALUATORS", own])
        assert evaluators_of(config) == [own]
        config["TEST"]["EVALUATORS"] = other
        with pytest.raises(UserError, match=f"{other}' does not fit this model; use .*{own}"):
            evaluators_of(config)


def scored(model, true, monkeypatch, **options):
    """Own scores of continuations of clips with these codes, which are shown as they are."""
    from evaluation.subject import Batch

    tokenizer = SimpleNamespace(time_factor=1, space_factor=1, causal=True, width=2, size=128)
    monkeypatch.setattr(scores_of_lvt, "encode_codes", lambda tokenizer, clips: true)
    monkeypatch.setattr(scores_of_lvt, "decode_codes", lambda tokenizer, codes: codes[:, :1].expand(-1, 3, -1, -1, -1))
    subject = Continuations(model, tokenizer, 2, **options)
    clips = torch.zeros(len(true), 3, *true.shape[2:])
    for sample in range(2):
        subject.make(Batch(clips, list(range(len(true))), 0, sample))
    return subject, subject.own_scores()


def test_collapsed_samples_are_warned_of(monkeypatch, caplog):
    """Constant logits make one code; a network that hardly minds what it sees makes codes of much entropy."""
    model, clip = masked_model("clip", {"STEPS": 3})
    true = torch.randint(11, (4, 2, *clip), generator=torch.Generator().manual_seed(0))
    for layer in model.ch_predictor.P:
        layer.weight.data.mul_(0.1)
        layer.bias.data.zero_()
    with caplog.at_level(logging.WARNING):
        subject, found = scored(model, true, monkeypatch)
    assert "collapsed" not in caplog.text and COLLAPSED == 0.5
    names = {score.name for score in found["masked-bits"]}
    assert {"masked bits 25% masked", "masked accuracy 100% masked", "bits bound"} <= names
    assert not any(name.startswith("bits per") for name in names)
    assert subject.facts()["masked"]["steps"] == 3 and "masked-bits" in subject.metrics
    for layer in model.ch_predictor.P:
        layer.weight.data.zero_()
        layer.bias.data.copy_(torch.tensor([9.0, *[0.0] * 10]))
    with caplog.at_level(logging.WARNING):
        scored(model, true, monkeypatch)
    assert "the codes of the samples have collapsed: codebook 1" in caplog.text


def test_bits_are_counted_only_where_they_are_asked_for(monkeypatch):
    """They cost more passes of the decoder than the samples."""
    model, clip = masked_model("clip", {"STEPS": 3})
    calls = []
    model.decoder.register_forward_pre_hook(lambda module, given: calls.append(1))
    true = torch.randint(11, (4, 2, *clip), generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(Continuations, "asked", ("energy",))
    _, found = scored(model, true, monkeypatch)
    assert set(found) == {"codebook"} and len(calls) == 2 * 3
    monkeypatch.setattr(Continuations, "asked", None)
    _, found = scored(model, true, monkeypatch)
    assert set(found) == {"codebook", "masked-bits"} and len(calls) == 2 * 2 * 3 + 16 + 4


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A VQ-VAE with codes of both parts, and a run of each masked configuration."""
    folder = tmp_path_factory.mktemp("masked")
    vqvae, runs = folder / "vqvae", {}
    first = ["--config-file", CONFIGS / "VQVAE_tiny.yaml", "--run_dir", vqvae]
    assert call(train_lvt.main, *first, *VQVAE, "SOLVER.MAX_ITER", 2) == 0
    assert call(train_lvt.main, *first, "--encode", *VQVAE) == 0
    for name, blocks in (("VT_masked_tiny", "((1, 4, 4), (4, 2, 2))"), ("VT_masked_frame_tiny", "((1, 4, 4),)")):
        frame, heads = name == "VT_masked_frame_tiny", "(2, 2)" if "2, 2" in blocks else "(2,)"
        node = {
            "N_PRIME": 1, "NV": 32, "D": 24, "BLOCKS_D": blocks, "N_HEAD_D": heads, "MASKED.STEPS": 3,
            **({"STRIDE": "(4, 1, 1)", "BLOCKS_E": "((1, 4, 4),)", "N_HEAD_E": "(2,)"} if frame else {}),
        }  # fmt: skip
        options = [text for key, value in node.items() for text in (f"{NODE}.{key}", value)]
        options += [
            "INPUT.SIZE", 16, "INPUT.N_FRAMES_PER_VIDEO_TRAIN", 4, "INPUT.N_FRAMES_PER_VIDEO_TEST", 4,
            "MODEL.DEVICE", "cpu", "SOLVER.WARMUP_ITERS", 1, "TEST.VT_SAMPLER.N_PRIME", 2, "VIS_PERIOD", 2,
            "TEST.VT_SAMPLER.NUM_SAMPLES", 2, "DATASETS.VIDEOS", "('shapes:6#val',)",
        ]  # fmt: skip
        assert call(
            train_lvt.main, "--config-file", CONFIGS / f"{name}.yaml", "--run_dir", folder / name, "--vqvae", vqvae,
            "--data", vqvae / "inference" / "shapes-6", "--steps", 2, "--batch_size", 2, *options,
            "TEST.EVALUATORS", "MaskedBitsEvaluator,VTSampler,ContinuationEvaluator",
        ) == 0  # fmt: skip
        runs[name] = folder / name
    return runs


def test_the_commands_work_with_masked_models(trained, tmp_path):
    """Trained, evaluated while training and after, continued: by the commands of the causal ones."""
    for name, run in trained.items():
        results = json.loads((run / "evaluation.json").read_text())
        (likelihood,) = [tasks["masked likelihood"] for key, tasks in results.items() if "masked likelihood" in tasks]
        assert 0 < likelihood["bits bound"] < 20 and "likelihood" not in likelihood and likelihood["draws"] == 16
        assert results["protocol"]["MASKED"]["STEPS"] == 3
        samples = sorted(run.glob("inference/samples/*/video_*"))
        assert [path.name for path in samples] == ["video_0_0", "video_1_0"]
        assert np.load(samples[0] / "codes.npy", allow_pickle=False).shape == (4, 2, 4, 4)
        place = tmp_path / f"{name}.json"
        command = ["lvt", "--checkpoint", run, "--data", "shapes:6", "--split", "val", "--device", "cpu"]
        command += ["--samples", 2, "--metrics", "energy", "masked-bits", "--out", place]
        assert call(evaluate.main, *command, "--passes", 2, "--order", "spread", "--choice-temperature", 0,
                    "--precision", "bf16") == 0  # fmt: skip
        stored = json.loads(place.read_text())
        assert stored["details"]["masked"]["steps"] == 2 and stored["details"]["masked"]["order"] == "spread"
        assert {"ES-clip", "bits bound", "masked bits 50% masked"} <= {score["name"] for score in stored["scores"]}
        out = tmp_path / name
        assert call(
            generate_videos.main, "--checkpoint", run, "--video-dir", samples[0], "--given", 2, "--samples", 2,
            "--out", out, "--frames", 7, "--hop", 2, "--passes", 2, f"{NODE}.MASKED.ORDER", "random",
        ) == 0  # fmt: skip
        assert len(read_video(out / "sample_1" / "video.mp4")[0]) == 7
        used = yaml.safe_load((out / "config.yaml").read_text())["MODEL"]["AUTOREGRESSIVE"]["VT"]["MASKED"]
        assert (used["STEPS"], used["ORDER"]) == (2, "random")


def test_flags_of_a_masked_decoder_need_one(trained, tmp_path, capsys):
    """A causal run is told so."""
    run = trained["VT_masked_frame_tiny"]
    text = (run / "config.yaml").read_text().replace("DECODER: masked", "DECODER: causal")
    (tmp_path / "causal.yaml").write_text(text)
    command = ["lvt", "--checkpoint", run, "--data", "shapes:6", "--device", "cpu", "--passes", 2]
    assert call(evaluate.main, *command, "--config_file", tmp_path / "causal.yaml") == 2
    assert "VT.DECODER masked, the configuration says causal" in capsys.readouterr().err
