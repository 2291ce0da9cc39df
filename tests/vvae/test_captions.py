"""Captions: made by a text encoder, kept in files, and the one line where there is none."""

import sys

import pytest
import torch

from scripts import vvae
from tests.vvae.conftest import make_tiny
from tests.vvae.test_files import smooth_clip
from vvae import load_text, save_text
from vvae.src.captions import CaptionCache
from vvae.src.errors import VVAEError
from vvae.src.latent_files import open_latents
from vvae.src.modules.t5 import T5Embedder
from vvae.src.video_io import write_video


@pytest.fixture
def captioned():
    """A tiny text-guided model."""
    return make_tiny(
        ddconfig={
            "z_channels": 4, "ch": 32, "ch_mult": [1, 1, 1, 1], "num_res_blocks": 1, "attn_resolutions": [27, 54],
        },
        ppconfig={"ch": 4, "hidden_channel": 32, "attn_temporal_factor": [2, 4]},
        caption_guide=True,
        t5_model_max_length=10,
    )  # fmt: skip


def save_text_encoder(folder, width: int = 1024) -> None:
    """A T5 encoder with random weights, small but for its width, and a tokenizer of three words."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    pytest.importorskip("ftfy", reason="ftfy is not installed")
    pytest.importorskip("bs4", reason="beautifulsoup4 is not installed")
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = {word: index for index, word in enumerate(("<pad>", "</s>", "<unk>", "a", "red", "car"))}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)
    config = transformers.T5Config(vocab_size=8, d_model=width, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    transformers.T5EncoderModel(config).save_pretrained(folder)


def test_the_text_encoder_embeds_cleaned_captions(captioned, tmp_path):
    """Tokens, mask and padding are T5's; markup and capitals do not matter; the model takes the result."""
    save_text_encoder(tmp_path / "t5")
    captioned.text_encoder = str(tmp_path / "t5")
    embeddings, mask = captioned.encode_text(["A <b>red</b> car!", "a red car", ""])
    assert embeddings.shape == (3, 10, 1024) and mask.sum(dim=1).tolist() == [5, 4, 1]
    assert torch.equal(embeddings[0, :3], captioned.encode_text("a red car !")[0][0, :3])
    clip = torch.rand(1, 3, 4, 16, 16) * 2 - 1
    latent = captioned.encode(clip, embeddings[1:2], mask[1:2]).mode()
    assert not torch.equal(latent, captioned.encode(clip).mode())  # without a caption: the empty one
    assert torch.equal(captioned.encode(clip).mode(), captioned.encode(clip, embeddings[2:], mask[2:]).mode())
    with pytest.raises(VVAEError, match="gives 64 numbers per token, not 1024"):
        save_text_encoder(tmp_path / "narrow", width=64)
        T5Embedder(name=str(tmp_path / "narrow"))


def test_a_missing_text_encoder_is_one_line(captioned, monkeypatch, tmp_path):
    """Without transformers, or without its files, the error says what to install or where the files are."""
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(VVAEError, match="captions need the transformers package: pip install"):
        captioned.encode_text("a red car")
    monkeypatch.undo()
    pytest.importorskip("transformers", reason="transformers is not installed")
    with pytest.raises(VVAEError, match="cannot be loaded: .* Its files are at https://.*flan-t5-large; put them"):
        T5Embedder(name=str(tmp_path / "absent"), local_files_only=True)


def test_files_are_encoded_with_stored_embeddings(captioned, monkeypatch, tmp_path):
    """--text takes one stored caption, or a folder of them by the NAME.txt beside each video; no text encoder runs."""
    monkeypatch.setitem(sys.modules, "transformers", None)
    (tmp_path / "videos").mkdir()
    frames = smooth_clip(4, 16, 16)
    write_video(tmp_path / "videos" / "a.mp4", frames, 25)
    write_video(tmp_path / "videos" / "b.mp4", frames, 25)
    (tmp_path / "videos" / "a.txt").write_text("a red car\n")
    cache = CaptionCache(tmp_path / "texts")
    save_text(cache.path("a red car"), torch.ones(1, 3, 1024), torch.ones(1, 3))
    captioned.save_pretrained(tmp_path / "model")
    flags = ["--ckpt", str(tmp_path / "model"), "--device", "cpu"]
    with pytest.raises(Exception, match="1 of 2 files failed: captions without stored embeddings need the text enc"):
        vvae.main(["encode", str(tmp_path / "videos"), str(tmp_path / "out"), *flags, "--text", str(cache.folder)])
    one = str(cache.path("a red car"))
    vvae.main(["encode", str(tmp_path / "videos" / "b.mp4"), str(tmp_path / "b.npy"), *flags, "--text", one])
    stored = []
    for path in (tmp_path / "out" / "a.npy", tmp_path / "b.npy"):
        with open_latents(path) as (_, latents):
            stored.append(torch.stack([torch.tensor(frame) for frame in latents]))
    assert torch.equal(*stored)
    assert load_text(one)[0].shape == (1, 3, 1024)
    with pytest.raises(Exception, match="guided by captions: pass text_embeddings"):
        vvae.main(["encode", str(tmp_path / "videos" / "b.mp4"), str(tmp_path / "c.npy"), *flags])
