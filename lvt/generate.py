"""Generation of clips of codes, slice by slice and position by position, for a whole batch at once.

Axes: B samples, C codebooks, (T, H, W) clip of codes, (t, h, w) slice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lvt.cached_decoder import CachedDecoder
from lvt.sampling import SampleStreams, SamplingRule, sample_seeds
from lvt.slice_encoder import visible_taps
from lvt.subscale import put_slice, slice_offset, slice_size
from lvt.transformer import VideoTransformer
from training.randomness import derive_seed
from videodata.errors import UserError

Progress = Callable[[int, int], None]  # (positions done, positions in all)


@torch.no_grad()
def generate_codes(
    model: VideoTransformer,
    codes: Tensor,
    n_prime: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    greedy: bool = False,
    generator: torch.Generator | None = None,
    class_idx: Tensor | None = None,
    *,
    seeds: Sequence[int] | None = None,
    compiled: bool = False,
    progress: Progress | None = None,
) -> Tensor:
    """Clips whose first `n_prime` frames are those of `codes` and whose other frames are sampled.

    codes int64 (B, C, T, H, W); what it holds after the first frames does not matter. Randomness comes from `seeds`,
    one per sample, or from seeds that are drawn from `generator`; a sample depends on its own seed alone. class_idx
    int64 (B,) for a class-conditional model. compiled: torch.compile the step (worth it for many clips).
    Raises UserError for sizes that do not fit the model.
    """
    rule = SamplingRule(temperature, top_k, top_p, greedy)
    check_codes(model, codes, n_prime)
    check_classes(model, class_idx)
    streams = SampleStreams(sample_seeds(len(codes), seeds, generator))
    clips = codes.clone()
    clips[:, :, n_prime:] = 0
    training = model.training
    model.eval()
    try:
        return ClipSampler(model, clips, n_prime, rule, class_idx, compiled).run(streams, progress)
    finally:
        model.train(training)


@torch.no_grad()
def generate_long(
    model: VideoTransformer, codes: Tensor, n_prime: int, frames: int, window: int, hop: int = 1, **options: object
) -> Tensor:
    """Clips of any number of `frames`, made in windows of `window` frames that the model can handle at once.

    Each window after the first begins with the last `window - hop` frames of what there is and adds `hop` frames;
    with slices of one frame each (stride (T, 1, 1)) a hop of 1 costs no more than any other. codes int64
    (B, C, >= n_prime, H, W). `options` as for generate_codes.
    """
    if not 1 <= hop < window:
        raise UserError(f"hop must be at least 1 and below the window of {window} frames, found {hop}")
    seeds = sample_seeds(len(codes), options.pop("seeds", None), options.pop("generator", None))
    clip = codes[:, :, :n_prime]
    while clip.shape[2] < frames:
        first = max(0, clip.shape[2] - (window - hop)) if clip.shape[2] > n_prime or n_prime >= window else 0
        known = clip[:, :, first:]
        room = codes.new_zeros(*codes.shape[:2], window - known.shape[2], *codes.shape[3:])
        made = generate_codes(model, torch.cat([known, room], 2), known.shape[2], seeds=seeds, **options)
        seeds = [derive_seed(seed, "next window") for seed in seeds]
        clip = torch.cat([clip[:, :, :first], made], 2)
    return clip[:, :, :frames]


class ClipSampler:
    """Fills in a batch of clips (B, C, T, H, W) in place."""

    def __init__(
        self, model: VideoTransformer, clips: Tensor, n_prime: int, rule: SamplingRule, class_index: Tensor | None,
        compiled: bool,
    ) -> None:  # fmt: skip
        self.model, self.clips, self.n_prime, self.class_index = model, clips, n_prime, class_index
        self.stride = model.config.stride
        self.size = slice_size(tuple(clips.shape[2:]), self.stride)
        self.decoder = CachedDecoder(model, self.size, len(clips), rule, compiled)
        taps = visible_taps(self.size, self.stride, model.config.kernel).to(clips.device)
        self.table = model.encoder.conv.table(taps)  # the same for all slices

    def run(self, streams: SampleStreams, progress: Progress | None) -> Tensor:
        """Sample all positions of all slices that are not known; gives the clips."""
        frame = self.size[1] * self.size[2]
        known = [self.known_frames(number) for number in range(self.model.config.n_slices)]
        total = sum((self.size[0] - count) * frame for count in known)
        done = 0
        for number, count in enumerate(known):
            uniform = streams.uniform(self.size[0] * frame, self.clips.shape[1])  # (B, n, C), for known slices too
            if count == self.size[0]:
                continue
            values, uniform = self.begin(number, count), uniform.to(self.clips.device)
            for position in range(count * frame, self.size[0] * frame):
                sampled = self.decoder.sample(position, uniform[:, position])
                values[:, :, position] = sampled
                done += 1
                if progress is not None:
                    progress(done, total)
            put_slice(self.clips, self.stride, number, values.unflatten(2, self.size))
        return self.clips

    def begin(self, number: int, known_frames: int) -> Tensor:
        """Encode what slice `number` may see and start the decoder; gives the slice's codes (B, C, n) to fill in."""
        index = self.clips.new_full((len(self.clips),), number)
        context, slice_codes = self.model.slice_inputs(self.clips, index)
        encoded = self.model.encoder(context, index, self.class_index, self.table)
        self.decoder.begin(slice_codes, encoded, known_frames)
        return slice_codes.flatten(2)

    def known_frames(self, number: int) -> int:
        """Frames of slice `number` that lie within the first n_prime frames of the clip."""
        first = slice_offset(number, self.stride)[0]
        return min(self.size[0], max(0, -(-(self.n_prime - first) // self.stride[0])))


def check_classes(model: VideoTransformer, class_index: Tensor | None) -> None:
    """Raises UserError for classes that the model does not know."""
    count = model.config.class_num
    if count and class_index is not None and not (int(class_index.min()) >= 0 and int(class_index.max()) < count):
        raise UserError(f"classes must be 0 .. {count - 1}, found {class_index.tolist()}")


def check_codes(model: VideoTransformer, codes: Tensor, n_prime: int) -> None:
    """Raises UserError for codes of the wrong shape or range, and for more known frames than there are."""
    config = model.config
    if codes.ndim != 5 or codes.shape[1] != config.nc or codes.dtype != torch.int64:
        raise UserError(f"codes must be int64 (B, {config.nc}, T, H, W), found {codes.dtype} {tuple(codes.shape)}")
    if not 0 <= n_prime <= codes.shape[2]:
        raise UserError(f"{n_prime} known frames do not fit a clip of {codes.shape[2]} frames")
    known = codes[:, :, :n_prime]
    if known.numel() and not (int(known.min()) >= 0 and int(known.max()) < config.nv):
        raise UserError(f"codes must be 0 .. {config.nv - 1}, found {int(known.min())} .. {int(known.max())}")
