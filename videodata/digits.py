"""Generated videos of handwritten digits that move, bounce off the walls and cross, in the manner of Moving MNIST.

The handwriting is in `digits.npz` (whose it is: `digits.npz.license`); all else follows from (seed, index). A digit's
image is a cubic spline through its 8x8 pixels, which is evaluated at the pixels of the frame wherever the digit
is: the same shape at every fraction of a pixel, any frame without those before it, any size. Digits that val and
test show were written on other sheets of paper than those of train.
"""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from videodata.errors import UserError
from videodata.resize import Size
from videodata.shapes import LENGTH, bounce
from videodata.source import GeneratedSource, Objects, by_split

FILE = Path(__file__).with_name("digits.npz")
FORMS = {"train": range(10), "val": range(10, 12), "test": range(12, 14)}  # 14 sheets of about 128 digits
UNIT = 32  # lengths are in pixels of a frame whose shorter side has that many
CELLS, SIDE = 8, 14  # pixels of an image, and the room that they take in the frame
RADIUS = SIDE / 2 + 0.5  # from a digit's centre to a wall: the soft edge of a stroke is as wide as that half
SPEED = (0.8, 2.6)
MARGIN = 4  # empty pixels around an image, beyond which its spline is 0 to 1 in 200
FAINT, FULL = 0.15, 0.8  # shares of ink that become black and white: blurred strokes turn into crisp ones


class Handwriting(NamedTuple):
    """The images of the file, each the digit `labels[i]` written on the sheet `forms[i]`."""

    images: np.ndarray  # float32 (1797, 8, 8) in [0, 1]
    labels: np.ndarray
    forms: np.ndarray


@dataclass(frozen=True)
class Digit:
    """One moving digit. Lengths are in pixels of a frame of UNIT pixels, times in frames."""

    image: int  # its number in the file
    position: np.ndarray  # (2,) (y, x) of the centre at frame 0
    velocity: np.ndarray  # (2,) per frame
    color: np.ndarray  # (3,) RGB in [0, 1]


class Digits(GeneratedSource):
    """`count` generated videos; the label is the digits that a video shows, in ascending order: "07", "3".

    speed: slowest and fastest, in pixels of a 32x32 frame per video frame. colour: each digit has its own.
    Eight of ten videos are declared train, one val and one test.
    """

    kind = "digits"

    def __init__(
        self,
        count: int,
        frames: int = LENGTH,
        size: int | Size = UNIT,
        digits: int = 2,
        speed: tuple[float, float] = SPEED,
        colour: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(count, frames, size, seed)
        if digits not in (1, 2, 3):
            raise UserError(f"a video shows 1, 2 or 3 digits, found {digits}")
        if not 0 <= speed[0] <= speed[1] <= UNIT:
            raise UserError(f"speeds are 0 <= slowest <= fastest <= {UNIT} pixels a frame, found {speed}")
        self._digits, self._speed, self._colour = digits, speed, colour

    @classmethod
    def parse(cls, text: str) -> Digits:
        """Read "digits:200" or "digits:200,frames=20,size=64,digits=3,speed=0.5-3,colour=1,seed=3"."""
        count, *settings = text.removeprefix("digits:").split(",")
        try:
            options = dict(setting.split("=") for setting in settings)
            numbers = {name: int(value) for name, value in options.items() if name not in ("speed", "colour")}
            if "speed" in options:
                numbers["speed"] = speed_range(options["speed"])
            if "colour" in options:
                numbers["colour"] = bool(("0", "1").index(options["colour"]))
            return cls(int(count), **numbers)
        except (ValueError, TypeError) as error:
            form = 'digits:<count>, such as digits:2000 or "digits:2000,frames=20,size=64,digits=3,speed=1-2,colour=1"'
            raise UserError(f"{text}: generated digits are named {form}") from error

    def id(self, index: int) -> str:
        return f"{self.label(index)}/digits_{index + 1:05d}"

    def label(self, index: int) -> str:
        chosen = _choose_images(np.random.default_rng((self._seed, index)), index, self._digits)
        return "".join(map(str, sorted(read_handwriting().labels[chosen])))

    def stamp(self, index: int) -> str:
        slowest, fastest = self._speed
        return f"seed {self._seed}, speed {slowest:g}-{fastest:g}" + (", coloured" if self._colour else "")

    def splits(self) -> dict[str, list[int]] | None:
        return by_split([split_of(index) for index in range(self._count)])

    def objects(self, index: int, times: Sequence[int], size: Size | None = None) -> Objects:
        size = size or self._size
        digits, room = self._make(index, size), UNIT * np.array(size) / min(size)
        centres = np.stack([path(digit, np.array(times), room) for digit in digits]) / UNIT
        kinds = read_handwriting().labels[[digit.image for digit in digits]].astype(np.int64)
        return Objects(kinds, np.stack([digit.color for digit in digits]), centres)

    def _draw(self, index: int, times: range, size: Size) -> np.ndarray:
        return draw(self._make(index, size), times, size)

    def _make(self, index: int, size: Size) -> list[Digit]:
        return make_digits(self._seed, index, self._digits, self._speed, self._colour, size[1] / size[0])


def speed_range(text: str) -> tuple[float, float]:
    """ "1-2.5", or "2" for one speed. Raises ValueError."""
    slowest, _, fastest = text.partition("-")
    return float(slowest), float(fastest or slowest)


def split_of(index: int) -> str:
    """Of every ten videos the second is val and the third test, so that the first three of a source have all."""
    return {1: "val", 2: "test"}.get(index % 10, "train")


def make_digits(
    seed: int, index: int, count: int = 2, speed: tuple[float, float] = SPEED, colour: bool = False, aspect: float = 1.0
) -> list[Digit]:
    """The digits of video `index`; aspect is width / height of the room in which they move."""
    rng = np.random.default_rng((seed, index))
    images = _choose_images(rng, index, count)
    room = UNIT * np.array([max(1.0, 1 / aspect), max(1.0, aspect)])  # (height, width)
    positions = rng.uniform(RADIUS, room - RADIUS, (count, 2))
    directions, speeds = rng.uniform(0, 2 * np.pi, count), rng.uniform(*speed, count)
    velocities = speeds[:, None] * np.stack([np.sin(directions), np.cos(directions)], axis=1)
    hues = (
        rng.random() + np.arange(count) / count + rng.uniform(-0.06, 0.06, count)
    )  # last, so that grey clips are alike
    colors = [colorsys.hsv_to_rgb(hue % 1, rng.uniform(0.65, 0.9), 1.0) if colour else (1.0, 1.0, 1.0) for hue in hues]
    return [Digit(*each) for each in zip(images.tolist(), positions, velocities, map(np.array, colors), strict=True)]


def draw(digits: list[Digit], times: range, size: Size) -> np.ndarray:
    """Frames at the given times: uint8 (T, H, W, 3). Where digits cross, the brighter one is seen."""
    height, width = size
    scale = min(height, width) / UNIT
    room, times = np.array([height, width]) / scale, np.array(times)
    channels = 1 if all((digit.color == 1).all() for digit in digits) else 3
    frames = np.zeros((len(times), height, width, channels), np.float32)
    side = min(int(np.ceil(2 * RADIUS * scale)) + 1, height, width)  # of the square that is touched
    for digit in digits:
        centres = path(digit, times, room)
        corners = np.clip((scale * (centres - RADIUS)).astype(int), 0, np.array(size) - side)
        places = (corners[..., None] + np.arange(2 * side + 1) / 2) / scale  # (T, 2, 2 * side + 1): edges and middles
        weights = _spline((places - centres[..., None]) * (CELLS / SIDE) + (CELLS - 1) / 2)
        ink = weights[:, 0] @ read_handwriting().images[digit.image] @ weights[:, 1].transpose(0, 2, 1)
        ink = np.clip((ink - FAINT) / (FULL - FAINT), 0, 1)
        ink = _halve(_halve(ink).transpose(0, 2, 1)).transpose(0, 2, 1)
        ink = ink[..., None] * digit.color[:channels].astype(np.float32)
        for frame, (top, left), patch in zip(frames, corners, ink, strict=True):
            seen = frame[top : top + side, left : left + side]
            np.maximum(seen, patch, out=seen)
    pixels = np.rint(frames * 255).astype(np.uint8)
    return pixels if channels == 3 else np.repeat(pixels, 3, axis=-1)


def path(digit: Digit, times: np.ndarray, room: np.ndarray) -> np.ndarray:
    """Where a digit's centre is at the times (T,): (T, 2)."""
    return bounce(digit.position + digit.velocity * times[:, None], RADIUS, room)


@cache
def read_handwriting() -> Handwriting:
    """The vendored file, read once."""
    with np.load(FILE, allow_pickle=False) as file:
        return Handwriting((file["images"] / 16).astype(np.float32), file["labels"], file["forms"])


@cache
def _images_of(split: str) -> np.ndarray:
    return np.flatnonzero(np.isin(read_handwriting().forms, list(FORMS[split])))


def _choose_images(rng: np.random.Generator, index: int, count: int) -> np.ndarray:
    """The first draws of a video's generator: numbers of images, from the sheets of its split."""
    return rng.choice(_images_of(split_of(index)), count)


def _spline(places: np.ndarray) -> np.ndarray:
    """Weights (..., 8) of eight pixels, at 0 to 7 with nothing around them, in their cubic spline at `places`."""
    knots = np.arange(-MARGIN, CELLS + MARGIN)
    return (_basis(places[..., None].astype(np.float32) - knots.astype(np.float32)) @ _coefficients()).astype(
        np.float32
    )


def _halve(ink: np.ndarray) -> np.ndarray:
    """Ink at the edges and middles of n pixels (T, 2 n + 1, W) -> at the pixels (T, n, W), by a triangle filter."""
    return (ink[:, 0:-2:2] + 2 * ink[:, 1:-1:2] + ink[:, 2::2]) / 4


@cache
def _coefficients() -> np.ndarray:
    """(16, 8): what the values of eight pixels make of the coefficients of the B-splines at all knots."""
    knots = np.arange(CELLS + 2 * MARGIN)
    return np.linalg.inv(_basis(knots[:, None] - knots[None]))[:, MARGIN : MARGIN + CELLS].astype(np.float32)


def _basis(distance: np.ndarray) -> np.ndarray:
    """The cubic B-spline."""
    distance = abs(distance)
    return np.where(distance < 1, 2 / 3 - distance**2 + distance**3 / 2, np.maximum(2 - distance, 0) ** 3 / 6)
