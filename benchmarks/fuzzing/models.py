"""Small valid configurations, checkpoints, latents and codes of every model, and the functions that read them."""

from __future__ import annotations

import dataclasses
import functools
import io
import json
import tempfile
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
import yaml
from safetensors.torch import save_file

import flow_pred.config
import flow_pred.files
import lvt.config
import lvt.files
import video_vae.config
import video_vae.files
import vqgan.files
import vvae.files
from benchmarks.fuzzing.data import Reader, Seed, npy, opens, written
from flow_pred.latents import LatentClips
from lvt.codes import CodeWindows, open_codes, write_codes
from tests.flow_pred.tiny import tiny_values
from tests.video_vae.tiny import TINY, tiny_network
from training.checkpoint import load_checkpoint, read_tensors, save_checkpoint, tensors_to_share
from training.config import from_dict, load_config
from training.folder import trained_on
from training.pretrained import open_pretrained, pack
from vqgan.config import VQGANConfig
from vvae.src.latent_files import LatentInfo, latent_statistics, latent_writer, open_latents
from vvae.train import VVAEConfig

ROOT = Path(__file__).resolve().parents[2]


def config_seeds() -> list[Seed]:
    """A configuration of each model, read by that model."""

    def whole(path: str, settings: dict[str, Any] | None = None) -> dict[str, bytes]:
        text = yaml.safe_dump(settings or load_config(ROOT / "configs" / path), allow_unicode=True)
        return {"config.yaml": text.encode()}

    def video_vae_model(path: Path) -> None:
        video_vae.config.VideoVAEConfig.from_dict(video_vae.config.load_config(config=str(path)))

    def lvt_model(path: Path) -> None:
        config = lvt.config.load_config(path)
        (lvt.config.transformer_config if lvt.config.is_transformer(config) else lvt.config.vqvae_config)(config)

    models = {
        "video_vae/tiny.yaml": video_vae_model,
        "vqgan/test.yaml": opens(load_config),
        "lvt/VQVAE_tiny.yaml": lvt_model,
        "lvt/VT_tiny.yaml": lvt_model,
        "flow_pred/digits_river_tiny.yaml": opens(flow_pred.config.load_config),
        "flow_pred/shapes_g-01-nll_tiny.yaml": opens(flow_pred.config.load_config),
        "vvae/tiny.yaml": opens(lambda path: from_dict(VVAEConfig, load_config(path, (), VVAEConfig))),
    }
    seeds = [Seed(whole(name), "config.yaml", (reader,), True) for name, reader in models.items()]
    plain = whole("", dataclasses.asdict(VQGANConfig()))
    seeds.append(Seed(plain, "config.yaml", (opens(lambda path: from_dict(VQGANConfig, load_config(path))),), True))
    base = {"config.yaml": b"_BASE_: base.yaml\na: ${b}\nb: (1, 2)\n", "base.yaml": b"c: {d: 1}\nb: 2\n"}
    reader = opens(lambda path: load_config(path.parent / "config.yaml"))
    return [*seeds, *(Seed(base, name, (reader,), True) for name in base)]


@functools.cache
def states() -> dict[str, tuple[dict[str, Any], Reader]]:
    """A small training state of each model, and what opens a file or folder of it."""
    torch.manual_seed(0)
    gan = vqgan.files.build_model({"hidden_dims": (4, 4), "latent_dim": 4, "num_embeddings": 8, "downsample_factor": 2})
    values = flow_pred.config.parse_config(tiny_values("river"))
    overrides = ("MODEL.ENCODER.NF", "8", "MODEL.GENERATOR.IN_CHANNELS", "8", "MODEL.CODEBOOK.DIM", "8")
    codes = lvt.config.load_config(ROOT / "configs" / "lvt" / "VQVAE_tiny.yaml", overrides)
    image = {"ch": 8, "ch_mult": [1, 1, 1, 1], "num_res_blocks": 1, "z_channels": 4, "out_ch": 3}
    settings = {"ddconfig": image, "ppconfig": {"ch": 4, "hidden_channel": 8}, "norm_groups": 1}
    video = vvae.files.AutoencoderKL2plus1D_1dcnn(**settings)
    node = {"target": "src.models.autoencoder2plus1d_1dcnn.AutoencoderKL2plus1D_1dcnn", "params": settings}
    networks = {
        "video_vae": ("vae", tiny_network(), {"model": TINY}, video_vae.files.load_model),
        "vqgan": ("model", gan, {"model": vqgan.files.model_config(gan)}, vqgan.files.load_model),
        "flow_pred": ("regressor", flow_pred.files.build_regressor(values.model),
                      flow_pred.config.plain_config(values), flow_pred.files.load_model),
        "lvt": ("vqvae", lvt.files.build_vqvae(codes), codes, lvt.files.load_model),
        "vvae": ("autoencoder", video, {"model": node}, vvae.files.load_model),
    }  # fmt: skip
    empty = {"samples_seen": 12, "optimizers": {}, "ema": {}, "metrics": {}, "metrics_step": 0}
    empty |= {"torch": "2", "device_type": "cpu", "world_size": 1}
    recipes = {"vqgan": "vqgan_stage1"}
    return {
        model: (
            {"format": 1, "recipe": recipes.get(model, model), "step": 3, "config": plain(config),
             "networks": {name: dict(network.state_dict())}, **empty}, opens(load),
        )
        for model, (name, network, config, load) in networks.items()
    }  # fmt: skip


def plain(value: Any) -> Any:
    """Without tuples, which no file keeps."""
    return json.loads(json.dumps(value, default=str))


def tensors(path: Path) -> int:
    return len(read_tensors(path))


def checkpoint(path: Path) -> int:
    return len(load_checkpoint(path)["networks"])


def saved(state: dict[str, Any]) -> bytes:
    stream = io.BytesIO()
    torch.save(state, stream)
    return stream.getvalue()


def pt_seeds() -> list[Seed]:
    """Training states, published files that hold a state dict alone, and the video VAE's files of an epoch."""
    seeds = []
    for model, (state, load) in states().items():
        readers = (tensors, checkpoint) if model in ("lvt", "vvae") else (tensors, checkpoint, load)
        seeds.append(Seed({"x.pt": saved(state)}, "x.pt", readers))
    for model, load in (("vvae", states()["vvae"][1]), ("flow_pred", flow_weights)):
        published = {"state_dict": next(iter(states()[model][0]["networks"].values()))}
        seeds.append(Seed({"x.pt": saved(published)}, "x.pt", (load,)))
    state, load = states()["video_vae"]
    epoch = {key: state[key] for key in ("format", "recipe", "step", "samples_seen", "config")}
    epoch |= {"model": state["networks"]["vae"], "ema": None, "optimizer": {}, "epoch": 2}
    return [*seeds, Seed({"x_epoch_2.pth": saved(epoch)}, "x_epoch_2.pth", (load,))]


def flow_weights(path: Path) -> int:
    return len(flow_pred.files.read_weights(path).networks)


def safetensors_seeds() -> list[Seed]:
    """Weights of training, as every save writes them."""
    seeds = []
    for model, (state, load) in states().items():
        facts = json.dumps({"averaged": [], **{key: state[key] for key in ("recipe", "step", "config")}})

        def write(folder: Path, state: dict[str, Any] = state, facts: str = facts) -> None:
            save_file(tensors_to_share(state), folder / "x.safetensors", metadata={"run": facts})

        readers = (tensors, checkpoint) if model == "lvt" else (tensors, checkpoint, load)
        seeds.append(Seed(written(write), "x.safetensors", readers))
    return seeds


def write_run(folder: Path, state: dict[str, Any]) -> None:
    """A run's folder as training leaves it."""
    (folder / "checkpoints").mkdir(parents=True)
    save_checkpoint(folder / "checkpoints", state, {"recipe": state["recipe"], "metrics": {"psnr": 1.0}})
    (folder / "config.yaml").write_text(yaml.safe_dump(state["config"]))
    noted = {"source": "x", "split": "train", "fingerprint": "f", "ids": ["a", "b"]}
    (folder / "trained_on.json").write_text(json.dumps(noted))


def run_seeds() -> list[Seed]:
    """Run folders, in which one of the files is damaged."""
    seeds = []
    for model, (state, load) in states().items():
        files = written(lambda folder, state=state: write_run(folder / "run", state))
        for target in files if model != "vvae" else ["run/config.yaml"]:  # which takes ten times as long as the others
            readers = [lambda path: folder_of_run(path, checkpoint), lambda path, load=load: folder_of_run(path, load)]
            readers += [lambda path: folder_of_run(path, trained_on)] if target.endswith("_on.json") else []
            seeds.append(Seed(files, target, tuple(readers[model == "vvae" :])))
    return seeds


def folder_of_run(path: Path, read: Reader) -> None:
    """Read the run in which a file lies; damaged checkpoints are passed over, so that nothing can be counted."""
    read(next(folder for folder in path.parents if folder.name == "run"))


def packed_seeds() -> list[Seed]:
    """Trained models as one file each."""
    seeds = []
    for model, (state, _) in states().items():

        def write(folder: Path, model: str = model, state: dict[str, Any] = state) -> None:
            with tempfile.TemporaryDirectory() as name:
                write_run(Path(name, "run"), state)
                pack(folder / "x.safetensors", model, {"model": Path(name, "run")}, "fp32")

        seeds.append(Seed(written(write), "x.safetensors", (opens(open_pretrained),)))
    return seeds


def latents_seeds() -> list[Seed]:
    """The flow's cache and the video autoencoder's files."""

    def write(folder: Path) -> None:
        with h5py.File(folder / "train.hdf5", "w") as file:
            file["latents"], file["offset"] = np.zeros((8, 3, 2, 2), "f2"), np.array([0, 4, 8])
            for name in ("id", "label", "place"):
                file.create_dataset(name, data=["a", "b"], dtype=h5py.string_dtype())
            file.attrs.update(format="flow-latents", version=1, autoencoder="ab", size=4, mean="[0, 0, 0]")
            file.attrs.update(std="[1, 1, 1]", source="x", split="train", fingerprint="f")
        for suffix in (".npy", ".hdf5"):
            info = LatentInfo("a.mp4", Fraction(25), 8, 16, 16, 4, 16, 4)
            with latent_writer(folder / f"x{suffix}", info) as writer:
                writer.append(torch.zeros(4, 2, 2, 2))

    files = written(write)
    both = {name: files[name] for name in ("x.npy", "x.json")}
    beside = (lambda path: vvae_latents(path.with_suffix(".npy")),)
    return [
        Seed({"train.hdf5": files["train.hdf5"]}, "train.hdf5", (flow_latents,)),
        Seed({"x.hdf5": files["x.hdf5"]}, "x.hdf5", (vvae_latents,)),
        Seed(both, "x.npy", (vvae_latents,)),
        Seed(both, "x.json", beside),
    ]


def flow_latents(path: Path) -> int:
    clips = LatentClips(path.parent, "train", frames=2)
    for number in range(len(clips)):
        clips[number], clips.label(number), clips.describe(number)
    clips.fingerprint(), clips.provenance(), clips.moments()
    return len(clips)


def vvae_latents(path: Path) -> int:
    with open_latents(path) as (_, frames):
        count = sum(1 for _ in frames)
    latent_statistics([path])
    return count


def codes_seeds() -> list[Seed]:
    """An array of codes with its description, and one file for each frame."""
    codes = np.arange(4 * 2 * 2 * 2).reshape(4, 2, 2, 2) % 8
    noted = {"source": "x", "split": "train", "fingerprint": "f", "ids": ["a", "b"]}
    listed = [("a/1", "a", 4), ("b/1", "b", 4)]
    files = written(lambda folder: write_codes(folder / "x.npy", listed, lambda _: codes, 8, provenance=noted))
    frames = {f"in/a/v/{number}.npy": npy(code.astype(np.int64)) for number, code in enumerate(codes)}
    return [
        Seed(files, "x.npy", (code_windows,)),
        Seed(files, "x.json", (lambda path: code_windows(path.with_suffix(".npy")),)),
        Seed(frames, "in/a/v/1.npy", (lambda path: code_windows(path.parents[2]),)),
    ]


def code_windows(path: Path) -> int:
    windows = CodeWindows(open_codes(path), frames=3, random=True)
    for number in range(len(windows)):
        windows[number], windows.describe(number)
    windows.provenance(), windows.fingerprint()
    return len(windows)


MODEL_KINDS: dict[str, Callable[[], list[Seed]]] = {
    **{"yaml": config_seeds, "pt": pt_seeds, "safetensors": safetensors_seeds},
    **{"run": run_seeds, "packed": packed_seeds, "latents": latents_seeds, "codes": codes_seeds},
}
