"""Weight files of pretrained feature networks: which exist, where they are looked for, and how they get there.

Look-up order: a path that the caller names (file or folder), `$VIDEOGEN_WEIGHTS`, `~/.cache/videogen/weights`, the
torch hub cache. A file that the caller names is used as it is; a file found by its name must have its SHA-256. Where
none is published, the SHA-256 of the first download is kept in `weights.lock` beside it, and must be met from then on.
"""

from __future__ import annotations

import importlib.util
import logging
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from videodata.download import download as download_file
from videodata.errors import UserError
from videodata.files import lock_file, sha256_of

logger = logging.getLogger(__name__)

ENVIRONMENT_VARIABLE = "VIDEOGEN_WEIGHTS"


@dataclass(frozen=True)
class WeightFile:
    """One published file of pretrained weights."""

    filename: str
    url: str
    megabytes: int  # for messages; the hash is what is checked
    sha256: str  # a prefix of the hexadecimal digest is enough; "": none is published, see `digests_file`
    purpose: str
    without: str = "set that weight to 0 to work without it"


WEIGHT_FILES = {
    "vgg16": WeightFile(
        filename="vgg16-397923af.pth",
        url="https://download.pytorch.org/models/vgg16-397923af.pth",
        megabytes=528,
        sha256="397923af",
        purpose="the VGG-16 perceptual losses and LPIPS-vgg",
    ),
    "alexnet": WeightFile(
        filename="alexnet-owt-7be5be79.pth",
        url="https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
        megabytes=233,
        sha256="7be5be79",
        purpose="LPIPS-alex",
    ),
    "i3d": WeightFile(
        filename="i3d_pretrained_400.pt",
        url="https://github.com/songweige/TATS/raw/main/tats/fvd/i3d_pretrained_400.pt",
        megabytes=51,
        sha256="",
        purpose="FVD with the I3D network",
        without="leave out fvd",
    ),
    "i3d-torchscript": WeightFile(
        filename="i3d_torchscript.pt",
        url="https://huggingface.co/flateon/FVD-I3D-torchscript/resolve/main/i3d_torchscript.pt",
        megabytes=51,
        sha256="bec6519f66ea534e953026b4ae2c65553c17bf105611c746d904657e5860a5e2",  # that of many public copies
        purpose="FVD with the TorchScript I3D",
        without="leave out fvd",
    ),
    "inception": WeightFile(
        filename="pt_inception-2015-12-05-6726825d.pth",
        url="https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth",
        megabytes=91,
        sha256="6726825d",
        purpose="FID",
        without="leave out fid",
    ),
    "vjepa": WeightFile(
        filename="vith16.pth.tar",
        url="https://dl.fbaipublicfiles.com/jepa/vith16/vith16.pth.tar",
        megabytes=10_000,  # about, with the state of its optimiser: scripts/pack_vjepa.py keeps a quarter
        sha256="",
        purpose="JEDi",
        without="leave out jedi",
    ),
    "vjepa-probe": WeightFile(
        filename="ssv2-probe.pth.tar",
        url="https://dl.fbaipublicfiles.com/jepa/vith16/ssv2-probe.pth.tar",
        megabytes=80,
        sha256="",
        purpose="JEDi",
        without="leave out jedi",
    ),
}

LPIPS_HEADS_SHA256 = {  # linear heads v0.1, shipped inside the lpips package
    "vgg": "a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868",
    "alex": "df73285e35b22355a2df87cdb6b70b343713b667eddbda73e1977e0c860835c0",
}


def weights_folder() -> Path:
    """The folder where weight files belong: `$VIDEOGEN_WEIGHTS`, else `~/.cache/videogen/weights`."""
    named = os.environ.get(ENVIRONMENT_VARIABLE)
    return Path(named).expanduser() if named else Path.home() / ".cache" / "videogen" / "weights"


def find_weights(name: str, path: Path | str | None = None, download: bool = True) -> Path:
    """Path of the weight file `name` (a key of WEIGHT_FILES), downloaded on first use.

    `path`: a file to use as it is, or a folder to look in first. Raises UserError in one line when the file is
    nowhere and cannot be downloaded, or when a file of that name has another content.
    """
    entry = WEIGHT_FILES[name]
    if path is not None and Path(path).is_file():
        return Path(path)
    if path is not None and not Path(path).is_dir():
        raise UserError(f"{path}: no such file or folder of weights; {entry.filename} is needed for {entry.purpose}")
    if found := look_for(entry.filename, path):
        return _checked(found, entry)
    if not download:
        raise UserError(_missing(entry, "it may not be downloaded without --download"))
    return _download(entry, weights_folder())


def look_for(filename: str, path: Path | str | None = None) -> Path | None:
    """The first file of that name in the folder `path` and where weight files are looked for; None: it is nowhere."""
    named = [] if path is None else [Path(path)]
    cache = Path.home() / ".cache" / "videogen" / "weights"
    folders = (*named, weights_folder(), cache, Path(torch.hub.get_dir()) / "checkpoints")
    return next((folder / filename for folder in folders if (folder / filename).is_file()), None)


def find_lpips_heads(net: str) -> Path:
    """Path of the linear heads of LPIPS v0.1 inside the installed lpips package; the package is not imported."""
    package = importlib.util.find_spec("lpips")
    if package is None or not package.submodule_search_locations:
        raise UserError("LPIPS needs the lpips package, which holds its linear heads: pip install lpips")
    path = Path(package.submodule_search_locations[0]) / "weights" / "v0.1" / f"{net}.pth"
    if not path.is_file() or sha256_of(path) != LPIPS_HEADS_SHA256[net]:
        raise UserError(f"{path}: these are not the linear heads of LPIPS v0.1; install lpips again (0.1.4)")
    return path


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The state dict in a weight file; raises UserError in one line for anything else."""
    from training.checkpoint import read_tensors  # here, because the engine takes seconds to import

    state = read_tensors(path)
    if not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{path}: not a state dict (name -> tensor)")
    return state


def digests_file(folder: Path) -> Path:
    """Where a folder of weights keeps the SHA-256 of files that none is published for: lines `<digest>  <file>`."""
    return folder / "weights.lock"


def _checked(path: Path, entry: WeightFile) -> Path:
    digest, expected = sha256_of(path), entry.sha256
    kept = digests_file(path.parent)
    if not expected and kept.is_file():
        lines = [line.split() for line in kept.read_text(encoding="utf-8").splitlines()]
        expected = next((line[0] for line in lines if line[1:] == [path.name]), "")
    if not digest.startswith(expected):
        raise UserError(
            f"{path}: damaged or not the published file (SHA-256 starts with {digest[:8]}, expected "
            f"{expected[:8]}); delete it, or name a file of your own explicitly"
        )
    return path


def _download(entry: WeightFile, folder: Path) -> Path:
    target = folder / entry.filename
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with lock_file(folder / f".{entry.filename}", "downloading", wait=True):
            if target.is_file():  # another process has fetched it while this one waited
                return _checked(target, entry)
            logger.warning("downloading %s (%d MB) to %s", entry.url, entry.megabytes, folder)
            download_file(entry.url, target, sha256=entry.sha256 or None, tries=2)
            if not entry.sha256:
                with digests_file(folder).open("a", encoding="utf-8", newline="\n") as file:
                    file.write(f"{sha256_of(target)}  {target.name}\n")
            return target
    except (UserError, OSError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0].strip()[:200].removeprefix(f"{entry.url}: ")
        raise UserError(_missing(entry, f"the download failed ({reason})")) from error


def _missing(entry: WeightFile, reason: str) -> str:
    return (
        f"{entry.filename} is missing ({entry.megabytes} MB, for {entry.purpose}) and {reason}; "
        f"get {entry.url} and put it into {weights_folder()}, or {entry.without}"
    )
