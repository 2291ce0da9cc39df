"""One interface to every tokenizer: what turns clips into an array of codes or latents, and back.

A generator learns arrays and never asks which network made them:

    tokenizer = open_tokenizer("runs/vqgan")         # or a file, a name of weights/, a folder of scripts/encode.py
    array = tokenizer.encode(clips)                  # (B, 3, T, H, W) in [-1, 1] -> (B, t, h, w, c)
    clips = tokenizer.decode(array, T, H, W)         # and back

This module knows no model. `TYPES` is the list of what may be opened; the folder of a type is imported when it is asked
for, and its files.py has

    TOKENIZERS: dict[str, tuple[str, ...]]                          its types, and the settings that each reads
    tokenizer_type(path) -> str | None                              which of them a run folder or file holds
    build_tokenizer(type, path, kind, settings) -> Tokenizer        kind None: the one that it is known for

Axes: B clips, T frames of H x W pixels; t x h x w cells of the array with c numbers each. A cell stands for
`time_factor` frames of `space_factor` x `space_factor` pixels; where a tokenizer is causal and time_factor f is above
1, the first cell stands for one frame alone, so that clips have 1 + f k frames.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, Protocol

import safetensors
import torch
import yaml
from torch import Tensor, nn

from training.checkpoint import DAMAGE, METADATA, check_form, checkpoints_in, newest_weights
from training.config import unknown_key
from training.pretrained import file_of, is_pretrained, names, unpack
from training.sharded import MANIFEST, is_sharded
from training.state import weights_digest
from videodata.errors import UserError, said_by
from videodata.files import parse_json, read_json
from videodata.finite import finite

Kind = Literal["codes", "latents"]
TYPES = {  # and the folder of each
    "vqgan": "vqgan", "ldm-vq": "vqgan", "lvt-vqvae": "lvt", "vvae": "vvae", "tokenizer3d": "tokenizer3d",
    "ours": "flow_pred", "sd-vae-ft-mse": "flow_pred", "identity": "flow_pred",
}  # fmt: skip
TYPE_LIKE = re.compile(r"[a-z0-9-]{2,}")  # not the letter of a drive
WITHOUT_FILE = ("identity",)
TOKENIZER_FILE = "tokenizer.json"  # beside encoded data: which tokenizer made it (training/encoded.py)
RECORDED = {  # in it
    *("tokenizer", "digest", "kind", "size", "width", "time_factor", "space_factor", "causal", "frame_size", "stride"),
}
FRAMES_AT_ONCE = 64  # through a tokenizer of frames, so that memory does not grow with the clips


class Tokenizer(Protocol):
    """A frozen network that turns clips into an array and back."""

    kind: Kind  # integers below `size`, or floats
    size: int | None  # entries of a codebook; None: latents
    width: int  # c: codebooks, or channels
    time_factor: int
    space_factor: int
    causal: bool  # a cell knows nothing of later frames
    module: nn.Module  # its weights: where they are, and what they are told apart by
    vectors: Sequence[Tensor] | None  # what the codes stand for, (size, D) of each codebook, where it has such

    def shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """(t, h, w, c) of the array of a clip. Raises UserError for a clip that it cannot take."""

    def encode(self, clips: Tensor) -> Tensor:
        """(B, 3, T, H, W) float32 in [-1, 1] -> (B, t, h, w, c), int64 or float32."""

    def decode(self, array: Tensor, frames: int, height: int, width: int) -> Tensor:
        """(B, t, h, w, c) -> clips (B, 3, T, H, W) float32, clamped to [-1, 1]."""


def latent_frames(tokenizer: Tokenizer, frames: int, what: str = "a clip") -> int:
    """t of so many frames; 0 of none. Raises UserError with the nearest numbers of frames that there can be."""
    factor, first = tokenizer.time_factor, int(tokenizer.causal)
    if frames == 0:
        return 0
    count, rest = divmod(frames - first, factor)
    if rest == 0 and frames > 0 and count + first > 0:
        return count + first
    below = first + factor * count
    near = " or ".join(str(n) for n in (below, below + factor) if n > 0)
    rule = f"1 + {factor} k" if tokenizer.causal else f"{factor} k"
    raise UserError(f"{what} of {frames} frames: this tokenizer takes {rule} frames, the nearest are {near}")


def video_frames(tokenizer: Tokenizer, cells: int) -> int:
    """Frames of a clip whose array has so many cells in time: what `latent_frames` undoes."""
    return cells and int(tokenizer.causal) + tokenizer.time_factor * (cells - int(tokenizer.causal))


def array_shape(tokenizer: Tokenizer, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
    """`tokenizer.shape`. Raises UserError whatever the errors of the tokenizer's own package are."""
    latent_frames(tokenizer, frames)
    try:
        return tokenizer.shape(frames, height, width)
    except UserError:
        raise
    except ValueError as error:  # of vvae, which is copied into other projects
        raise UserError(f"this tokenizer does not take {error}") from error


def decode_array(tokenizer: Tokenizer, array: Tensor) -> Tensor:
    """The clips of an array (B, t, h, w, c), as large as its cells say."""
    t, h, w = array.shape[1:4]
    return tokenizer.decode(array, video_frames(tokenizer, t), h * tokenizer.space_factor, w * tokenizer.space_factor)


def tokenizer_digest(tokenizer: Tokenizer) -> str:
    """Names the weights of a tokenizer: 16 hexadecimal digits."""
    return weights_digest(tokenizer.module.state_dict())[:16]


class GridTokenizer:
    """What tokenizers share: the facts of the interface, and the shape that follows from them."""

    def __init__(
        self, module: nn.Module, kind: Kind, width: int, size: int | None = None, *, space_factor: int,
        time_factor: int = 1, causal: bool = True, vectors: Sequence[Tensor] | None = None,
    ) -> None:  # fmt: skip
        self.module, self.kind, self.width, self.size = module.eval().requires_grad_(False), kind, width, size
        self.space_factor, self.time_factor, self.causal, self.vectors = space_factor, time_factor, causal, vectors

    def shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """See `Tokenizer`."""
        if height % self.space_factor or width % self.space_factor or min(height, width) < 1:
            raise UserError(f"frames of {width}x{height} pixels: this tokenizer takes multiples of {self.space_factor}")
        h, w = height // self.space_factor, width // self.space_factor
        return latent_frames(self, frames), h, w, self.width


class FrameTokenizer(GridTokenizer):
    """A tokenizer that takes each frame by itself.

    encode_frames: frames (N, 3, H, W) -> codes or latents (N, c, h, w); decode_frames: the other way round.
    """

    def __init__(
        self, module: nn.Module, kind: Kind, width: int, size: int | None = None, *,
        encode_frames: Callable[[Tensor], Tensor], decode_frames: Callable[[Tensor], Tensor], **facts: Any,
    ) -> None:  # fmt: skip
        super().__init__(module, kind, width, size, **facts)
        self.encode_frames, self.decode_frames = encode_frames, decode_frames

    @torch.no_grad()
    def encode(self, clips: Tensor) -> Tensor:
        """See `Tokenizer`."""
        self.shape(*clips.shape[2:])
        frames = clips.transpose(1, 2)  # (B, T, 3, H, W)
        parts = frames.flatten(0, 1).split(FRAMES_AT_ONCE)
        array = torch.cat([self.encode_frames(part) for part in parts])  # (B * T, c, h, w)
        array = array.long() if self.kind == "codes" else finite(array.float(), "latents of the tokenizer")
        return array.unflatten(0, frames.shape[:2]).movedim(2, -1)

    @torch.no_grad()
    def decode(self, array: Tensor, frames: int, height: int, width: int) -> Tensor:
        """See `Tokenizer`."""
        parts = array.movedim(-1, 2).flatten(0, 1).split(FRAMES_AT_ONCE)  # (n, c, h, w)
        clips = torch.cat([self.decode_frames(part) for part in parts]).unflatten(0, array.shape[:2])
        return clips.transpose(1, 2).float().clamp(-1, 1)


@dataclass(frozen=True)
class TokenizerName:
    """What opens a tokenizer: its type, its run folder or file, and settings that its type reads.

    As a text TYPE:PATH,KEY=VALUE,...; the type may be left out where the file says it, so that most are just a path.
    """

    type: str
    path: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        plain = self.type in WITHOUT_FILE or (not self.settings and type_of(self.path) == self.type)
        head = (self.path or self.type) if plain else f"{self.type}:{self.path or ''}"
        return ",".join([head, *(f"{key}={value}" for key, value in self.settings.items())])

    def to_dict(self) -> dict[str, Any]:
        """What `open_tokenizer` takes, too."""
        return {"type": self.type, "path": self.path, **self.settings}


def open_tokenizer(
    name: str | Path | Mapping[str, Any] | TokenizerName, kind: Kind | None = None, device: torch.device | str = "cpu"
) -> Tokenizer:
    """The tokenizer of a run folder, a file, a name of weights/, a folder that scripts/encode.py wrote, or of a mapping
    {"type", "path", settings ...}; frozen, in eval mode.

    kind: what it is asked for, codes or latents; None: what it is known for. Raises UserError for what is no tokenizer,
    has no such kind, or has other weights than those that encoded the folder.
    """
    record = None if isinstance(name, Mapping | TokenizerName) else tokenizer_record(name)
    kind = kind or (record["kind"] if record else None)
    found = name if isinstance(name, TokenizerName) else tokenizer_name(name)
    files = folder_of(found.type)
    for key in found.settings:
        if key not in files.TOKENIZERS[found.type]:
            raise unknown_key(key, files.TOKENIZERS[found.type], f"setting of a tokenizer of type {found.type}")
    try:
        tokenizer = files.build_tokenizer(found.type, place_of(found), kind, found.settings)
    except UserError:
        raise
    except ValueError as error:  # of vvae, which is copied into other projects
        raise UserError(f"{found.path}: {error}") from error
    if kind is not None and tokenizer.kind != kind:
        raise UserError(f"{found}: makes {tokenizer.kind}, and {kind} are asked for; name another tokenizer")
    if record and record["digest"] != (digest := tokenizer_digest(tokenizer)):
        raise UserError(
            f"{name}: was made by other weights of {found} ({record['digest']}, not {digest}); encode again"
        )
    tokenizer.module.to(device)
    return tokenizer


def tokenizer_name(name: str | Path | Mapping[str, Any]) -> TokenizerName:
    """A text or a mapping taken apart, the type read from the file where it is not told. Raises UserError."""
    if isinstance(name, Mapping):
        settings = {key: value for key, value in name.items() if value is not None}
        kind, path = settings.pop("type", None), settings.pop("path", None)
        text = None if path is None else str(path)
        return TokenizerName(checked_type(kind or type_of(text), name), text, settings)
    if record := tokenizer_record(name):
        return tokenizer_name(record["tokenizer"])
    text, settings = split_settings(str(name))
    kind, colon, path = text.partition(":")
    if colon and (kind in TYPES or (TYPE_LIKE.fullmatch(kind) and not Path(text).exists())):
        return TokenizerName(checked_type(kind, name), path or None, settings)
    if text in WITHOUT_FILE:
        return TokenizerName(text, None, settings)
    return TokenizerName(checked_type(type_of(text), name), text, settings)


def split_settings(text: str) -> tuple[str, dict[str, Any]]:
    """PATH,KEY=VALUE,... taken apart; a path that is there is taken as it is, commas and all."""
    head, *pairs = text.split(",")
    if Path(text).exists() or not all("=" in pair for pair in pairs):
        return text, {}
    return head, {key: yaml.safe_load(value) for key, _, value in (pair.partition("=") for pair in pairs)}


def checked_type(kind: str | None, name: object) -> str:
    """The type. Raises UserError for one that is unknown, and where there is none."""
    if kind in TYPES:
        return kind
    if kind is not None:
        raise unknown_key(str(kind), TYPES, "type of tokenizer")
    path = Path(name["path"] if isinstance(name, Mapping) and "path" in name else str(name))
    if not path.exists():
        raise UserError(f"{path}: no such tokenizer, nor trained model of that name (there are {', '.join(names())})")
    for file in sorted(path.glob("*.safetensors")) if path.is_dir() else [path]:
        check_whole(file)  # that may be why it says nothing
    raise UserError(f"{path}: does not say which tokenizer it is; name it TYPE:{path} with one of {', '.join(TYPES)}")


def check_whole(path: Path) -> None:
    """Raises UserError for a pointer of Git LFS, a web page, and a .safetensors that was cut off."""
    check_form(path)
    if path.suffix == ".safetensors":
        try:
            with safetensors.safe_open(path, framework="pt"):
                pass
        except DAMAGE as error:
            raise UserError(f"{path}: cannot be read as .safetensors ({said_by(error)})") from error


def tokenizer_record(name: str | Path) -> dict[str, Any] | None:
    """What the tokenizer.json of encoded data says; None: `name` is no such file or folder."""
    path = Path(name)
    path = path / TOKENIZER_FILE if path.is_dir() else path
    record = read_json(path) if path.name == TOKENIZER_FILE else None
    if path.name == TOKENIZER_FILE and path.is_file():
        whole = record is not None and set(record) >= RECORDED and isinstance(record["tokenizer"], dict)
        if not whole or not isinstance(record["time_factor"], int) or record["time_factor"] < 1:
            raise UserError(f"{path}: names no tokenizer; encode the data again with scripts/encode.py")
    return record


def recorded_name(folder: str | Path) -> str:
    """A text that opens the tokenizer that encoded the data of a folder: its name, or the folder if it has settings."""
    named = tokenizer_name(folder)
    return str(folder if named.settings else named)


def type_of(path: str | None) -> str | None:
    """The type of what lies at a path, or is the trained model of this name, as the folders of models tell it."""
    place = None if path is None else trained_part(path) or Path(path)
    if place is None or not place.exists():
        return None
    return type_at(place)


def type_at(path: Path) -> str | None:
    for folder in dict.fromkeys(TYPES.values()):
        if kind := folder_of(folder).tokenizer_type(path):
            return kind
    return None


def trained_part(path: str) -> Path | None:
    """The run folder of the part of a trained model of weights/ that is a tokenizer; None: no such file or name."""
    if Path(path).exists() and not is_pretrained(path):
        return None
    if not is_pretrained(path) and path not in names():
        return None
    return next((part for part in unpack(file_of(path)).values() if type_at(part)), None)


def run_of_tokenizer(name: str | Path) -> str | None:
    """The run folder or file behind a name, where what it was trained on is noted; None: there is none."""
    place = place_of(tokenizer_name(name))
    return None if place is None else str(place)


def place_of(name: TokenizerName) -> Path | None:
    """Where its files lie. Raises UserError where they do not."""
    if name.path is None:
        return None
    place = trained_part(name.path) or Path(name.path)
    if not place.exists():
        raise UserError(f"{place}: no such tokenizer; train it first, or name another one")
    return place


def folder_of(name: str) -> ModuleType:
    """The files.py of a type, or of a folder of models, imported now."""
    return import_module(f"{TYPES.get(name, name)}.files")


def recipe_of(path: Path) -> str | None:
    """The name of the training that wrote a run folder or a checkpoint of this project; None: some other file.

    For `tokenizer_type`; reads no weights.
    """
    if is_sharded(path):
        return (read_json(path / MANIFEST) or {}).get("recipe")
    if path.is_dir():
        checkpoints = checkpoints_in(path / "checkpoints")
        if checkpoints:
            return checkpoints[0].manifest.get("recipe")
        weights = newest_weights(path / "checkpoints")
        return None if weights is None else recipe_of(weights)
    if path.suffix == ".safetensors":
        try:
            with safetensors.safe_open(path, framework="pt") as file:
                return parse_json((file.metadata() or {})[METADATA])["recipe"]
        except DAMAGE:
            return None
    return (read_json(path.with_suffix(".json")) or {}).get("recipe") if path.suffix == ".pt" else None
