"""FVD or FID within an evaluation: which frames, the first sample alone, features of real clips kept on the disk."""

from __future__ import annotations

import torch
from torch import Tensor

from evaluation.feature_cache import FeatureCache
from evaluation.features import FeatureExtractor
from evaluation.gather import gather_batches
from evaluation.protocol import Protocol
from evaluation.report import Score
from evaluation.set_distance import SetDistance
from training import distributed
from videodata.clips import ClipDataset


class SetScores:
    """One distance over one pass through the clips, of which the first `context` frames are given.

    Raises UserError where there are too few clips.
    """

    def __init__(
        self,
        kind: type[SetDistance],
        extractor: FeatureExtractor,
        clips: ClipDataset,
        protocol: Protocol,
        context: int,
    ) -> None:
        self.distance = kind(extractor, quantize=protocol.quantize, force=protocol.force)
        self.context, self.start = context, context if protocol.fvd_frames == "predicted" else 0
        self.per_clip = clips.frames - self.start if self.distance.counted == "frames" else 1
        self.distance.check_count(len(clips) * self.per_clip)
        self.cache = FeatureCache(protocol.feature_cache, self._key(clips, protocol))
        known = self.cache.read(len(clips) * self.per_clip)
        if distributed.any_process(known is None):  # so that all processes do the same
            known = None
        self.known = None if known is None else known.unflatten(0, (len(clips), self.per_clip))
        self._fresh: list[Tensor] = []

    def update(self, clips: Tensor, made: Tensor, items: list[int]) -> None:
        """Take in a batch of clips and what was made of them."""
        self.distance.update(generated=made[:, :, self.start :])
        if self.known is None:
            self._fresh.append(self.distance.features(clips[:, :, self.start :]))
        real = self._fresh[-1] if self.known is None else self.known[items].flatten(0, 1)
        self.distance.add_features("real", real)

    def score(self) -> Score:
        """The distance over all processes; keeps the features of the real clips."""
        if self.known is None:
            batches = gather_batches(self._fresh)
            if distributed.is_main():
                self.cache.write(torch.cat(batches))
        score = self.distance.over_processes().score()
        score.notes |= {"sample": "the first of each clip", "given_frames": self._given_frames()}
        return score

    def _given_frames(self) -> str:
        if not self.context:
            return "none"
        return "left out of both sets" if self.start else "part of both sets"

    def _key(self, clips: ClipDataset, protocol: Protocol) -> dict[str, object]:
        extractor = self.distance.extractor
        return {
            "network": extractor.identity,
            "data": clips.fingerprint(),
            "windows": (clips.windows, clips.seed, clips.frames, clips.stride, clips.size, clips.reading),
            "preprocessing": (extractor.text, protocol.quantize, self.start),
        }
