"""Every tokenizer of the project keeps the one interface, and is found by its file."""

import pytest
import torch

from scripts import train_flow_autoencoder, train_lvt, train_tokenizer3d, train_vqgan, train_vvae
from tests.conftest import ROOT
from tests.tokenizer3d.tiny import tiny
from tests.training.tiny_tokenizers import CODES, LDM, OURS, SIDE, STORED, store_tokenizer
from training.tokenizer import (
    array_shape,
    decode_array,
    latent_frames,
    open_tokenizer,
    run_of_tokenizer,
    tokenizer_digest,
    tokenizer_name,
    video_frames,
)
from videodata.errors import UserError
from vqgan import VQGAN
from vqgan.files import model_config, save_model

FACTS = {  # kind, size, (t, h, w, c) of a clip of SIDE x SIDE and of 8 frames, of 9 for a causal one with a time factor
    "vqgan": ("codes", CODES, (8, 4, 4, 1)),
    "ldm": ("codes", CODES, (8, 8, 8, 1)),
    "lvt-vqvae": ("codes", CODES, (8, 4, 4, 2)),
    "vvae": ("latents", None, (2, 2, 2, 16)),
    "ours": ("latents", None, (8, 4, 4, 4)),
    "kl": ("latents", None, (3, 4, 4, 4)),
    "fsq": ("codes", 48, (3, 4, 4, 1)),
    "identity": ("latents", None, (8, 16, 16, 3)),
}
FRAMES = dict.fromkeys(("kl", "fsq"), 9)


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """What opens each tokenizer."""
    return {kind: store_tokenizer(kind, tmp_path_factory.mktemp(kind)) for kind in STORED}


def clips(batch=2, frames=8):
    return 2 * torch.rand(batch, 3, frames, SIDE, SIDE, generator=torch.Generator().manual_seed(0)) - 1


@pytest.mark.parametrize("kind", FACTS)
def test_every_tokenizer_keeps_the_interface(stored, kind):
    """Arrays of the promised shape, type and range; clips of the promised shape come back, in [-1, 1]."""
    tokenizer = open_tokenizer(stored[kind])
    what, size, shape = FACTS[kind]
    frames = FRAMES.get(kind, 8)
    array = tokenizer.encode(clips(frames=frames))
    assert (tokenizer.kind, tokenizer.size) == (what, size)
    assert array.shape[1:] == shape == tokenizer.shape(frames, SIDE, SIDE) and shape[3] == tokenizer.width
    assert array.dtype == (torch.int64 if what == "codes" else torch.float32)
    if what == "codes":
        assert int(array.min()) >= 0 and int(array.max()) < size and len(array.unique()) > 1
    decoded = tokenizer.decode(array, frames, SIDE, SIDE)
    assert decoded.shape == (2, 3, frames, SIDE, SIDE) and decoded.dtype == torch.float32 and decoded.abs().max() <= 1
    assert torch.equal(decode_array(tokenizer, array), decoded)
    assert not tokenizer.module.training and not any(weight.requires_grad for weight in tokenizer.module.parameters())


@pytest.mark.parametrize("kind", FACTS)
def test_clips_do_not_depend_on_their_batch(stored, kind):
    tokenizer, whole = open_tokenizer(stored[kind]), clips(frames=FRAMES.get(kind, 8))
    together, alone = tokenizer.encode(whole), tokenizer.encode(whole[1:])
    torch.testing.assert_close(together[1:], alone, rtol=0, atol=1e-4)
    torch.testing.assert_close(
        decode_array(tokenizer, together)[1:], decode_array(tokenizer, together[1:]), rtol=0, atol=1e-4
    )


def test_the_pixels_of_identity_come_back(stored):
    tokenizer = open_tokenizer("identity")
    assert torch.equal(decode_array(tokenizer, tokenizer.encode(clips())), clips())


@pytest.mark.parametrize("kind", ["vqgan", "ldm"])
def test_a_vqgan_gives_latents_where_they_are_asked_for(stored, kind):
    """Not quantised; decoding quantises them, and gives what the codes give."""
    codes, latents = open_tokenizer(stored[kind]), open_tokenizer(stored[kind], "latents")
    array = latents.encode(clips())
    assert latents.kind == "latents" and latents.size is None and array.dtype == torch.float32
    assert array.unique().numel() > CODES * latents.width
    torch.testing.assert_close(decode_array(latents, array), decode_array(codes, codes.encode(clips())))


@pytest.mark.parametrize(("quantizer", "width"), [("ema", 2), ("fsq", 1)])
def test_a_vqgan_of_several_stages_or_of_a_grid(tmp_path, quantizer, width):
    """A codebook for each index of a position; the decoded clips are the model's own reconstructions."""
    torch.manual_seed(0)
    options = {"quantizer": quantizer, "num_quantizers": width} | ({"fsq_levels": (3, 4)} if quantizer == "fsq" else {})
    model = VQGAN((8, 16), 4, CODES, 2, **options).eval()
    save_model(tmp_path / "model.pt", model, config={"model": model_config(model)})
    tokenizer = open_tokenizer(tmp_path / "model.pt")
    array = tokenizer.encode(clips())
    assert (tokenizer.width, tokenizer.size) == (width, CODES) and array.shape == (2, 8, 8, 8, width)
    with torch.no_grad():
        frames = model.decode(model.encode(clips().transpose(1, 2).flatten(0, 1))[0])
    expected = frames.unflatten(0, (2, 8)).transpose(1, 2)
    torch.testing.assert_close(decode_array(tokenizer, array), expected.clamp(-1, 1))
    latents = open_tokenizer(tmp_path / "model.pt", "latents")
    torch.testing.assert_close(decode_array(latents, latents.encode(clips())), expected.clamp(-1, 1))


def test_what_a_tokenizer_does_not_make_is_refused(stored):
    with pytest.raises(UserError, match="makes latents, and codes are asked for"):
        open_tokenizer(stored["ours"], "codes")
    with pytest.raises(UserError, match="makes codes, and latents are asked for"):
        open_tokenizer(stored["lvt-vqvae"], "latents")


def test_settings_choose_patches(stored):
    """Each quarter of a frame goes through the network by itself; the codes lie in one map."""
    tokenizer = open_tokenizer(f"vqgan:{stored['vqgan']},rows=2,columns=2")
    whole = clips()
    array = tokenizer.encode(whole)
    assert array.shape == (2, *FACTS["vqgan"][2])
    quarter = open_tokenizer(stored["vqgan"]).encode(whole[..., :8, 8:])
    assert torch.equal(array[:, :, :2, 2:], quarter)


def test_files_that_do_not_say_what_they_are_take_a_type(stored, tmp_path):
    """A published file by its type and settings; without them one line says what is missing."""
    model = open_tokenizer(stored["ldm"]).module
    torch.save({"state_dict": model.state_dict()}, tmp_path / "published.ckpt")
    named = {"type": "ldm-vq", "path": str(tmp_path / "published.ckpt"), "ddconfig": LDM, "n_embed": CODES}
    tokenizer = open_tokenizer({**named, "embed_dim": 2})
    assert tokenizer_digest(tokenizer) == tokenizer_digest(open_tokenizer(stored["ldm"]))
    with pytest.raises(UserError, match="does not say which tokenizer it is; name it TYPE:"):
        open_tokenizer(tmp_path / "published.ckpt")
    with pytest.raises(UserError, match="needs its config"):
        open_tokenizer(f"ldm-vq:{tmp_path / 'published.ckpt'}")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "pointer of Git LFS"),
        (b"<!doctype html><html>", "web page"), (b"", "is empty"), (b"\x40" + bytes(7) + b"{" * 9, "cannot be read"),
    ],
)  # fmt: skip
def test_files_that_were_not_downloaded_whole_say_so(tmp_path, content, said):
    """And not that they need a type, a file as well as a folder of save_pretrained."""
    (tmp_path / "model.safetensors").write_bytes(content)
    (tmp_path / "config.json").write_text("{}")
    for name in (tmp_path, tmp_path / "model.safetensors"):
        with pytest.raises(UserError, match=said):
            open_tokenizer(name)


def test_names_say_what_is_wrong_with_them(tmp_path):
    for name, message in {
        "nowhere": "no such tokenizer, nor trained model",
        "vqgn:nowhere": "'vqgn'; did you mean 'vqgan'",
        "vqgan:nowhere": "no such tokenizer; train it first",
        "lvt-vqvae:nowhere,confg=x": "'confg'; did you mean 'config'",
    }.items():
        with pytest.raises(UserError, match=message):
            open_tokenizer(name)


def test_a_name_reads_as_it_is_written(stored):
    for name in (stored["vqgan"], "identity", f"vqgan:{stored['vqgan']},columns=2,rows=2"):
        assert str(tokenizer_name(name)) == name
        assert tokenizer_name(tokenizer_name(name).to_dict()) == tokenizer_name(name)


def test_trained_models_of_weights_are_tokenizers_by_their_names():
    """The part that is one is found: of a transformer its VQ-VAE, of a RIVER its autoencoder."""
    for name, kind in (("lvt-digits", "codes"), ("river-digits", "latents")):
        tokenizer = open_tokenizer(name)
        digits = 2 * torch.rand(1, 3, 2, 32, 32) - 1
        assert tokenizer.kind == kind
        assert decode_array(tokenizer, tokenizer.encode(digits)).shape == digits.shape


class Clock:
    """The times of a tokenizer."""

    def __init__(self, factor, causal):
        self.time_factor, self.causal = factor, causal


@pytest.mark.parametrize(
    ("factor", "causal", "frames"), [(1, True, (1, 2, 9)), (4, True, (1, 5, 17)), (4, False, (4, 8, 16))]
)
def test_frames_and_cells_of_time(factor, causal, frames):
    clock = Clock(factor, causal)
    for count in (0, *frames):
        assert video_frames(clock, latent_frames(clock, count)) == count


@pytest.mark.parametrize(
    ("factor", "causal", "frames", "near"), [(4, True, 16, "13 or 17"), (4, False, 17, "16 or 20"), (4, False, 3, "4$")]
)
def test_other_numbers_of_frames_are_refused_with_the_nearest(factor, causal, frames, near):
    with pytest.raises(UserError, match=f"the nearest are {near}"):
        latent_frames(Clock(factor, causal), frames)


def test_sizes_that_do_not_fit_are_refused(stored):
    for kind, size in (("vqgan", 18), ("vvae", 20)):
        with pytest.raises(UserError, match="multiples of"):
            array_shape(open_tokenizer(stored[kind]), 8, size, size)


def test_the_settings_of_a_mapping_are_those_of_the_type(stored):
    tokenizer = open_tokenizer({"type": "ours", "path": stored["ours"], **OURS})
    assert tokenizer_digest(tokenizer) == tokenizer_digest(open_tokenizer(stored["ours"]))


@pytest.mark.parametrize(("codebooks", "size"), [(1, 48), (2, 16), (3, 4)])
def test_the_channels_of_fsq_are_dealt_to_codebooks(stored, codebooks, size):
    """The same clip comes back however many there are; a code that an uneven deal does not have becomes its last."""
    one = open_tokenizer(stored["fsq"])
    tokenizer = open_tokenizer(f"tokenizer3d:{stored['fsq']},codebooks={codebooks}")
    whole = clips(frames=9)
    array = tokenizer.encode(whole)
    assert (tokenizer.width, tokenizer.size) == (codebooks, size) and array.shape == (2, 3, 4, 4, codebooks)
    assert torch.equal(decode_array(tokenizer, array), decode_array(one, one.encode(whole)))
    codes = one.module.lookup(one.encode(whole)[..., 0]).movedim(1, -1)  # (B, t, h, w, channels)
    found = [vectors[array[..., number]] for number, vectors in enumerate(tokenizer.vectors)]
    torch.testing.assert_close(torch.cat(found, -1), codes)
    last = torch.full_like(array, size - 1)
    assert torch.equal(decode_array(tokenizer, last), decode_array(one, torch.full((2, 3, 4, 4, 1), one.size - 1)))


@pytest.mark.parametrize(
    ("settings", "width", "size"),
    [
        ({"regularizer": "ema", "regularizer_options": {"codebook_size": 9, "num_quantizers": 2}}, 2, 9),
        ({"regularizer": "ema", "regularizer_options": {"codebook_size": 9}}, 1, 9),
        ({"regularizer": "fsq", "z_channels": 2, "levels": (3, 3), "regularizer_options": {"num_quantizers": 2}}, 2, 9),
    ],
)
def test_quantisers_of_several_stages_have_a_codebook_for_each(tmp_path, settings, width, size):
    tiny("444", **settings).save_pretrained(tmp_path / "model")
    tokenizer, whole = open_tokenizer(tmp_path / "model"), clips(frames=5)
    array = tokenizer.encode(whole)
    assert (tokenizer.width, tokenizer.size) == (width, size) and array.shape == (2, 2, 4, 4, width)
    expected = tokenizer.module(whole)[1].clamp(-1, 1)
    torch.testing.assert_close(decode_array(tokenizer, array), expected)
    assert tokenizer.vectors is None or [len(book) for book in tokenizer.vectors] == [size] * width
    with pytest.raises(UserError, match="no channels to deal out"):
        open_tokenizer(f"tokenizer3d:{tmp_path / 'model'},codebooks=3")


def test_a_causal_tokenizer_needs_no_later_frames(stored):
    for kind in ("kl", "fsq"):
        tokenizer, whole = open_tokenizer(stored[kind]), clips(frames=9)
        torch.testing.assert_close(tokenizer.encode(whole)[:, :2], tokenizer.encode(whole[:, :, :5]), rtol=0, atol=1e-5)


def test_published_files_of_the_3d_tokenizer_need_their_version(stored, tmp_path):
    model = open_tokenizer(stored["kl"]).module
    torch.save({"state_dict": model.state_dict()}, tmp_path / "published.ckpt")
    with pytest.raises(UserError, match="whether its weights are of version 1.0 or 1.1"):
        open_tokenizer(f"tokenizer3d:{tmp_path / 'published.ckpt'}")
    found = open_tokenizer(f"tokenizer3d:{tmp_path / 'published.ckpt'},version=1.0")
    assert torch.equal(found.encode(clips(frames=5)), open_tokenizer(stored["kl"]).encode(clips(frames=5)))


def test_a_published_file_of_vvae_needs_its_type(stored, tmp_path):
    model = open_tokenizer(stored["vvae"]).module
    model.save_checkpoint(tmp_path / "published.ckpt")
    found = open_tokenizer(f"vvae:{tmp_path / 'published.ckpt'}")
    torch.testing.assert_close(found.encode(clips()), open_tokenizer(stored["vvae"]).encode(clips()))
    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
    with pytest.raises(UserError, match="other.ckpt: "):
        open_tokenizer(f"vvae:{tmp_path / 'other.ckpt'}")


TINY = ["--steps", "1", "--batch_size", "2"]
PATCH = ["--patch_size", "32", "--num_patches_h", "1", "--num_patches_w", "1", "--perceptual_weight", "0"]
TRAININGS = {  # type -> script and its flags, the last of which takes the run folder
    "vqgan": (train_vqgan, ["--preset", "test", "--data_path", "digits:20,frames=4,size=32", *PATCH, *TINY,
                            "--gan_steps", "1", "--run_dir"]),
    "vvae": (train_vvae, ["--preset", "tiny", "--data", "digits:20,frames=8,size=16", *TINY, "data.frames=4",
                          "data.size=16", "optimization.image_steps=0", "--evaluate_batches", "1", "--run_dir"]),
    "tokenizer3d": (train_tokenizer3d, ["--preset", "tiny_fsq", "--data", "digits:20,frames=9,size=32", *TINY,
                                        "data.frames=5", "data.size=32", "--evaluate_batches", "1", "--run_dir"]),
    "lvt-vqvae": (train_lvt, ["--config-file", str(ROOT / "configs/lvt/VQVAE_tiny.yaml"), *TINY, "--data",
                              "digits:20,frames=16,size=32", "--run_dir"]),
    "ours": (train_flow_autoencoder, ["--config", str(ROOT / "configs/flow_pred/digits_river_tiny.yaml"), *TINY,
                                      "--data", "digits:20,frames=4,size=32", "--run-dir"]),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("kind", TRAININGS)
def test_the_run_folder_of_a_training_is_a_tokenizer(tmp_path, kind):
    """By its path alone, and it says what it was trained on."""
    script, flags = TRAININGS[kind]
    script.main([*flags, str(tmp_path / "run"), *(["--device", "cpu"] if kind != "vvae" else [])])
    frames = 5 if kind == "tokenizer3d" else 4
    tokenizer, whole = open_tokenizer(tmp_path / "run"), 2 * torch.rand(1, 3, frames, 32, 32) - 1
    assert tokenizer_name(tmp_path / "run").type == kind
    assert decode_array(tokenizer, tokenizer.encode(whole)).shape == whole.shape
    assert run_of_tokenizer(tmp_path / "run") == str(tmp_path / "run")
