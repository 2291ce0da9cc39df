"""Both recipes keep what every model promises, and train what they should."""

import pytest
import torch
from torch.utils.data import TensorDataset

from lvt import config as configuration
from lvt.codes import CodesFile, CodeWindows, write_codes
from lvt.files import build_transformer, build_vqvae
from lvt.subscale import slice_frames
from lvt.train import TransformerRecipe, VQVAERecipe
from tests.contract import ModelContract
from tests.lvt.test_config import CONFIGS
from training.randomness import SampleNoise
from training.recipe import Step
from videodata.clips import open_clips
from videodata.errors import UserError

VQVAE_SIZES = {
    "MODEL.ENCODER": {"NF": 16, "RES_CHANNELS": 8}, "MODEL.GENERATOR": {"IN_CHANNELS": 16, "NF": 16, "RES_CHANNELS": 8},
    "MODEL.CODEBOOK": {"SIZE": 16, "DIM": 16, "START_AFTER": 0.25, "RESTART_BELOW": 0.985},
    "SOLVER": {"MAX_ITER": 4},
}  # fmt: skip
VT_SIZES = {
    "MODEL.AUTOREGRESSIVE.VT": {
        "N_PRIME": 1, "NC": 2, "NV": 16, "D": 24, "DA": 8, "DE": 12, "KERNEL": [3, 3, 3], "STRIDE": [2, 2, 2],
        "N_HEAD_E": [2], "N_HEAD_D": [2], "BLOCKS_E": [[2, 2, 2]], "BLOCKS_D": [[2, 2, 2]],
    },
    "SOLVER": {"SLICES_PER_CLIP": 2, "PRECISION": "fp32"},
}  # fmt: skip


def tiny(name, changes, **more):
    config = configuration.load_config(CONFIGS / name)
    for key, value in [*changes.items(), *more.items()]:
        configuration.override(config, configuration.nested(key, value), "the test")
    torch.manual_seed(0)
    return config


class TestVQVAE(ModelContract):
    """The contract for the VQ-VAE, codebooks that start late, from the data, and restart unused codes included."""

    tolerance = 2e-5  # Adam scales up the rounding errors of small gradients

    def build_recipe(self, **overrides):
        config = tiny("VQVAE_tiny.yaml", VQVAE_SIZES, **overrides)
        return VQVAERecipe(build_vqvae(config), config)

    def dataset(self):
        return open_clips("shapes:6", frames=1, size=16, windows="first", dtype="uint8")  # no latent between two codes


def write_random_codes(path):
    """A file of codes: 4 clips of 6 frames."""
    codes = torch.randint(16, (4, 6, 2, 4, 4), generator=torch.Generator().manual_seed(0)).numpy()
    write_codes(path, [(str(i), None, 6) for i in range(4)], codes.__getitem__, 16)


class TestTransformer(ModelContract):
    """The contract for the transformer."""

    checkpointing_override = {"MODEL.GRADIENT_CHECKPOINTING": True}

    @pytest.fixture(autouse=True)
    def codes(self, tmp_path_factory):
        cls = type(self)
        if not hasattr(cls, "path"):
            cls.path = tmp_path_factory.mktemp("codes") / "codes.npy"
            write_random_codes(cls.path)

    def build_recipe(self, **overrides):
        config = tiny("VT_tiny.yaml", VT_SIZES, **overrides)
        return TransformerRecipe(build_transformer(config), config)

    def dataset(self):
        return CodeWindows(CodesFile(self.path), 4, random=True)


def transformer_recipe(**overrides):
    config = tiny("VT_tiny.yaml", VT_SIZES, **overrides)
    return TransformerRecipe(build_transformer(config), config)


@pytest.mark.parametrize(("stride", "n_prime", "expected"), [([4, 1, 1], 1, {1, 2, 3}), ([2, 2, 2], 1, set(range(8)))])
def test_slices_are_different_and_have_something_to_predict(stride, n_prime, expected):
    """A clip's slices are drawn without repetition from those that are not given whole; -1 takes all of them."""
    sizes = {"MODEL.AUTOREGRESSIVE.VT.STRIDE": stride, "MODEL.AUTOREGRESSIVE.VT.N_PRIME": n_prime}
    step = Step(0, 1, SampleNoise(0, range(50)), torch.device("cpu"))
    some = transformer_recipe(**sizes).choose_slices((4, 4, 4), step)
    assert set(some.flatten().tolist()) == expected
    assert all(len(set(row.tolist())) == 2 for row in some)
    everything = transformer_recipe(**sizes, **{"SOLVER.SLICES_PER_CLIP": -1}).choose_slices((4, 4, 4), step)
    assert all(set(row.tolist()) == expected for row in everything)
    assert all((slice_frames(row, (4, 4, 4), tuple(stride)) >= n_prime).flatten(1).any(1).all() for row in some)


def test_numbers_of_slices_and_frames_that_are_none_are_refused():
    with pytest.raises(UserError, match="SLICES_PER_CLIP must be at least 1, or -1 for all"):
        transformer_recipe(**{"SOLVER.SLICES_PER_CLIP": 0})
    with pytest.raises(UserError, match="N_PRIME must not be negative"):
        transformer_recipe(**{"MODEL.AUTOREGRESSIVE.VT.N_PRIME": -1})


def test_training_on_all_slices_is_the_likelihood():
    """With all slices trained and nothing primed, the loss in bits is what the evaluation measures."""
    recipe = transformer_recipe(**{"SOLVER.SLICES_PER_CLIP": -1, "MODEL.AUTOREGRESSIVE.VT.N_PRIME": 0})
    batch = {"codes": torch.randint(16, (3, 2, 4, 4, 4)).short(), "class_index": torch.full((3,), -1)}
    step = Step(0, 1, SampleNoise(0, range(3)), torch.device("cpu"))
    with torch.no_grad():
        trained = next(recipe.losses(batch, step, recipe.networks)).terms["bits_per_code"]
        measured = recipe.evaluate(batch, step, recipe.networks)
    torch.testing.assert_close(measured["bits_per_code"].mean(), trained.double(), rtol=1e-5, atol=1e-5)
    assert measured["bits_per_code"].shape == (3,)
    torch.testing.assert_close(measured["bits_per_subpixel"], measured["bits_per_code"] * 2 / 48)


def test_the_published_evaluation_is_reproduced(load_fixture):
    """Bits per code over the codes after the first N_PRIME frames."""
    from lvt.transformer import VideoTransformer, bits_per_code, clip_nats

    for name in ("vt_dsf", "vt_dss", "vt_dst", "vt_dsf_nc1_sharep", "vt_share_embeddings", "vt_class"):
        fixture = load_fixture(name)
        model = VideoTransformer(fixture.config["VT"]).eval()
        model.load_state_dict(fixture.below("state/"))
        nats, count = clip_nats(model, fixture["in/codes"], model.config.n_prime, fixture.get("in/class_idx"))
        assert count * len(nats) == fixture["out/n_codes_counted"].item()
        torch.testing.assert_close(
            bits_per_code(nats.mean(), count)[None], fixture["out/bits_per_dim"], atol=1e-5, rtol=0
        )


def test_a_fresh_codebook_learns_and_its_codes_are_used():
    """With the default recipe, a few steps lower the error and most codes stay in use."""
    sizes = {**VQVAE_SIZES, "MODEL.CODEBOOK": {"SIZE": 16, "DIM": 16, "RESTART_BELOW": 0.5}}
    config = tiny("VQVAE_tiny.yaml", sizes, **{"SOLVER.LR_SCHEDULER_NAME": "Identity", "SOLVER.MAX_ITER": 100})
    recipe = VQVAERecipe(build_vqvae(config), config)
    data = TensorDataset(torch.stack([open_clips("shapes:8", frames=1, size=16, dtype="uint8")[i] for i in range(8)]))
    batch = torch.stack([data[i][0] for i in range(8)])
    before = recipe.evaluate(batch, None, recipe.networks)
    for number in range(100):
        step = Step(number, 100, SampleNoise(0, range(8)), torch.device("cpu"))
        losses = next(recipe.losses(batch, step, recipe.networks))
        recipe.optimizers["vqvae"].zero_grad()
        losses.total.backward()
        recipe.optimizers["vqvae"].step()
    recipe.networks["vqvae"].eval()
    after = recipe.evaluate(batch, None, recipe.networks)
    assert after["mse"].mean() < 0.5 * before["mse"].mean()
    assert recipe.summarize({"codes": after["codes"].sum(0)})["code_usage"] > 0.5
