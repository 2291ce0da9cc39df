"""The transformer learns from the codes of any tokenizer: those of a VQGAN and of a latent-diffusion VQGAN."""

import math
import shutil

import numpy as np
import pytest
import torch

from lvt import config as configuration
from lvt.codes import CodesFile
from lvt.files import build_transformer, load_configured
from lvt.generate import generate_codes
from lvt.train import build_recipe, codebooks_of, train_network
from tests.lvt.test_config import CONFIGS
from training.checkpoint import load_checkpoint
from training.state import weights_digest
from videodata.pixels import to_float
from videodata.shapes import Shapes
from vqgan import VQGAN, LDMVQModel
from vqgan.project import Projection, project

CODES, FRAMES, SIDE = 16, 4, 16
DDCONFIG = {"z_channels": 4, "resolution": 16, "ch": 32, "ch_mult": (1, 1, 1), "num_res_blocks": 1}
TOKENIZERS = {
    "vqgan": lambda: VQGAN((8, 16, 16), 4, CODES, 4),
    "ldm": lambda: LDMVQModel({**DDCONFIG, "attn_resolutions": ()}, CODES, 4),
}
STEPS = 120
VQVAE_WEIGHTS = ("ENCODER_WEIGHTS", "GENERATOR_WEIGHTS", "CODEBOOK_WEIGHTS")


@pytest.fixture(scope="module", params=TOKENIZERS)
def tokenizer(request):
    """An autoencoder whose codebook lies among the latents of the shapes."""
    torch.manual_seed(0)
    model = TOKENIZERS[request.param]().eval()
    shapes = Shapes(4, frames=FRAMES, size=SIDE)
    frames = torch.cat([to_float(shapes.read(video)).movedim(1, 0) for video in range(4)])
    with torch.no_grad():
        latents = model.quantizer.project(model.latents(frames))
    model.quantizer.start(latents.flatten(0, -2), tokens=64)
    return model


@pytest.fixture(scope="module")
def codes(tokenizer, tmp_path_factory):
    """The projected codes of 64 videos to train on and of 8 others to evaluate on."""
    folder, source = tmp_path_factory.mktemp("codes"), Shapes(72, frames=FRAMES, size=SIDE)
    for name, videos in (("train", list(range(64))), ("val", list(range(64, 72)))):
        project(Projection(tokenizer, source, videos, (SIDE, SIDE), 1, 1, {"model": "tokenizer"}), folder, name)
    return folder


def lvt_config(codes, output, steps=STEPS):
    """A tiny transformer over one codebook; frames attend to the frames before them."""
    transformer = {
        "NC": 1, "NV": CODES, "D": 32, "DA": 8, "DE": 16, "KERNEL": [3, 1, 1], "STRIDE": [FRAMES, 1, 1],
        "N_HEAD_E": [2], "N_HEAD_D": [2], "BLOCKS_E": [[1, 4, 4]], "BLOCKS_D": [[1, 4, 4]], "N_PRIME": 1,
    }  # fmt: skip
    config = configuration.load_config(CONFIGS / "VT_tiny.yaml")
    changes = {
        "MODEL": {"AUTOREGRESSIVE": {"VT": transformer}, "DEVICE": "cpu"},
        "INPUT": {"N_FRAMES_PER_VIDEO_TRAIN": FRAMES, "N_FRAMES_PER_VIDEO_TEST": FRAMES, "SIZE": SIDE},
        "DATASETS": {"TRAIN": [str(codes / "train.npy")], "TEST": [str(codes / "val.npy")]},
        "SOLVER": {"MAX_ITER": steps, "IMS_PER_BATCH": 8, "LR_G": 3e-3, "WARMUP_ITERS": 5, "EMA": 0.0,
                   "LR_SCHEDULER_NAME": "Identity"},
        "TEST": {"EVALUATORS": "BitsEvaluator", "EVAL_PERIOD": steps},
        "OUTPUT_DIR": str(output), "VIS_PERIOD": steps + 1,
    }  # fmt: skip
    configuration.override(config, changes, "the test")
    return config


def code_entropy(path):
    """Bits per code of a model that knows only how often each code occurs."""
    share = np.bincount(np.load(path).ravel(), minlength=CODES) / np.load(path).size
    return -sum(p * math.log2(p) for p in share if p > 0)


def test_a_transformer_learns_the_codes_and_its_samples_decode(tokenizer, codes, tmp_path):
    """Bits per code of other videos fall below the entropy of the codes; a continuation decodes to frames."""
    config = lvt_config(codes, tmp_path)
    (results,) = train_network(config).values()
    bits = results["likelihood"]["bits_per_dim"]
    assert CodesFile(codes / "val.npy").size == CODES
    assert bits < code_entropy(codes / "val.npy") < math.log2(CODES)

    given = torch.from_numpy(np.load(codes / "val.npy")[:2].astype(np.int64)).transpose(1, 2)  # (B, 1, T, h, w)
    clips = generate_codes(load_configured(config).eval(), given, n_prime=1, seeds=[0, 1])
    assert torch.equal(clips[:, :, :1], given[:, :, :1])
    with torch.no_grad():
        frames = tokenizer.decode_indices(clips[0, 0])
    assert frames.shape == (FRAMES, 3, SIDE, SIDE) and torch.isfinite(frames).all()


def test_training_on_projected_codes_resumes_bit_exactly(codes, tmp_path):
    """A run that stops half-way and goes on ends with the weights of a straight run."""
    ends = []
    for name, stops in (("straight", (6,)), ("resumed", (3, 6))):
        for stop in stops:
            train_network(lvt_config(codes, tmp_path / name, steps=stop), resume=stop == 6 and len(stops) > 1)
        ends.append(weights_digest(load_checkpoint(tmp_path / name)["networks"]))
    assert ends[0] == ends[1]


def test_tables_start_from_the_codebook_of_the_tokenizer(tokenizer, codes, tmp_path, caplog):
    """Not from that of the VQ-VAE which the configuration names, and which need not be there."""
    config = lvt_config(codes, tmp_path)
    (book,) = codebooks_of(config, build_transformer(config))
    assert torch.equal(book, tokenizer.quantizer.codebook) and not caplog.messages


def test_tables_start_from_random_vectors_without_a_codebook_that_fits(codes, tmp_path, caplog):
    """A line says why: of other codes, or neither beside the codes nor in the VQ-VAE's run, which is not there."""
    alone = tmp_path / "codes"
    shutil.copytree(codes, alone)
    config = lvt_config(alone, tmp_path)
    np.save(alone / "codebook.npy", np.zeros((CODES + 1, 4), np.float32))
    assert codebooks_of(config, build_transformer(config)) is None
    (alone / "codebook.npy").unlink()
    config["TEST"]["VT_SAMPLER"]["VQ_VAE"].update(dict.fromkeys(VQVAE_WEIGHTS, "runs/nowhere"))
    assert build_recipe(config).tokenizer is None
    other, missing = caplog.messages
    assert "codebook.npy is not the one of these codes; taps is taken" in other
    assert "VQ_VAE cannot be read (runs/nowhere: no such weights" in missing and "taps is taken" in missing
