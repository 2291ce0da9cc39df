"""A class as a condition of the transformer: names, dropped labels, guidance, and each clip's own label in scores."""

import pytest
import torch

from lvt import config as configuration
from lvt.codes import write_codes
from lvt.datasets import known_classes
from lvt.files import build_vqvae, vqvae_tokenizer
from lvt.generate import generate_codes
from lvt.scores import Continuations
from lvt.train import TransformerRecipe, name_classes
from lvt.transformer import VideoTransformer
from tests.lvt.test_config import CONFIGS
from tests.lvt.test_generate import STRIDES, random_model
from training.randomness import SampleNoise
from training.recipe import Step
from videodata.errors import UserError

CLASSES = {"CLASS_NUM": 3, "CLASS_DROPOUT": 0.5, "CLASSES": ["a", "b", "c"]}


def sampled(model, clip, labels, n_prime=2, **options):
    """Continuations of the same random codes, one per label."""
    codes = torch.randint(11, (1, 2, *clip), generator=torch.Generator().manual_seed(2)).repeat(len(labels), 1, 1, 1, 1)
    classes = torch.tensor(labels)
    return generate_codes(model, codes, n_prime, class_idx=classes, seeds=range(len(labels)), **options)


@pytest.mark.parametrize("name", STRIDES)
def test_guidance_1_is_the_plain_sampler(name):
    """The same codes, and the same work: no second pass without a class."""
    model, clip = random_model(name, **CLASSES)
    passes = []
    model.encoder.register_forward_hook(lambda module, given, made: passes.append(len(made)))
    plain = sampled(model, clip, [0, 2])
    assert max(passes) == 2
    assert torch.equal(sampled(model, clip, [0, 2], guidance=1.0), plain)
    guided = sampled(model, clip, [0, 2], guidance=4.0)
    assert max(passes) == 4 and not torch.equal(guided, plain)


@pytest.mark.parametrize("name", STRIDES)
def test_guidance_leads_from_no_class_to_the_class(name):
    """Greedy codes are the maxima of l0 + g (l1 - l0), with the logits of the whole clip; 0 forgets the class."""
    model, clip = random_model(name, **CLASSES)
    made = sampled(model, clip, [0, 2], greedy=True, guidance=3.0)
    without = model.clip_logits(made, torch.full((2,), 3))
    led = without + 3.0 * (model.clip_logits(made, torch.tensor([0, 2])) - without)
    assert (led.argmax(2) == made)[:, :, 2:].all()
    codes = made.clone()
    assert torch.equal(
        sampled(model, clip, [0, 2], greedy=True, guidance=0.0), sampled(model, clip, [3, 3], greedy=True)
    )
    nothing_said = generate_codes(model, codes, 2, seeds=[0, 1])
    assert torch.equal(nothing_said, generate_codes(model, codes, 2, seeds=[0, 1], class_idx=torch.tensor([3, 3])))


def test_guidance_needs_a_model_that_knows_no_class():
    """A published class-conditional model has no row for it, and its weights keep their shapes."""
    model, clip = random_model("spatial", CLASS_NUM=3)
    assert model.encoder.class_embedding.weight.shape[0] == 3
    with pytest.raises(UserError, match="CLASS_DROPOUT"):
        sampled(model, clip, [0], guidance=2.0)
    with pytest.raises(UserError, match="classes must be 0 .. 2"):
        sampled(model, clip, [3])
    plain, _ = random_model("spatial")
    with pytest.raises(UserError, match="needs a class"):
        generate_codes(plain, torch.zeros(1, 2, *clip, dtype=torch.int64), 2, guidance=2.0)


def test_labels_are_dropped_in_training_as_often_as_asked():
    """Each sample loses its label by its own random number; videos without a label never have one."""
    node = {**CLASSES, "CLASS_DROPOUT": 0.25}
    config = configuration.load_config(CONFIGS / "VT_tiny.yaml")
    small = {"NV": 11, "D": 24, "DA": 8, "DE": 12, "STRIDE": [4, 1, 1], "N_PRIME": 1, "KERNEL": [3, 1, 1]}
    blocks = {"BLOCKS_E": [[1, 2, 2]], "BLOCKS_D": [[1, 2, 2]], "N_HEAD_E": [2], "N_HEAD_D": [2]}
    configuration.override(config, configuration.nested("MODEL.AUTOREGRESSIVE.VT", {**small, **blocks, **node}), "test")
    recipe = TransformerRecipe(VideoTransformer(config), config)
    seen = []
    recipe.networks["transformer"].encoder.register_forward_pre_hook(lambda module, given: seen.append(given[2]))
    batch = {"codes": torch.zeros(400, 2, 4, 2, 2, dtype=torch.int16), "class_index": torch.arange(400) % 2}
    batch["class_index"][:100] = -1
    step = Step(0, 1, SampleNoise(0, range(400)), torch.device("cpu"))
    next(recipe.losses(batch, step, recipe.networks))
    labels = seen[0].view(400, -1)
    assert (labels == labels[:, :1]).all(), "the slices of a clip have one label"
    assert (labels[:100] == 3).all()
    kept = labels[100:, 0] != 3
    assert torch.equal(labels[100:, 0][kept], batch["class_index"][100:][kept]) and 0.65 < kept.float().mean() < 0.85


def test_videos_without_a_label_need_a_model_that_can_do_without():
    """They are "no class" to it; a model that always had a class refuses them."""
    strict, tolerant = random_model("spatial", CLASS_NUM=3)[0].config, random_model("spatial", **CLASSES)[0].config
    assert known_classes(tolerant, torch.tensor([-1, 2])).tolist() == [3, 2]
    with pytest.raises(UserError, match="CLASS_DROPOUT"):
        known_classes(strict, torch.tensor([-1, 2]))


def test_a_training_names_its_classes(tmp_path):
    """CLASS_NUM -1 counts the labels of the codes; what has no label is refused."""
    codes = torch.zeros(3, 4, 2, 2, 2, dtype=torch.int64).numpy()
    write_codes(tmp_path / "some" / "codes.npy", [("x", "b", 4), ("y", "a", 4), ("z", "b", 4)], codes.__getitem__, 11)
    write_codes(tmp_path / "none" / "codes.npy", [("x", None, 4)], codes.__getitem__, 11)
    keys = ["MODEL.AUTOREGRESSIVE.VT.CLASS_NUM", "-1", "DATASETS.TRAIN"]
    config = configuration.load_config(CONFIGS / "VT_tiny.yaml", [*keys, f"('{tmp_path}/some',)"])
    name_classes(config)
    node = config["MODEL"]["AUTOREGRESSIVE"]["VT"]
    assert (node["CLASS_NUM"], node["CLASSES"]) == (2, ["a", "b"])
    with pytest.raises(UserError, match="no video of DATASETS.TRAIN has a class"):
        name_classes(configuration.load_config(CONFIGS / "VT_tiny.yaml", [*keys, f"('{tmp_path}/none',)"]))


def test_runs_of_before_name_their_classes_elsewhere(tmp_path):
    """config.yaml of older runs lists them under model.CLASSES alone."""
    (tmp_path / "config.yaml").write_text(
        "MODEL: {META_ARCHITECTURE: VideoTransformerModel, AUTOREGRESSIVE: {VT: {CLASS_NUM: 2}}}\n"
        "model: {CLASSES: ['07', '1']}\n"
    )
    config = configuration.load_config(tmp_path / "config.yaml")
    assert config["MODEL"]["AUTOREGRESSIVE"]["VT"]["CLASSES"] == ["07", "1"]


def test_each_clip_is_asked_for_its_own_class():
    """Scores take the labels of the batch, in the numbers of the model."""
    from evaluation.subject import Batch

    model, _ = random_model("spatial", **CLASSES)
    vqvae = build_vqvae(configuration.load_config(CONFIGS / "VQVAE_tiny.yaml"))
    subject = Continuations(model, vqvae_tokenizer(vqvae), 2)
    batch = Batch(torch.zeros(3, 3, 4, 8, 8), [0, 1, 2], 0, 0, ["c", "a", None])
    assert subject.classes == ("a", "b", "c")
    assert subject.classes_of(batch, torch.device("cpu")).tolist() == [2, 0, 3]
    with pytest.raises(UserError, match="'x' is none of the 3 classes"):
        subject.classes_of(Batch(batch.clips, [0], 0, 0, ["x"]), torch.device("cpu"))
