"""Pictures that show a page's clips without a browser: one still of all models, and a film of continuations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from evaluation.gallery.content import Clip, Grid, Section, read_clip
from videodata.files import atomic_path

# lengths in pixels, colours
CLIPS, MOST_ROWS = 2, 5  # of a model in the still: clips beside each other, rows
MOST_FRAMES = 8  # of a clip in the still; of longer ones every n-th
SIDE, GAP, MODEL_GAP, CLIP_GAP, MARGIN, LABEL = 128, 4, 40, 32, 36, 250
INK, SOFT, PAPER, MARK, NEW = (23, 27, 34), (89, 99, 111), (255, 255, 255), (36, 88, 211), (214, 120, 20)
# of the film
FILM_CLIPS = 3
EDGE, HEAD, CAPTION = 4, 40, 52  # around a frame; for a line of words, for two
FRAME_TIME, LAST_TIME = 170, 1500  # milliseconds
LARGEST = 1_900_000  # bytes; a larger film is compressed with loss


def write_picture(path: Path, sections: Sequence[Section]) -> Path:
    """Frames of the first two clips of each section, one row per kind of its first grid; gives the path."""
    blocks = [(section.name, grid) for section in sections for grid in section.clips[:1] if isinstance(grid, Grid)]
    drawn = [(name, grid.given, *strips(grid)) for name, grid in blocks]
    heights = [(2 if given else 1) * HEAD + len(lines) * (SIDE + GAP) for _, given, lines, _ in drawn]
    width = max((strip.shape[1] for _, _, lines, _ in drawn for _, strip in lines), default=0)
    size = 2 * MARGIN + LABEL + width, 2 * MARGIN + sum(heights) + max(0, len(drawn) - 1) * MODEL_GAP
    image = Image.new("RGB", size, PAPER)
    draw, top = ImageDraw.Draw(image), MARGIN
    large, small = ImageFont.load_default(28), ImageFont.load_default(22)
    for (name, given, lines, shown), height in zip(drawn, heights, strict=True):
        draw.text((MARGIN, top), name, INK, large)
        for row, (kind, strip) in enumerate(lines):
            place = top + height - (len(lines) - row) * (SIDE + GAP)
            draw.text((MARGIN, place + SIDE // 2 - 12), kind, SOFT, small)
            image.paste(Image.fromarray(strip), (MARGIN + LABEL, place))
        if given and lines:
            mark_given(draw, shown, given, lines[0][1].shape[1], (top + HEAD, top + height))
        top += height + MODEL_GAP
    with atomic_path(path) as temporary:
        image.save(temporary, format="png", optimize=True)
    return path


def strips(grid: Grid) -> tuple[list[tuple[str, np.ndarray]], list[int]]:
    """(kind, the frames of the first clips in a row) for the first rows of a grid, and the numbers of these frames."""
    rows = {kind: [read_clip(clip)[0] for clip in clips[:CLIPS]] for kind, clips in list(grid.rows.items())[:MOST_ROWS]}
    shown = frames_shown(max((len(frames) for clips in rows.values() for frames in clips), default=0))
    space = np.full((SIDE, CLIP_GAP, 3), PAPER, np.uint8)
    lines = []
    for kind, clips in rows.items():
        parts = [frames_in_a_row(frames, shown) for frames in clips]
        if parts:
            lines.append((kind, np.concatenate([part for strip in parts for part in (space, strip)][1:], axis=1)))
    return lines, shown


def frames_shown(count: int) -> list[int]:
    """The numbers, from 0, of at most MOST_FRAMES frames: of 16 every second, with the last."""
    step = -(-count // MOST_FRAMES) if count else 1
    return list(range((count - 1) % step, count, step))


def frames_in_a_row(frames: np.ndarray, shown: Sequence[int]) -> np.ndarray:
    """The chosen frames (T, H, W, 3) as one strip of squares; empty ones where the clip has no such frame."""
    space, none = np.full((SIDE, GAP, 3), PAPER, np.uint8), np.full((SIDE, SIDE, 3), PAPER, np.uint8)
    squares = [enlarged(frames[number], SIDE) if number < len(frames) else none for number in shown]
    return np.concatenate([part for square in squares for part in (space, square)][1:], axis=1)


def enlarged(frame: np.ndarray, side: int) -> np.ndarray:
    """A frame (H, W, 3) as a square, without smoothing."""
    return np.asarray(Image.fromarray(frame).resize((side, side), Image.Resampling.BOX))


def mark_given(draw: ImageDraw.ImageDraw, shown: Sequence[int], given: int, width: int, rows: tuple[int, int]) -> None:
    """Words over the frames that a predictor is given and over those that it makes, a line between, in each clip."""
    top, bottom = rows
    known = sum(number < given for number in shown)
    clip, small = len(shown) * (SIDE + GAP) - GAP, ImageFont.load_default(22)
    for start in range(MARGIN + LABEL, MARGIN + LABEL + width, clip + CLIP_GAP):
        across = start + known * (SIDE + GAP) - GAP // 2
        draw.text((start, top + 4), "given", MARK, small)
        draw.text((across + 4, top + 4), "predicted", NEW, small)
        draw.rectangle((across - 1, top + HEAD - 6, across, bottom), MARK)


def write_film(path: Path, columns: Mapping[str, Sequence[Clip]], given: int) -> Path:
    """An animated WebP: a column for each kind, a row for each of the first clips, given frames in a blue frame and
    predicted ones in an orange one.
    """
    clips = {kind: [read_clip(clip)[0] for clip in chosen[:FILM_CLIPS]] for kind, chosen in columns.items()}
    count = max(len(frames) for chosen in clips.values() for frames in chosen)
    images = [film_frame(clips, number, given) for number in range(count)]
    times = [*[FRAME_TIME] * (count - 1), LAST_TIME]
    for options in ({"lossless": True}, {"quality": 80}):
        with atomic_path(path) as temporary:
            images[0].save(
                temporary, format="webp", save_all=True, append_images=images[1:], duration=times, loop=0, method=4,
                **options,
            )  # fmt: skip
        if path.stat().st_size <= LARGEST:
            break
    return path


def film_frame(clips: Mapping[str, Sequence[np.ndarray]], number: int, given: int) -> Image.Image:
    """One moment of all clips. A clip that has ended waits on its last frame; those of other kinds than the first are
    given their first frames.
    """
    tile, rows = SIDE + 2 * EDGE, max(len(chosen) for chosen in clips.values())
    size = GAP + len(clips) * (tile + 2 * GAP), CAPTION + rows * (tile + 2 * GAP) + HEAD
    image = Image.new("RGB", size, PAPER)
    draw, small = ImageDraw.Draw(image), ImageFont.load_default(17)
    color = MARK if number < given else NEW
    for column, (kind, chosen) in enumerate(clips.items()):
        left = GAP + column * (tile + 2 * GAP)
        place = left + tile / 2, CAPTION / 2
        draw.text(place, kind.replace(", ", "\n"), INK, small, anchor="mm", align="center")
        for row, frames in enumerate(chosen):
            top = CAPTION + row * (tile + 2 * GAP)
            draw.rectangle((left, top, left + tile - 1, top + tile - 1), SOFT if not column else color)
            square = Image.fromarray(frames[min(number, len(frames) - 1)]).resize(
                (SIDE, SIDE), Image.Resampling.BICUBIC
            )
            image.paste(square, (left + EDGE, top + EDGE))
    text = f"frame {number + 1}: " + ("given" if number < given else "predicted")
    draw.text((size[0] / 2, size[1] - HEAD / 2), text, color, small, anchor="mm")
    return image
