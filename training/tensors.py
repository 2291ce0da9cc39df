"""Files of tensors, read and written as data: nothing in one is ever executed."""

from __future__ import annotations

import json
import pickle
import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import safetensors
import torch
from safetensors.torch import load_file
from torch import Tensor

from videodata.errors import UserError, said_by
from videodata.files import HashingFile

DTYPES = {  # names of the format
    **{torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.bool: "BOOL"},
    **{torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8"},
}
# What safetensors, and torch for its three formats, raise for a file that is damaged.
DAMAGE = (safetensors.SafetensorError, OSError, EOFError, RuntimeError, ValueError, LookupError, struct.error)
DAMAGE += (TypeError, AttributeError, AssertionError, ArithmeticError)


def read_tensors(path: str | Path, mapped: bool = False) -> dict[str, Any]:
    """What a .pt, .pth, .ckpt or .safetensors holds: tensors on the CPU and plain types by name, nested as in the file.

    mapped: tensors stay on the disk until they are used, where the file's form allows it, for large files of which a
    part is wanted. Nothing in it is ever executed. Raises UserError for a file that is missing, damaged, or holds
    anything else.
    """
    path = Path(path)
    check_form(path)
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped and zipfile.is_zipfile(path))
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; train first, or name another one") from error
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path}: not a checkpoint of tensors and plain types, or cut off; nothing was loaded, it might run code: "
            "keep only its weights"
        ) from error
    except DAMAGE as error:
        reason = said_by(error)
        raise UserError(f"{path}: not a readable weight file, or cut off ({reason}); nothing was loaded") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds a {type(content).__name__}, not tensors by name")
    return content


FORMS = {  # what is found in place of weights, by its first bytes
    b"version https://git-lfs": "a pointer of Git LFS, not the file itself: fetch it with `git lfs pull`",
    b"<!doctype": "a web page: what was downloaded is the page of a login or an error; download the file itself",
    b"<html": "a web page: what was downloaded is the page of a login or an error; download the file itself",
    b"<?xml": "an XML document, such as the error of a server; download the file again",
    b"{": "a text, such as the error of a server; download the file again",
    b"rar!": "a RAR archive: unpack it, and name the file in it",
    b"7z\xbc\xaf": "a 7z archive: unpack it, and name the file in it",
    b"\x1f\x8b\x08": "a gzip file: unpack it, and name the file in it",
}


def check_form(path: Path) -> None:
    """Raises UserError for a file that is plainly something else than weights, with what it is."""
    try:
        with path.open("rb") as file:
            start = file.read(64)
    except OSError:
        return  # whoever reads it says why it cannot be read
    if not start and path.is_file():
        raise UserError(f"{path}: is empty; download or copy it again")
    if start[8:9] == b"{" and b"\0" in start[:8]:
        return  # .safetensors, whose first bytes are the length of its header
    for first, form in FORMS.items():
        if start.lstrip().lower().startswith(first):
            raise UserError(f"{path}: is {form}")


def write_tensors(
    file: BinaryIO | HashingFile,
    tensors: Mapping[str, Tensor],
    metadata: dict[str, str],
    load: Callable[[str], Tensor] | None = None,
) -> None:
    """Write a .safetensors: the length of a JSON header, the header, the bytes of each tensor, wide types first.

    load: gives by its name what a meta tensor stands for, when it is its turn, so that one at a time is in memory.

    Not by the library's save_file: it writes to a temporary file with a name of its own, as large as the weights, that
    stays for ever when the process is killed, and whose final form only its owner may read.
    """
    ordered = sorted(tensors.items(), key=lambda entry: (-entry[1].element_size(), entry[0]))
    header: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for name, tensor in ordered:
        begin, end = end, end + tensor.nbytes
        header[name] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that the tensors are aligned
    file.write(len(text).to_bytes(8, "little") + text)
    for name, tensor in ordered:
        tensor = load(name) if tensor.is_meta else tensor
        file.write(memoryview(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()))
