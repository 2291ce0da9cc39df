"""How `evaluate.py` opens each model: the flags of its sub-command, and the subject that they describe.

Models are imported when one of them is opened, so that the help of the command does not wait for torch.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from evaluation.protocol import nonnegative_int, positive_int
from evaluation.subject import Batch, Subject
from videodata.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from flow_pred.config import FlowPredConfig
    from flow_pred.generate import Plan


class Model(NamedTuple):
    """One sub-command."""

    summary: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    open_subject: Callable[[argparse.Namespace], Subject]


# --- video_vae


def add_video_vae_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--size", type=positive_int, nargs=2, metavar=("H", "W"), help="of the frames (default: as in training)"
    )
    parser.add_argument("--mean_latents", action="store_true", help="the posterior's means in place of draws from it")
    parser.add_argument("--generate", action="store_true", help="clips from the prior in place of reconstructions")
    parser.add_argument("--temperature", type=float, default=1.0, help="with --generate: of the prior")


def open_video_vae(args: argparse.Namespace) -> Subject:
    from training.device import resolve_device
    from video_vae.epoch_files import load_network
    from video_vae.evaluate import Reconstructions, Samples

    network, config = load_network(args.checkpoint, resolve_device(args.device))
    subject = Samples(network, args.temperature) if args.generate else Reconstructions(network, args.mean_latents)
    subject.metrics, subject.runs = ("fvd",) if args.generate else ("psnr", "ssim", "kl"), (args.checkpoint,)
    data = config["data"]
    return subject.made_for(
        args.frames or data["frames"], args.size or network.config.image_size, args.stride or data["stride"]
    )


# --- vqgan


def add_vqgan_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--patch_size", type=positive_int, help="side of a patch (default: as in training)")
    parser.add_argument("--num_patches_h", type=positive_int, help="patches below each other (default: as in training)")
    parser.add_argument(
        "--num_patches_w", type=positive_int, help="patches beside each other (default: as in training)"
    )


def open_vqgan(args: argparse.Namespace) -> Subject:
    from training.device import resolve_device
    from vqgan.evaluate import Reconstructions
    from vqgan.model_file import load_model
    from vqgan.trained import settle_grid

    model = load_model(args.checkpoint).to(resolve_device(args.device))
    settle_grid(args)
    rows, columns = args.num_patches_h, args.num_patches_w
    subject = Reconstructions(model, rows, columns)
    subject.metrics, subject.runs = ("psnr", "ssim", "codebook"), (args.checkpoint,)
    return subject.made_for(args.frames or 8, (rows * args.patch_size, columns * args.patch_size), args.stride or 1)


# --- lvt


def add_lvt_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config_file", metavar="FILE", help="configuration (default: config.yaml of the run folder)")
    parser.add_argument(
        "--vqvae", metavar="RUN", help="run folder of the VQ-VAE (default: the one in the configuration)"
    )
    parser.add_argument(
        "--given", type=nonnegative_int, help="frames that are shown (default: TEST.VT_SAMPLER.N_PRIME)"
    )
    parser.add_argument("--temperature", type=float, help="of the sampler (default: of the configuration)")
    parser.add_argument("--class_index", type=nonnegative_int, help="class of a class-conditional model")


def open_lvt(args: argparse.Namespace) -> Subject:
    from lvt import config as configuration
    from lvt.run import is_transformer

    file = Path(args.config_file or Path(args.checkpoint) / "config.yaml")
    if not file.is_file():
        raise UserError(f"{file}: no such configuration; name it with --config_file")
    config = configuration.load(file)
    subject = open_continuations(args, config) if is_transformer(config) else open_lvt_vqvae(args, config)
    frames, side = args.frames or config["INPUT"]["N_FRAMES_PER_VIDEO_TEST"], config["INPUT"]["SIZE"]
    return subject.made_for(max(frames, 1), (side, side), args.stride or 1)


def open_lvt_vqvae(args: argparse.Namespace, config: dict[str, Any]) -> Subject:
    from lvt.evaluate import Reconstructions
    from lvt.run import build_vqvae
    from lvt.weights import load_vqvae
    from training.device import resolve_device

    device = resolve_device(args.device)
    vqvae = load_vqvae(build_vqvae(config), dict.fromkeys(("netE", "netG", "netC"), args.checkpoint))
    subject = Reconstructions(vqvae.to(device).eval(), device)
    subject.metrics, subject.runs = ("psnr", "ssim", "codebook"), (args.checkpoint,)
    return subject


def open_continuations(args: argparse.Namespace, config: dict[str, Any]) -> Subject:
    from lvt.evaluate import Continuations
    from lvt.evaluators import sampling_options
    from lvt.run import build_transformer, needed_vqvae
    from lvt.weights import load_transformer
    from training.device import resolve_device

    device, sampler = resolve_device(args.device), config["TEST"]["VT_SAMPLER"]
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
    vqvae, options = needed_vqvae(config, device), sampling_options(sampler)
    subject = Continuations(transformer, vqvae, given, device, args.class_index, **options)
    subject.metrics, subject.runs = ("psnr", "ssim", "bits", "codebook"), (args.checkpoint,)
    return subject


# --- vvae


def add_vvae_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", help="configuration, such as config_16z.yaml (default: told by the checkpoint)")
    parser.add_argument(
        "--size", type=positive_int, nargs=2, default=(216, 216), metavar=("H", "W"), help="of the frames"
    )
    parser.add_argument("--dtype", choices=("fp32", "bf16", "fp16"), default="fp32", help="of weights and activations")
    parser.add_argument("--chunk_size", type=positive_int, default=16, help="frames of a window, a multiple of 4")
    parser.add_argument(
        "--overlap", type=nonnegative_int, default=4, help="frames shared by windows; 0: independent chunks"
    )
    parser.add_argument("--caption", help="one caption for all clips, for text-guided models; needs T5")


class VVAEReconstructions(Subject):
    """Clips through VideoVAE+ and back, window by window as files go. Here, because vvae/ knows no other package."""

    metrics = ("psnr", "ssim", "boundary")

    def __init__(self, model: nn.Module, streaming: Any) -> None:
        self.model, self.streaming = model, streaming
        self.window = streaming.windows.size - streaming.windows.overlap

    def make(self, batch: Batch) -> Tensor:
        import torch

        from videodata.pixels import to_uint8
        from vvae.src.streaming import reconstruct_clip

        return torch.stack([reconstruct_clip(self.model, to_uint8(clip), self.streaming) for clip in batch.clips])

    def baselines(self, clips: Tensor) -> dict[str, Tensor]:
        return {"of the mean colour": clips.mean(dim=(2, 3, 4), keepdim=True).expand_as(clips)}

    def facts(self) -> dict[str, Any]:
        windows = self.streaming.windows
        return {"chunk_size": windows.size, "overlap": windows.overlap}


def open_vvae(args: argparse.Namespace) -> Subject:
    from scripts.vvae_files import open_model, own_errors, streaming_from

    model = open_model(argparse.Namespace(**vars(args), ckpt=args.checkpoint, compile=False, slice_frames=None))
    if args.caption is not None and not model.config.caption_guide:
        raise UserError("this model takes no captions; leave out --caption")
    with own_errors():
        text = None if args.caption is None else model.encode_text(args.caption)
    subject = VVAEReconstructions(model, streaming_from(args, text))
    subject.runs = (args.checkpoint,)
    return subject.made_for(args.frames or 16, args.size, args.stride or 1)


# --- flow_pred


def add_flow_pred_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--denoiser", metavar="RUN", help="neural SDE: run folder or file; --checkpoint is its flow")
    parser.add_argument("--diffusion", metavar="RUN", help="neural SDE: run folder or file")
    parser.add_argument(
        "--config", metavar="FILE", help="configuration of --checkpoint, for files that have none in them"
    )
    parser.add_argument(
        "--autoencoder", metavar="FILE", help="the autoencoder's checkpoint, in place of the one on record"
    )
    parser.add_argument("--given", type=positive_int, help="frames that are shown (default: of the configuration)")
    parser.add_argument(
        "--steps", type=positive_int, help="solver steps per frame (default: 10 for RIVER, 2 for the neural SDE)"
    )


def open_flow_pred(args: argparse.Namespace) -> Subject:
    from flow_pred.checkpoints import read_predictor
    from flow_pred.config import parse_config, read_config
    from flow_pred.evaluate import Predictions
    from flow_pred.predictors import documented, load_neural_sde, load_river
    from scripts.generate_flow_videos import without_settings
    from training.device import resolve_device

    device = resolve_device(args.device)
    stored = None if args.config else read_predictor(documented(args.checkpoint)).config
    if stored is None and not args.config:
        raise UserError(f"{args.checkpoint}: has no configuration in it; name its file with --config")
    config = read_config(args.config)[0] if args.config else parse_config(without_settings(stored))
    if config.model.func == "river":
        if args.denoiser or args.diffusion:
            raise UserError("--denoiser and --diffusion go with the flow of a neural SDE; --checkpoint is a RIVER")
        predictor, _ = load_river(args.checkpoint, args.config, device, args.autoencoder)
    else:
        files = {"f": (args.checkpoint, args.config), "d": (args.denoiser, None), "g": (args.diffusion, None)}
        predictor, _ = load_neural_sde(files, device, args.autoencoder)
    plan = plan_of(args, config)
    subject = Predictions(predictor, plan, device)
    subject.runs = tuple(path for path in (args.checkpoint, args.denoiser, args.diffusion) if path)
    side = config.data.crop_size
    return subject.made_for(
        plan.read_frames, (side, side), args.stride or plan.read_stride, short_side=config.data.input_size
    )


def plan_of(args: argparse.Namespace, config: FlowPredConfig) -> Plan:
    """What is predicted, one frame per frame interval: by the flags, else by the configuration."""
    from flow_pred.generate import Plan

    evaluation, training = config.evaluation, config.training
    context = args.given or evaluation.condition_frames or training.condition_frames
    frames = evaluation.frames_to_generate or training.frames_to_generate
    if config.model.func == "river":
        options = {"grid": "uniform", "steps": args.steps or evaluation.steps, "method": None}
        options |= {"past_horizon": evaluation.past_horizon, "warm_start": evaluation.warm_sampling}
    else:
        options = {"steps": args.steps or 2, "method": "euler", "atol": 1e-2, "outputs_per_interval": 1}
    return Plan(context, args.frames - context if args.frames else frames, config.data.skip_frames + 1, options=options)


MODELS = {
    "video_vae": Model(
        "reconstructions of the video VAE, or clips from its prior", add_video_vae_arguments, open_video_vae
    ),
    "vqgan": Model("reconstructions of a VQGAN, and its codebook", add_vqgan_arguments, open_vqgan),
    "lvt": Model(
        "continuations by the latent video transformer, or reconstructions of its VQ-VAE", add_lvt_arguments, open_lvt
    ),
    "vvae": Model("reconstructions of VideoVAE+", add_vvae_arguments, open_vvae),
    "flow_pred": Model("predictions of RIVER or the neural SDE", add_flow_pred_arguments, open_flow_pred),
}
