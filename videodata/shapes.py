"""Generated videos: coloured shapes that move, turn, bounce off the walls and pass in front of each other.

Everything follows from (seed, index): no files, no download, any size and length. Positions have a closed form in
time, so any frame can be drawn without the frames before it.
"""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from videodata.errors import UserError
from videodata.resize import Size
from videodata.source import GeneratedSource, Objects

CLASSES = ("Circles", "Squares", "Triangles", "Mixed")
KINDS = ("circle", "square", "triangle")
LENGTH = 64  # frames of a video unless told otherwise


@dataclass(frozen=True)
class Shape:
    """One moving object. Lengths are in units of the shorter side, times in frames, angles in radians."""

    kind: str
    color: np.ndarray  # (3,) RGB in [0, 1]
    radius: float
    position: np.ndarray  # (2,) (y, x) at frame 0
    velocity: np.ndarray  # (2,) per frame
    angle: float
    spin: float  # per frame


@dataclass(frozen=True)
class Scene:
    """A background and the shapes before it, nearest last."""

    colors: np.ndarray  # (2, 3) the two ends of the background's gradient
    direction: float
    shapes: tuple[Shape, ...]


class Shapes(GeneratedSource):
    """Videos of two or three shapes; the label says which kind a video shows."""

    kind = "shapes"

    def __init__(self, count: int, frames: int = LENGTH, size: int | Size = 64, seed: int = 0) -> None:
        super().__init__(count, frames, size, seed)

    @classmethod
    def parse(cls, text: str) -> Shapes:
        """Read "shapes:200" or "shapes:200,frames=100,size=128,seed=3"."""
        count, *settings = text.removeprefix("shapes:").split(",")
        try:
            options = {name: int(value) for name, value in (setting.split("=") for setting in settings)}
            return cls(int(count), **options)
        except (ValueError, TypeError) as error:
            form = "shapes:<count>, such as shapes:200 or shapes:200,frames=100,size=128,seed=3"
            raise UserError(f"{text}: generated videos are named {form}") from error

    def id(self, index: int) -> str:
        return f"{self.label(index)}/v_{self.label(index)}_g{index // len(CLASSES) + 1:02d}_c01"

    def label(self, index: int) -> str:
        return CLASSES[index % len(CLASSES)]

    def stamp(self, index: int) -> str:
        return f"seed {self._seed}"

    def objects(self, index: int, times: Sequence[int], size: Size | None = None) -> Objects:
        size = size or self._size
        shapes, room = make_scene(self._seed, index, size[1] / size[0]).shapes, np.array(size) / min(size)
        kinds = np.array([KINDS.index(shape.kind) for shape in shapes])
        centres = np.stack([path(shape, np.array(times)[:, None], room) for shape in shapes])
        return Objects(kinds, np.stack([shape.color for shape in shapes]), centres)

    def _draw(self, index: int, times: range, size: Size) -> np.ndarray:
        return draw(make_scene(self._seed, index, size[1] / size[0]), np.array(times), size)


def make_scene(seed: int, index: int, aspect: float = 1.0) -> Scene:
    """The scene of video `index`; aspect is width / height of the room in which the shapes move."""
    rng = np.random.default_rng((seed, index))
    label = CLASSES[index % len(CLASSES)]
    room = np.array([max(1.0, 1 / aspect), max(1.0, aspect)])  # (height, width), the shorter one is 1
    hues = rng.random() + np.arange(4) / 4 + rng.uniform(-0.06, 0.06, 4)
    shapes = []
    for number in range(int(rng.integers(2, 4))):
        kind = KINDS[int(rng.integers(3))] if label == "Mixed" else label[:-1].lower()
        radius, direction, speed = rng.uniform(0.13, 0.22), rng.uniform(0, 2 * np.pi), rng.uniform(0.012, 0.035)
        shapes.append(
            Shape(
                kind=kind,
                color=_rgb(hues[number], rng.uniform(0.65, 0.95), rng.uniform(0.85, 1.0)),
                radius=radius,
                position=rng.uniform(radius, room - radius),
                velocity=speed * np.array([np.sin(direction), np.cos(direction)]),
                angle=rng.uniform(0, 2 * np.pi),
                spin=rng.uniform(-0.08, 0.08),
            )
        )
    ends = _rgb(hues[3], 0.45, rng.uniform(0.2, 0.35)), _rgb(hues[3] + 0.08, 0.3, rng.uniform(0.5, 0.65))
    return Scene(np.stack(ends), rng.uniform(0, 2 * np.pi), tuple(shapes))


def draw(scene: Scene, times: np.ndarray, size: Size) -> np.ndarray:
    """Frames of a scene at the given times: uint8 (T, H, W, 3), antialiased."""
    height, width = size
    unit = min(height, width)
    y = ((np.arange(height) + 0.5) / unit).astype(np.float32)[:, None]  # (H, 1)
    x = ((np.arange(width) + 0.5) / unit).astype(np.float32)[None, :]  # (1, W)
    slope = np.sin(scene.direction) * (y / y.max() - 0.5) + np.cos(scene.direction) * (x / x.max() - 0.5)
    mix = (0.5 + slope / np.sqrt(2))[..., None].astype(np.float32)  # (H, W, 1) in [0, 1]
    ends = scene.colors.astype(np.float32)
    frames = np.repeat((ends[0] * (1 - mix) + ends[1] * mix)[None], len(times), axis=0)  # (T, H, W, 3)
    room = np.array([height, width]) / unit
    for shape in scene.shapes:
        for frame, time in zip(frames, times, strict=True):
            _paint(frame, shape, time, room, unit)
    return np.rint(frames * 255).astype(np.uint8)


def _paint(frame: np.ndarray, shape: Shape, time: int, room: np.ndarray, unit: int) -> None:
    """Lay one shape and its soft shadow over a frame (H, W, 3), touching only the pixels around it."""
    centre = path(shape, time, room)
    reach = 1.6 * shape.radius
    top, left = np.maximum(((centre - reach) * unit).astype(int), 0)
    bottom, right = np.minimum(((centre + reach) * unit).astype(int) + 2, frame.shape[:2])
    y = ((np.arange(top, bottom) + 0.5) / unit - centre[0]).astype(np.float32)[:, None]
    x = ((np.arange(left, right) + 0.5) / unit - centre[1]).astype(np.float32)[None, :]
    patch = frame[top:bottom, left:right]
    angle = shape.angle + shape.spin * time
    offset = 0.16 * shape.radius
    shadow = _distance(shape.kind, y - offset, x - offset, shape.radius, angle) / (0.5 * shape.radius)
    patch *= 1 - 0.45 * np.clip(0.5 - shadow, 0, 1)[..., None]
    cover = np.clip(0.5 - _distance(shape.kind, y, x, shape.radius, angle) * unit, 0, 1)[..., None]
    light = np.clip(1 - 0.22 * (y + x) / shape.radius, 0.6, 1.25)[..., None]  # lit from the top left
    patch += cover * (np.minimum(shape.color.astype(np.float32) * light, 1) - patch)


def path(shape: Shape, time: int | np.ndarray, room: np.ndarray) -> np.ndarray:
    """Where a shape's centre is at a time: (2,), or at times (T, 1): (T, 2)."""
    return bounce(shape.position + shape.velocity * time, shape.radius, room)


def bounce(position: np.ndarray, radius: float, room: np.ndarray) -> np.ndarray:
    """Fold a straight path into the room: a triangle wave between the walls, for each axis."""
    span = room - 2 * radius
    phase = np.mod(position - radius, 2 * span)
    return radius + np.where(phase < span, phase, 2 * span - phase)


def _distance(kind: str, y: np.ndarray, x: np.ndarray, radius: float, angle: float) -> np.ndarray:
    """Signed distance to the outline, negative inside; all three kinds fit in the circle of that radius."""
    if kind == "circle":
        return np.sqrt(y * y + x * x) - np.float32(0.9 * radius)
    sides = {"square": 4, "triangle": 3}[kind]
    inner = np.float32(radius * np.cos(np.pi / sides))
    normals = angle + 2 * np.pi * np.arange(sides) / sides
    planes = [np.float32(np.sin(n)) * y + np.float32(np.cos(n)) * x for n in normals]
    return np.maximum.reduce(planes) - inner


def _rgb(hue: float, saturation: float, value: float) -> np.ndarray:
    return np.array(colorsys.hsv_to_rgb(hue % 1, saturation, value))
