"""The feature network of JEDi: a narrow one against plain NumPy, the full one by its counts, its files and refusals."""

import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from evaluation import networks
from evaluation.networks import RandomFeatures, VJEPAFeatures, open_extractor
from evaluation.report import definition_of
from evaluation.set_distance import JEDi
from evaluation.vjepa import (
    HUGE,
    PACKED,
    VJEPA,
    Architecture,
    Encoder,
    Probe,
    find_vjepa,
    load_vjepa,
    pack,
    position_table,
    state_of,
)
from scripts import pack_vjepa
from videodata.errors import UserError

NARROW = Architecture(width=48, depth=2, heads=4, frames=4, side=32, classes=5)


def test_the_table_of_positions():
    """Values of the published file."""
    table = position_table(HUGE.width, HUGE.grid)
    assert table.shape == (1, 1568, 1280) and table.dtype == torch.float32
    assert table.double().sum().item() == pytest.approx(942925.3204, abs=1e-3)
    assert table[0, 0, :3].tolist() == [0, 0, 0]
    assert table[0, 197, [0, 1, 428]].tolist() == pytest.approx([0.84147098, 0.81797045, 0], abs=1e-7)
    assert table[0, 197, 856].item() == pytest.approx(math.sin(1), abs=1e-7)  # x = 1; the order is t, y, x


def test_the_full_network_has_the_published_sizes():
    """Counted without memory: 631.6 million of the encoder, 17 tensors of the probe."""
    with torch.device("meta"):
        encoder, probe = Encoder(), Probe()
    assert sum(parameter.numel() for parameter in encoder.parameters()) == 631_648_000
    tensors = probe.state_dict()
    assert len(tensors) == 17 and sum(tensor.numel() for tensor in tensors.values()) == 19_901_614
    assert tuple(tensors["pooler.cross_attention_block.xattn.kv.weight"].shape) == (2560, 1280)
    shapes = {name: tuple(tensor.shape) for name, tensor in encoder.state_dict().items()}
    assert shapes["pos_embed"] == (1, 1568, 1280) and shapes["patch_embed.proj.weight"] == (1280, 3, 2, 16, 16)
    assert shapes["blocks.31.attn.qkv.weight"] == (3840, 1280) and shapes["blocks.31.mlp.fc2.bias"] == (1280,)
    assert len(shapes) == 3 + 32 * 12 + 2


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The two published files, narrow: two encoders, wrapped names, what trainings leave in them."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("vjepa")
    states = []
    for network in (Encoder(NARROW), Encoder(NARROW), Probe(NARROW)):
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
        states.append(network.state_dict())
    target, online, probe = states
    target["pos_embed"] = target["pos_embed"] + 0.01  # the file's table counts
    wrapped = [{f"module.backbone.{name}": value for name, value in state.items()} for state in (target, online)]
    encoder = {"target_encoder": wrapped[0], "encoder": wrapped[1], "epoch": 300, "opt": {"state": {}, "groups": [1]}}
    torch.save(encoder, folder / "vith16.pth.tar")
    classifier = {f"module.{name}": value for name, value in probe.items()}
    torch.save({"classifier": classifier, "epoch": 20}, folder / "ssv2-probe.pth.tar")
    return folder


def paths(folder):
    return folder / "vith16.pth.tar", folder / "ssv2-probe.pth.tar"


def by_hand(state, clips):
    """Features (B, 48) of clips (B, 3, 4, 32, 32) in [-1, 1], in NumPy."""
    w = {name: value.double().numpy() for name, value in state.items()}

    def norm(x, name, eps):
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps)
        return x * w[f"{name}.weight"] + w[f"{name}.bias"]

    def linear(x, name):
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def mlp(x, name):
        hidden = linear(x, f"{name}.fc1")
        return linear(hidden * 0.5 * (1 + np.vectorize(math.erf)(hidden / 2**0.5)), f"{name}.fc2")

    def attend(query, key, value):  # (N, 48), (M, 48), (M, 48): four heads of twelve channels
        found = []
        for head in range(4):
            q, k, v = (x[:, 12 * head : 12 * head + 12] for x in (query, key, value))
            weights = np.exp(q @ k.T * 12**-0.5)
            found.append(weights / weights.sum(-1, keepdims=True) @ v)
        return np.concatenate(found, axis=1)

    features = []
    for clip in clips.double().numpy():
        mean, deviation = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
        pixels = ((clip + 1) / 2 - mean[:, None, None, None]) / deviation[:, None, None, None]
        kernel = w["encoder.patch_embed.proj.weight"].reshape(48, -1)
        patches = [
            pixels[:, 2 * t : 2 * t + 2, 16 * y : 16 * y + 16, 16 * x : 16 * x + 16].reshape(-1)
            for t in range(2) for y in range(2) for x in range(2)
        ]  # fmt: skip
        x = np.stack(patches) @ kernel.T + w["encoder.patch_embed.proj.bias"] + w["encoder.pos_embed"][0]
        for number in range(2):
            block = f"encoder.blocks.{number}"
            qkv = linear(norm(x, f"{block}.norm1", 1e-6), f"{block}.attn.qkv")
            x = x + linear(attend(*np.split(qkv, 3, axis=1)), f"{block}.attn.proj")
            x = x + mlp(norm(x, f"{block}.norm2", 1e-6), f"{block}.mlp")
        x, cross = norm(x, "encoder.norm", 1e-6), "pooler.cross_attention_block"
        query = w["pooler.query_tokens"][0]
        key, value = np.split(linear(norm(x, f"{cross}.norm1", 1e-5), f"{cross}.xattn.kv"), 2, axis=1)
        query = query + linear(attend(linear(query, f"{cross}.xattn.q"), key, value), f"{cross}.xattn.proj")
        features.append((query + mlp(norm(query, f"{cross}.norm2", 1e-5), f"{cross}.mlp"))[0])
    return np.stack(features)


def test_features_by_hand(files):
    """The averaged encoder, with the table of its file, then the pooler: the same as written out in NumPy."""
    network = load_vjepa(paths(files), NARROW)
    clips = torch.rand(2, 3, 4, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1
    with torch.no_grad():
        found = network(clips)
    stored = torch.load(paths(files)[0], weights_only=True)
    assert torch.equal(network.encoder.norm.weight, stored["target_encoder"]["module.backbone.norm.weight"])
    assert not network.training and not any(parameter.requires_grad for parameter in network.parameters())
    expected = by_hand(network.state_dict(), clips)
    assert found.numpy() == pytest.approx(expected, rel=1e-4, abs=1e-4 * np.abs(expected).max())


def test_other_sizes_have_an_interpolated_table():
    """Each channel of the table is resized trilinearly, to whole sizes; its own size leaves it alone."""
    encoder = Encoder(NARROW)
    assert encoder.positions((2, 2, 2)) is encoder.pos_embed
    found = encoder.positions((3, 2, 61))
    assert found.shape == (1, 3 * 2 * 61, 48)
    one = F.interpolate(encoder.pos_embed.reshape(2, 2, 2, 48)[None, None, ..., 5], (3, 2, 61), mode="trilinear")
    assert torch.allclose(found[0, :, 5], one.flatten(), rtol=0, atol=1e-6)
    assert encoder(torch.zeros(1, 3, 6, 32, 48)).shape == (1, 3 * 2 * 3, 48)
    for shape in ((1, 3, 3, 32, 32), (1, 3, 4, 40, 32), (1, 3, 0, 32, 32)):
        with pytest.raises(ValueError, match="even number of frames and sides that are multiples of 16"):
            encoder(torch.zeros(shape))


def test_packed_weights_are_the_same(files, tmp_path, monkeypatch):
    """In one file, without the classifier and what the training left; found by its name before the two others."""
    path = pack(*paths(files), tmp_path / "out", NARROW)
    assert path.name == PACKED and path.stat().st_size < paths(files)[0].stat().st_size
    states = [load_vjepa(source, NARROW).state_dict() for source in ((path,), paths(files))]
    assert states[0].keys() == states[1].keys() == load_file(path).keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert find_vjepa(path=tmp_path / "out") == find_vjepa(path=path) == path
    monkeypatch.setenv("VIDEOGEN_WEIGHTS", str(tmp_path / "out"))
    assert find_vjepa() == path and find_vjepa(path=files) == find_vjepa(path=paths(files)[0]) == paths(files)


def test_the_encoder_of_the_training_is_taken_where_no_average_is(files, tmp_path):
    encoder, probe = paths(files)
    content = torch.load(encoder, weights_only=True)
    del content["target_encoder"]
    torch.save(content, tmp_path / "online.pth.tar")
    found = state_of(tmp_path / "online.pth.tar", probe, NARROW)
    assert torch.equal(found["encoder.norm.bias"], content["encoder"]["module.backbone.norm.bias"])


def broken(encoder, probe, how):
    """One of the two files' contents without what it should hold."""
    if how == "no encoder":
        del encoder["encoder"], encoder["target_encoder"]
    elif how == "no classifier":
        del probe["classifier"]
    elif how == "a missing weight":
        del encoder["target_encoder"]["module.backbone.blocks.1.attn.qkv.weight"]
    elif how == "a weight too many":
        encoder["target_encoder"]["module.backbone.cls_token"] = torch.zeros(1)
    elif how == "another pooler":
        del probe["classifier"]["module.pooler.query_tokens"]


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("no encoder", "holds no target_encoder or encoder"),
        ("no classifier", "holds no classifier"),
        ("a missing weight", r"vith16.*missing: blocks.1.attn.qkv.weight"),
        ("a weight too many", "vith16.*unexpected: cls_token"),
        ("another pooler", r"ssv2-probe.*missing: pooler.query_tokens"),
    ],
)
def test_other_files_are_refused_in_one_line(files, tmp_path, how, message):
    """Nothing is loaded, and nothing packed."""
    contents = [torch.load(path, weights_only=True) for path in paths(files)]
    broken(*contents, how)
    for path, content in zip(paths(tmp_path), contents, strict=True):
        torch.save(content, path)
    with pytest.raises(UserError, match=message) as error:
        pack(*paths(tmp_path), tmp_path / "out", NARROW)
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


def test_missing_weights_are_one_line_and_random_ones_are_asked_for(monkeypatch, tmp_path):
    """File, address, size and folder; what stands in for them says so in its name."""
    for variable in ("HOME", "TORCH_HOME", "VIDEOGEN_WEIGHTS"):
        monkeypatch.setenv(variable, str(tmp_path))
    with pytest.raises(UserError) as error:
        open_extractor("vjepa")
    line = str(error.value)
    for part in ("vith16.pth.tar", "https://dl.fbaipublicfiles.com/jepa/vith16", "10000 MB", "leave out jedi"):
        assert part in line and "\n" not in line
    assert type(open_extractor("vjepa", allow_random=True)) is RandomFeatures


def test_the_command_packs_for_the_full_network(files, tmp_path):
    """Narrow files are none of V-JEPA's: one line, no file."""
    with pytest.raises(UserError, match="does not fit the model"):
        pack_vjepa.main([*map(str, paths(files)), "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


@pytest.fixture
def narrow(files, monkeypatch):
    """The extractor of JEDi with a narrow network in place of the published one."""
    monkeypatch.setattr(networks, "load_vjepa", lambda files: load_vjepa(files, NARROW))
    monkeypatch.setattr(networks, "HUGE", NARROW)
    monkeypatch.setattr(VJEPAFeatures, "dimensions", NARROW.width)
    return open_extractor("vjepa", files)


def test_jedi_of_clips(narrow, files, caplog):
    """Id, both estimates, files and licence; squares of any size are brought to that of the network."""
    clips = torch.rand(6, 3, 4, 40, 50, generator=torch.Generator().manual_seed(2)) * 2 - 1
    distance = JEDi(narrow, force=True, unequal=True)
    distance.update(clips, clips[:5] * 0.5)
    distance.caution(5, 4)
    plain, unbiased = distance.scores()
    assert plain.definition == "jedi-vjepa-h16-ssv2-4f-6x5" and plain.name == "JEDi" and plain.mean > unbiased.mean
    assert unbiased.definition == "jedi-unbiased-vjepa-h16-ssv2-4f-6x5" and unbiased.name == "JEDi unbiased"
    x, y = (distance.features(part).double() for part in (clips, clips[:5] * 0.5))
    kernel = [((a @ b.T / 48) ** 2).mean().item() for a, b in ((x, x), (y, y), (x, y))]
    assert plain.mean == pytest.approx(100 * (kernel[0] + kernel[1] - 2 * kernel[2]), rel=1e-6)
    assert plain.notes["half_sample"] == {"real": 3, "generated": 3, "value": pytest.approx(plain.mean, rel=2)}
    facts = plain.notes["feature_network"]
    assert (facts["file"], facts["probe_file"]) == ("vith16.pth.tar", "ssv2-probe.pth.tar")
    assert len(facts["sha256"]) == len(facts["probe_sha256"]) == 64 and "NC" in facts["licence"]
    assert "JEDi of 5 clips: tables have at least 2048" in caplog.text
    assert "JEDi of 4 frames: its network was trained with 16" in caplog.text
    for frames, message in ((3, "JEDi of 3 frames: vjepa-h16-ssv2 takes multiples of 2"), (1, "too short")):
        with pytest.raises(UserError, match=message):
            distance.update(clips[:, :, :frames])
    with pytest.raises(UserError, match="at least 256, or --force"):
        JEDi(narrow).check_count(255)


def test_ids():
    """Sizes are part of them; frames that were not rounded stand beside the usual ones."""
    assert definition_of("jedi-vjepa-h16-ssv2-16f-2048").name == "JEDi"
    raw = definition_of("jedi-RANDOM-16f-256x512-raw")
    assert raw.name == "JEDi-RANDOM" and "256 real and 512 generated" in raw.text and "not rounded" in raw.text


def test_features_do_not_depend_on_the_batch(narrow):
    clips = torch.rand(3, 3, 4, 32, 32, generator=torch.Generator().manual_seed(3)) * 2 - 1
    one_by_one = torch.cat([narrow(clip[None]) for clip in clips])
    assert torch.allclose(narrow(clips), one_by_one, atol=1e-4 * float(one_by_one.abs().max()))
    assert VJEPA(NARROW).state_dict().keys() == narrow.network.state_dict().keys()
