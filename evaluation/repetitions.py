"""Scores of repeated evaluations as one, with an interval over the repetitions."""

from __future__ import annotations

from statistics import fmean

from evaluation.confidence import over_repetitions
from evaluation.report import Score


def merge_repetitions(runs: list[list[Score]]) -> list[Score]:
    """One Score per metric: the mean over the repetitions, with Student's t interval and the value of each.

    What is per clip holds the clips of all repetitions, one after another; notes are those of the first.
    """
    if len(runs) == 1:
        return runs[0]
    return [_merged(list(scores)) for scores in zip(*runs, strict=True)]


def _merged(scores: list[Score]) -> Score:
    values, first = [score.mean for score in scores], scores[0]
    curves = [score.per_frame for score in scores]
    return Score(
        first.definition,
        [value for score in scores for value in score.per_clip],
        first.label,
        [fmean(column) for column in zip(*curves, strict=True)] if all(curves) else None,
        {**first.notes, "per_repetition": values},
        value=fmean(values),
        interval=over_repetitions(values),
    )
