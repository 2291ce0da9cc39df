"""The data sets of the named protocols, in miniature."""

from __future__ import annotations

import json
import shlex
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from evaluation.protocols import NamedProtocol
from tests.videodata.miniatures import prepare
from videodata import write_video

SIZES = {  # of the miniatures, long enough for their protocols
    "bair": {"test": 5},
    "kth": {"length": 50},
    "clevrer": {"frames": 128},
    "ucf101": {"frames": 20},
    "kinetics600": {"frames": 20},
    "moving_mnist": {},
}
FILMS = {"davis": (3, 52), "mcl-jcv": (2, 20)}  # how many, of how many frames


@pytest.fixture(scope="session")
def protocol_data(tmp_path_factory):
    """A function that prepares the data of a protocol below a folder, as its command says, and gives that folder."""
    root = tmp_path_factory.mktemp("protocols")

    @cache
    def made_by(command: str) -> None:
        flags = shlex.split(command)[2:]
        prepare(flags, root / flags[0], **SIZES[flags[0]])

    def films(name: str) -> None:
        count, frames = FILMS[name]
        for number in range(count):
            pixels = np.full((frames, 48, 64, 3), 40 + 60 * number, np.uint8)
            write_video(root / "data" / name / f"{number}.mp4", pixels, 30)
        (root / "data" / f"{name}.json").write_text(json.dumps({"dataset": name}))

    def prepared(protocol: NamedProtocol) -> Path:
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(root)
            if protocol.id in FILMS:
                films(protocol.id)
            else:
                made_by(protocol.prepare)
        return root

    return prepared
