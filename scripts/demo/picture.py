"""One picture of all that a demonstration made: frames of two clips of each model, one row per kind."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from evaluation.gallery import Grid, Section
from evaluation.gallery.content import read_clip
from videodata.atomic import atomic_path

CLIPS = 2  # beside each other
MOST_ROWS = 3  # of a model
SIDE, GAP, MODEL_GAP, CLIP_GAP, MARGIN, LABEL = 60, 3, 22, 22, 24, 190
INK, SOFT, PAPER, MARK = (23, 27, 34), (89, 99, 111), (255, 255, 255), (36, 88, 211)


def write_picture(path: Path, sections: Sequence[Section]) -> Path:
    """Draw the first grid of every section."""
    blocks = [(section.name, grid) for section in sections for grid in section.clips[:1] if isinstance(grid, Grid)]
    drawn = [(name, grid.given, list(strips(grid))) for name, grid in blocks]
    rows = sum(len(lines) for _, _, lines in drawn)
    width = max((strip.shape[1] for _, _, lines in drawn for _, strip in lines), default=0)
    size = 2 * MARGIN + LABEL + width, 2 * MARGIN + rows * (SIDE + GAP) + (len(drawn) - 1) * MODEL_GAP
    image = Image.new("RGB", size, PAPER)
    draw, top = ImageDraw.Draw(image), MARGIN
    large, small = ImageFont.load_default(17), ImageFont.load_default(14)
    for name, given, lines in drawn:
        draw.text((MARGIN, top), name, INK, large)
        first = top
        for index, (kind, strip) in enumerate(lines):
            draw.text((MARGIN, top + SIDE // 2 - (8 if index else -4)), kind, SOFT, small)
            image.paste(Image.fromarray(strip), (MARGIN + LABEL, top))
            top += SIDE + GAP
        if given:
            mark_given(draw, given, lines[0][1].shape[1], first, top)
        top += MODEL_GAP
    with atomic_path(path) as temporary:
        image.save(temporary, format="png")
    return path


def strips(grid: Grid) -> Iterator[tuple[str, np.ndarray]]:
    """(kind, the frames of the first clips in a row) for the first rows of a grid."""
    for kind, clips in list(grid.rows.items())[:MOST_ROWS]:
        parts = [frames_in_a_row(read_clip(clip)[0]) for clip in clips[:CLIPS]]
        space = np.full((SIDE, CLIP_GAP, 3), PAPER, np.uint8)
        yield kind, np.concatenate([part for strip in parts for part in (space, strip)][1:], axis=1)


def frames_in_a_row(frames: np.ndarray) -> np.ndarray:
    """Frames (T, H, W, 3) as one strip of squares, enlarged without smoothing."""
    space = np.full((SIDE, GAP, 3), PAPER, np.uint8)
    squares = [np.asarray(Image.fromarray(frame).resize((SIDE, SIDE), Image.Resampling.BOX)) for frame in frames]
    return np.concatenate([part for square in squares for part in (space, square)][1:], axis=1)


def mark_given(draw: ImageDraw.ImageDraw, given: int, width: int, top: int, bottom: int) -> None:
    """A line between the frames that a predictor is given and those that it makes, in each clip."""
    clip = (width - CLIP_GAP) // 2 if width > SIDE * 12 else width
    for start in range(0, width, clip + CLIP_GAP):
        across = MARGIN + LABEL + start + given * (SIDE + GAP) - GAP + GAP // 2
        draw.line((across, top - 5, across, bottom - GAP + 5), MARK, 2)
