"""How `evaluate.py` opens each model: the flags of its sub-command, and what the evaluation needs of it."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evaluation.subject import Batch, Subject
from training.checkpoint import newest_checkpoint
from training.device import resolve_device
from training.files import sha256_of
from videodata.errors import UserError
from videodata.pixels import to_uint8


@dataclass
class Opened:
    """A model that is ready, and the clips that it is made for."""

    subject: Subject
    frames: int
    size: tuple[int, int]  # (height, width)
    stride: int = 1
    reading: dict[str, Any] = field(default_factory=dict)  # further arguments of `open_clips`


@dataclass
class Model:
    """One sub-command. `metrics`: what is measured unless asked otherwise."""

    summary: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    open: Callable[[argparse.Namespace], Opened]
    metrics: tuple[str, ...] = ("psnr", "ssim")


def checkpoint_facts(path: str | Path) -> dict[str, Any]:
    """Which file was evaluated: its hash, and the step where it is a run's newest checkpoint."""
    path = Path(path)
    newest = newest_checkpoint(path / "checkpoints") if path.is_dir() else None
    if newest is not None:
        return {"checkpoint_sha256": newest.manifest["sha256"], "checkpoint_step": newest.step}
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    return {"checkpoint_sha256": sha256_of(files[0]) if len(files) == 1 and files[0].is_file() else None}


def add_video_vae_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--size", type=int, nargs=2, metavar=("H", "W"), help="of the frames (default: as in training)")
    parser.add_argument("--mean_latents", action="store_true", help="the posterior's means in place of draws from it")
    parser.add_argument("--generate", action="store_true", help="clips from the prior in place of reconstructions")
    parser.add_argument("--temperature", type=float, default=1.0, help="with --generate: of the prior")


def open_video_vae(args: argparse.Namespace) -> Opened:
    from video_vae.epoch_files import load_network
    from video_vae.evaluate import Reconstructions, Samples

    network, config = load_network(args.checkpoint, resolve_device(args.device))
    data, size = config["data"], tuple(args.size or network.config.image_size)
    subject = Samples(network, args.temperature) if args.generate else Reconstructions(network, args.mean_latents)
    return Opened(subject, args.frames or data["frames"], size, args.stride or data["stride"])


def add_vqgan_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--patch_size", type=int, help="side of a patch (default: as in training)")
    parser.add_argument("--num_patches_h", type=int, help="patches below each other (default: as in training)")
    parser.add_argument("--num_patches_w", type=int, help="patches beside each other (default: as in training)")


def open_vqgan(args: argparse.Namespace) -> Opened:
    from vqgan.evaluate import Reconstructions
    from vqgan.model_file import load_model
    from vqgan.trained import settle_grid

    model = load_model(args.checkpoint).to(resolve_device(args.device))
    settle_grid(args)
    rows, columns = args.num_patches_h, args.num_patches_w
    size = rows * args.patch_size, columns * args.patch_size
    return Opened(Reconstructions(model, rows, columns), args.frames or 8, size, args.stride or 1)


def add_lvt_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config_file", metavar="FILE", help="configuration (default: config.yaml of the run folder)")
    parser.add_argument(
        "--vqvae", metavar="RUN", help="run folder of the VQ-VAE (default: the one in the configuration)"
    )
    parser.add_argument("--given", type=int, help="frames that are shown (default: TEST.VT_SAMPLER.N_PRIME)")
    parser.add_argument("--temperature", type=float, help="of the sampler (default: of the configuration)")
    parser.add_argument("--class_index", type=int, help="class of a class-conditional model")


def open_lvt(args: argparse.Namespace) -> Opened:
    from lvt import config as configuration
    from lvt.evaluate import Continuations, Reconstructions
    from lvt.evaluators import sampling_options
    from lvt.run import build_transformer, build_vqvae, is_transformer, needed_vqvae
    from lvt.weights import load_transformer, load_vqvae

    file = Path(args.config_file or Path(args.checkpoint) / "config.yaml")
    if not file.is_file():
        raise UserError(f"{file}: no such configuration; name it with --config_file")
    config, device = configuration.load(file), resolve_device(args.device)
    frames, size = args.frames or config["INPUT"]["N_FRAMES_PER_VIDEO_TEST"], config["INPUT"]["SIZE"]
    parts = ("netE", "netG", "netC")
    if not is_transformer(config):
        vqvae = load_vqvae(build_vqvae(config), dict.fromkeys(parts, args.checkpoint)).to(device).eval()
        return Opened(Reconstructions(vqvae, device), max(frames, 1), (size, size), args.stride or 1)
    sampler = config["TEST"]["VT_SAMPLER"]
    if args.vqvae:
        sampler["VQ_VAE"] |= {f"{part}_WEIGHTS": args.vqvae for part in ("ENCODER", "GENERATOR", "CODEBOOK")}
        own = Path(args.vqvae) / "config.yaml"
        sampler["VQ_VAE"]["CFG"] = str(own) if own.is_file() else sampler["VQ_VAE"]["CFG"]
    if args.temperature is not None:
        sampler["TEMPERATURE"] = args.temperature
    transformer = load_transformer(build_transformer(config), args.checkpoint).to(device).eval()
    if bool(transformer.config.class_num) != (args.class_index is not None):
        raise UserError("--class_index goes with class-conditional models, and they need it")
    given = sampler["N_PRIME"] if args.given is None else args.given
    subject = Continuations(
        transformer, needed_vqvae(config, device), given, device, args.class_index, **sampling_options(sampler)
    )
    return Opened(subject, frames, (size, size), args.stride or 1)


def add_vvae_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", help="configuration, such as config_16z.yaml (default: told by the checkpoint)")
    parser.add_argument("--size", type=int, nargs=2, default=(216, 216), metavar=("H", "W"), help="of the frames")
    parser.add_argument("--dtype", choices=("fp32", "bf16", "fp16"), default="fp32", help="of weights and activations")
    parser.add_argument("--chunk_size", type=int, default=16, help="frames of a window, a multiple of 4")
    parser.add_argument("--overlap", type=int, default=4, help="frames shared by windows; 0: independent chunks")
    parser.add_argument("--caption", help="one caption for all clips, for text-guided models; needs T5")


class VVAEReconstructions(Subject):
    """Clips through VideoVAE+ and back, window by window as files go. Here, because vvae/ knows no other package."""

    def __init__(self, model: torch.nn.Module, streaming: Any) -> None:
        self.model, self.streaming = model, streaming
        self.window = streaming.windows.size - streaming.windows.overlap

    def make(self, batch: Batch) -> Tensor:
        from vvae.src.streaming import reconstruct_clip

        return torch.stack([reconstruct_clip(self.model, to_uint8(clip), self.streaming) for clip in batch.clips])

    def baselines(self, clips: Tensor) -> dict[str, Tensor]:
        return {"of the mean colour": clips.mean(dim=(2, 3, 4), keepdim=True).expand_as(clips)}

    def facts(self) -> dict[str, Any]:
        windows = self.streaming.windows
        return {"chunk_size": windows.size, "overlap": windows.overlap}


def open_vvae(args: argparse.Namespace) -> Opened:
    from scripts.vvae_files import open_model, own_errors, streaming_from

    args.ckpt, args.compile, args.slice_frames = args.checkpoint, False, None
    model = open_model(args)
    if args.caption is not None and not model.config.caption_guide:
        raise UserError("this model takes no captions; leave out --caption")
    with own_errors():
        text = None if args.caption is None else model.encode_text(args.caption)
    return Opened(
        VVAEReconstructions(model, streaming_from(args, text)), args.frames or 16, tuple(args.size), args.stride or 1
    )


def add_flow_pred_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--denoiser", metavar="RUN", help="neural SDE: run folder or file; --checkpoint is its flow")
    parser.add_argument("--diffusion", metavar="RUN", help="neural SDE: run folder or file")
    parser.add_argument(
        "--config", metavar="FILE", help="configuration of --checkpoint, for files that have none in them"
    )
    parser.add_argument(
        "--autoencoder", metavar="FILE", help="the autoencoder's checkpoint, in place of the one on record"
    )
    parser.add_argument("--given", type=int, help="frames that are shown (default: of the configuration)")
    parser.add_argument(
        "--steps", type=int, help="solver steps per frame (default: 10 for RIVER, 2 for the neural SDE)"
    )


def open_flow_pred(args: argparse.Namespace) -> Opened:
    from flow_pred.evaluate import open_predictions

    predictions, config = open_predictions(
        args.checkpoint, resolve_device(args.device), config=args.config, denoiser=args.denoiser,
        diffusion=args.diffusion, autoencoder=args.autoencoder, given=args.given, frames=args.frames, steps=args.steps,
    )  # fmt: skip
    plan, size = predictions.plan, config.data.crop_size
    return Opened(
        predictions, plan.read_frames, (size, size), args.stride or plan.read_stride,
        {"short_side": config.data.input_size},
    )  # fmt: skip


MODELS = {
    "video_vae": Model(
        "reconstructions of the video VAE, or clips from its prior",
        add_video_vae_arguments, open_video_vae, ("psnr", "ssim", "kl"),
    ),
    "vqgan": Model(
        "reconstructions of a VQGAN, and its codebook", add_vqgan_arguments, open_vqgan, ("psnr", "ssim", "codebook")
    ),
    "lvt": Model(
        "continuations by the latent video transformer, or reconstructions of its VQ-VAE",
        add_lvt_arguments, open_lvt, ("psnr", "ssim", "bits", "codebook"),
    ),
    "vvae": Model(
        "reconstructions of VideoVAE+", add_vvae_arguments, open_vvae, ("psnr", "ssim", "boundary")
    ),
    "flow_pred": Model("predictions of RIVER or the neural SDE", add_flow_pred_arguments, open_flow_pred),
}  # fmt: skip
