"""The tokenizer: a clip as latents or tokens, and back. The network of microsoft/VidTok (arXiv 2412.13061)."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from losses.fsq import FSQ
from losses.quantize import AverageQuantizer, Quantizer, ResidualQuantizer, SignQuantizer
from tokenizer3d.config import TILING_KEYS, Tokenizer3DConfig, config_from
from tokenizer3d.latents import Codes, Latents, Posterior
from tokenizer3d.networks import Decoder, Encoder
from tokenizer3d.streaming import Streaming, decode_clip, encode_clip, inside, outside, pad_size, repeat_frame
from tokenizer3d.tiles import Pieces
from tokenizer3d.weights import build_empty, load_into, read_file, read_folder, read_state_dict, write_folder
from videodata.errors import UserError

logger = logging.getLogger(__name__)
LENGTH_MODES = ("pad", "strict", "original")


class TilingSwitch:
    """A setting of the original's 1.1: accepted, and without effect, because every clip goes through without seams."""

    told = False  # one warning per process

    def __init__(self, default: object) -> None:
        self.default = default

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, model: nn.Module | None, owner: type) -> Any:
        return self if model is None else model.__dict__.get(self.name, self.default)

    def __set__(self, model: nn.Module, value: object) -> None:
        model.__dict__[self.name] = value
        if not TilingSwitch.told:
            TilingSwitch.told = True
            logger.warning(
                "%s has no effect: clips of any length go through in steps without seams; `pieces` has their size",
                ", ".join(TILING_KEYS),
            )


class Tokenizer3D(Streaming, nn.Module):
    """Clips (B, 3, T, H, W) in [-1, 1] <-> latents (B, z, T', H/s, W/s), continuous (KL) or from a grid of codes (FSQ).

    A causal model makes a latent of the first frame, then one of every f frames; an image is a clip of one frame.
    Without gradients clips go through in steps of one latent, so that memory does not grow with their length; `pieces`
    says in which steps, tiles and strips. With gradients they go through whole.

    length_mode, of the methods: "pad" takes any length and size, repeats the last frame, row and column up to the next
    that fits, and cuts the result; "strict" raises UserError instead; "original" does what the published code does,
    which loses frames or moves the grid of latents for lengths other than 1 + k f (causal) and k f.
    """

    def __init__(self, config: Tokenizer3DConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder, self.decoder = Encoder(config), Decoder(config)
        self.quantizer = build_quantizer(config)
        self.pieces = Pieces()

    @classmethod
    def from_config(cls, config: str | Mapping[str, Any] | Tokenizer3DConfig) -> Tokenizer3D:
        """A new model by a published name, or by a configuration as `config_from` takes it. Raises UserError."""
        model = cls(config_from(config))
        for name in TILING_KEYS:
            if isinstance(config, Mapping) and name in config:
                setattr(model, name, config[name])
        return model

    @classmethod
    def from_single_file(
        cls,
        path: str | Path,
        version: str | None = None,
        *,
        levels: Sequence[int] | None = None,
        ema: bool = False,
    ) -> Tokenizer3D:
        """The model of a published file or of one of ours, in eval mode; everything but the version is read from it.

        version: "1.0" or "1.1"; None: as the file's name ("_v1_1") or its notes say. levels: of FSQ, 8 in each channel
        unless given. ema: the averaged weights. Raises UserError, also where nothing tells the version.
        """
        return cls.with_weights(*read_file(path, version, tuple(levels) if levels else None, ema), source=path)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Tokenizer3D:
        """The model that `save_pretrained` wrote to a folder, in eval mode. Raises UserError."""
        return cls.with_weights(*read_folder(folder), source=folder)

    @classmethod
    def with_weights(cls, config: Tokenizer3DConfig, weights: Mapping[str, Tensor], source: object) -> Tokenizer3D:
        """A model of these weights, strictly, in eval mode. Raises UserError that names `source`."""
        model = build_empty(cls, config)
        load_into(model, config, weights, source)
        return model.eval()

    def save_pretrained(self, folder: str | Path, source: str = "") -> None:
        """Write model.safetensors and config.json. source: where the weights are from, to be noted in both."""
        write_folder(folder, self, self.config, source)

    def load_file(self, path: str | Path, ema: bool = False) -> Tokenizer3D:
        """Load the weights of a file into this model, strictly; the file's version is not looked at."""
        load_into(self, self.config, read_state_dict(path, ema), path)
        return self

    use_tiling, use_overlap = TilingSwitch(False), TilingSwitch(False)
    t_chunk_enc, t_chunk_dec = TilingSwitch(16), TilingSwitch(4)

    @property
    def is_causal(self) -> bool:
        """Whether latents depend on no later frames."""
        return self.config.causal

    @property
    def spatial_factor(self) -> int:
        """Pixels per latent, along each side."""
        return self.config.spatial_factor

    @property
    def temporal_factor(self) -> int:
        """Frames per latent."""
        return self.config.temporal_factor

    @property
    def codebook_size(self) -> int | None:
        """Number of codes; None for KL."""
        return self.config.codebook_size

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights."""
        return next(self.parameters()).dtype

    @property
    def checkpointing(self) -> bool:
        """Whether blocks are computed again in the backward pass, which saves memory in training."""
        return self.encoder.checkpointing

    @checkpointing.setter
    def checkpointing(self, value: bool) -> None:
        self.encoder.checkpointing = self.decoder.checkpointing = value

    def valid_lengths(self, frames: int) -> tuple[int, ...]:
        """The numbers of frames nearest to `frames` that need no padding: below and above, or the number itself."""
        factor, first = self.temporal_factor, 1 if self.is_causal else 0
        below = (frames - first) // factor * factor + first
        if below == frames and frames > 0:
            return (frames,)
        return tuple(length for length in (below, below + factor) if length > 0)

    def latent_frames(self, frames: int) -> int:
        """T' of a clip of so many frames, padded where it must be."""
        return (self.valid_lengths(frames)[-1] - 1) // self.temporal_factor + 1

    def encode(
        self,
        x: Tensor,
        return_reg_log: bool = False,
        *,
        sample: bool = False,
        generator: torch.Generator | None = None,
        noise: Tensor | None = None,
        length_mode: str = "pad",
        pieces: Pieces | None = None,
    ) -> Latents | tuple[Tensor, dict[str, Tensor]]:
        """Clip (B, 3, T, H, W) or (3, T, H, W), or images (B, 3, H, W), in [-1, 1] -> a Posterior (KL) or Codes (FSQ).

        return_reg_log: the latents themselves and a log instead, as in the original: {kl_loss}, or {indices}, in
        training mode also {aux_loss}. The latents of KL are the mean, or drawn: with `sample` from the generator, or
        with the standard normal `noise` of their shape. Raises UserError for other shapes, and as length_mode says.
        """
        latents = self.read_moments(self.moments(self.padded(self.as_clip(x), length_mode), pieces))
        if not return_reg_log:
            return latents
        return self.drawn(latents, sample, generator, noise), self.regularizer_log(latents)

    def moments(self, x: Tensor, pieces: Pieces | None = None) -> Tensor:
        """The encoder's output (B, 2z or z, T', h, w) for a clip that has been padded."""
        if needs_gradient(self.encoder, x):
            return outside(self.encoder(inside(x)))
        with torch.no_grad():
            return encode_clip(self.encoder, x, pieces or self.pieces)

    def read_moments(self, moments: Tensor) -> Latents:
        """The encoder's output (B, 2z or z, T', h, w) as a Posterior or as Codes."""
        if self.quantizer is None:
            return Posterior.of(moments)
        pre = moments.float()
        if self.training and not isinstance(self.quantizer, FSQ):  # the call moves the codebook
            quantized = self.quantizer(pre)
            return Codes(pre, quantized.latents, quantized.indices.int(), quantized.loss)
        return Codes(pre, *self.quantizer.quantize(pre))

    def drawn(
        self,
        latents: Latents,
        sample: bool = False,
        generator: torch.Generator | None = None,
        noise: Tensor | None = None,
    ) -> Tensor:
        """What the decoder gets: the mode, or a sample of a Posterior, with noise of its shape where that is given."""
        if isinstance(latents, Posterior) and (sample or noise is not None):
            return latents.sample(generator, noise)
        return latents.mode()

    def regularizer_log(self, latents: Latents) -> dict[str, Tensor]:
        """The numbers that the original logs: kl_loss per clip; or indices, and in training mode aux_loss."""
        if isinstance(latents, Posterior):
            return {"kl_loss": latents.kl().mean()}
        log = {"indices": latents.indices}
        if latents.loss is not None:
            log["aux_loss"] = latents.loss
        elif self.training:  # in the original always, which needs a table of tokens times codes
            log["aux_loss"] = self.quantizer.auxiliary_loss(latents.pre, self.quantizer.step)
        return log

    def decode(
        self,
        z: Tensor | Latents,
        num_frames: int | None = None,
        *,
        size: tuple[int, int] | None = None,
        decode_from_indices: bool = False,
        length_mode: str = "pad",
        pieces: Pieces | None = None,
    ) -> Tensor:
        """Latents (B, z, T', h, w) -> clip (B, 3, T, H, W), about [-1, 1], not clamped.

        T is 1 + f (T' - 1) for causal models and f T' for others. num_frames and size (height, width): of the clip that
        was encoded, where it had to be padded. length_mode "original": version 1.1 gives all f T' frames, or the last
        num_frames of them.
        """
        if decode_from_indices:
            return self.decode_indices(z, num_frames, size=size, length_mode=length_mode, pieces=pieces)
        check_length_mode(length_mode)
        z = self.as_latents(z)
        if not z.shape[2]:
            raise UserError("there are no latents to decode (T' = 0)")
        if needs_gradient(self.decoder, z):
            clip = outside(self.decoder(inside(z)))
        else:
            with torch.no_grad():
                clip = decode_clip(self.decoder, z, pieces or self.pieces)
        if self.is_causal and not (length_mode == "original" and self.config.is_linear):
            clip = clip[:, :, self.temporal_factor - 1 :]
        if num_frames is not None:
            if num_frames > clip.shape[2]:
                raise UserError(f"num_frames {num_frames}: these latents stand for {clip.shape[2]} frames")
            clip = clip[:, :, -num_frames:] if length_mode == "original" else clip[:, :, :num_frames]
        return clip if size is None else clip[..., : size[0], : size[1]]

    def decode_indices(self, indices: Tensor, num_frames: int | None = None, **options: Any) -> Tensor:
        """Tokens (B, T', h, w) of an FSQ model -> clip, as `decode`. Raises UserError for a KL model, other codes."""
        return self.decode(self.lookup(indices), num_frames, **options)

    def lookup(self, indices: Tensor) -> Tensor:
        """Tokens (B, T', h, w), with a last axis where there are several codebooks -> codes (B, d, T', h, w)."""
        if self.quantizer is None:
            raise UserError("a KL model has no tokens: decode latents, or take an FSQ model")
        if indices.dim() != (4 if self.quantizer.num_quantizers == 1 else 5) or indices.is_floating_point():
            raise UserError(f"tokens must be integers (B, T', h, w), found {indices.dtype} {tuple(indices.shape)}")
        return self.quantizer.lookup(indices.to(self.device))

    def forward(
        self,
        x: Tensor,
        *,
        sample: bool = False,
        generator: torch.Generator | None = None,
        noise: Tensor | None = None,
        length_mode: str = "pad",
        pieces: Pieces | None = None,
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Latents, reconstruction of the shape of x, and log; arguments as `encode`.

        length_mode "original": version 1.0 loses frames of clips that do not fit, and all sizes that do not fit shrink.
        """
        options = {"length_mode": length_mode, "pieces": pieces}
        clip = self.as_clip(x)
        z, log = self.encode(clip, True, sample=sample, generator=generator, noise=noise, **options)
        frames, size = clip.shape[2], clip.shape[3:]
        if length_mode == "original":
            raw = self.config.is_linear
            return z, self.decode(z, frames if raw else None, **options), log
        made = self.decode(z, frames, size=size, **options)
        return z, made.reshape(x.shape) if made.shape != x.shape else made, log

    def reconstruct(self, in_file: str | Path, out_file: str | Path, **options: Any) -> int:
        """Video -> latents -> mp4, as `films.reconstruct`: bounded memory, exact rate, the same sound."""
        from tokenizer3d.films import reconstruct  # not above: the codecs are large

        return reconstruct(self, in_file, out_file, **options)

    def as_clip(self, x: Tensor) -> Tensor:
        """Any of the shapes that `encode` takes as (B, 3, T, H, W) of the weights' type. Raises UserError."""
        channels, shape = self.config.in_channels, tuple(x.shape)
        if not x.is_floating_point():
            raise UserError(f"a clip must be floating point in [-1, 1], found {x.dtype}: divide by 127.5, subtract 1")
        if x.dim() == 4 and shape[0] == channels and shape[1] == channels:
            raise UserError(f"{shape} may be a clip or {channels} images: give the missing axis (B, 3, T, H, W)")
        if x.dim() == 4 and channels in shape[:2]:
            x = x.unsqueeze(2) if shape[1] == channels else x.unsqueeze(0)
        if x.dim() != 5 or x.shape[1] != channels or 0 in x.shape:
            raise UserError(f"a clip must be (B, {channels}, T, H, W), (3, T, H, W) or (B, 3, H, W), found {shape}")
        return x if torch.is_autocast_enabled(x.device.type) else x.to(self.dtype)

    def as_latents(self, z: Tensor | Latents) -> Tensor:
        """Latents (B, z, T', h, w) of the weights' type. Raises UserError for another shape."""
        z = z if isinstance(z, Tensor) else z.mode()
        if z.dim() != 5 or z.shape[1] != self.config.z_channels:
            raise UserError(f"latents must be (B, {self.config.z_channels}, T', h, w), found {tuple(z.shape)}")
        return z if torch.is_autocast_enabled(z.device.type) else z.to(self.dtype)

    def padded(self, x: Tensor, length_mode: str = "pad") -> Tensor:
        """A clip (B, 3, T, H, W) with all that the encoder must see: copies of the first frame stand before it."""
        check_length_mode(length_mode)
        frames, factor = x.shape[2], self.temporal_factor
        if length_mode == "original":
            return self.padded_as_original(x)
        lengths, side = self.valid_lengths(frames), self.spatial_factor
        if length_mode == "strict":
            if frames not in lengths:
                near = " or ".join(map(str, lengths))
                raise UserError(f"{frames} frames do not fit: the nearest numbers that do are {near}")
            if x.shape[3] % side or x.shape[4] % side:
                raise UserError(f"height and width must be multiples of {side}, found {x.shape[3]} x {x.shape[4]}")
        x = pad_size(x, side)
        front = factor - 1 if self.is_causal else 0
        parts = [repeat_frame(x, 0, front), x, repeat_frame(x, -1, lengths[-1] - frames)]
        return torch.cat([part for part in parts if part.shape[2]], dim=2)

    def padded_as_original(self, x: Tensor) -> Tensor:
        """The published code's padding: lengths that f divides get none, and the end may be lost."""
        frames, factor, side = x.shape[2], self.temporal_factor, self.spatial_factor
        if min(x.shape[3:]) < side or (not self.is_causal and frames < factor):
            least = f"{1 if self.is_causal else factor} frames of {side} x {side}"
            raise UserError(f"{frames} frames of {x.shape[3]} x {x.shape[4]} are too few: at least {least} are needed")
        if self.is_causal and frames % factor:
            count = factor - frames % factor if self.config.version == "1.1" else factor - 1
            x = torch.cat([repeat_frame(x, 0, count), x], dim=2)
        return x[:, :, : x.shape[2] // factor * factor] if self.is_causal else x


def build_quantizer(config: Tokenizer3DConfig) -> Quantizer | None:
    """What makes codes of the latents; None for KL. Raises UserError for options that it does not have."""
    options = dict(config.regularizer_options)
    options.pop("codebook_size", None)
    kind, dim, size = config.regularizer, config.z_channels, config.codebook_size
    if kind == "kl":
        return None
    try:
        if kind == "fsq":
            return FSQ(config.levels, **options)
        if kind == "lfq":
            return SignQuantizer(dim, size, **{"commitment_cost": 0.25, **options})
        options = {"commitment_cost": 0.25, "decay": 0.99, "dead_code_fraction": 0.1, **options}
        stages = options.pop("num_quantizers", 1)
        return ResidualQuantizer(stages, dim, size, **options) if stages > 1 else AverageQuantizer(dim, size, **options)
    except (TypeError, AssertionError) as error:
        raise UserError(f"regularizer_options of {kind}: {error}") from error


def check_length_mode(mode: str) -> None:
    """Raises UserError for an unknown one."""
    if mode not in LENGTH_MODES:
        raise UserError(f"unknown length_mode {mode!r}; choose one of {', '.join(LENGTH_MODES)}")


def needs_gradient(network: nn.Module, x: Tensor) -> bool:
    """Whether a backward pass may follow."""
    return torch.is_grad_enabled() and (x.requires_grad or any(value.requires_grad for value in network.parameters()))
