"""Continue test videos with a trained predictor, write what it predicts, and score it.

Files: HDF5 with the original's keys, films and arrays beside the true video, a picture.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from fractions import Fraction
from functools import partial
from pathlib import Path

import h5py
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from evaluation.measuring import Pass
from evaluation.protocol import Protocol
from evaluation.report import Report
from evaluation.runner import trained_on_of
from evaluation.subject import Batch
from flow_pred.files import load_model, role_of
from flow_pred.predict import CallCounter, Plan, Prediction, plan_for, predict
from flow_pred.scores import NO_TRUTH, Predictions
from training.distributed import announced, is_main, join_processes, print0
from training.writing import check_place
from videodata.clips import ClipDataset, open_clips
from videodata.encode import write_video
from videodata.errors import UserError
from videodata.files import write_file
from videodata.frame_folder import write_png
from videodata.hdf5 import SMALL_CACHE_BYTES, check_room, new_hdf5
from videodata.labels import class_number
from videodata.pixels import to_uint8
from videodata.splits import evaluation_split

GAP = 2  # pixels between original and prediction
# of strip.png, in pixels: the words at the left and above; frames of fewer are enlarged; the line after the given ones
LEFT, HEAD, SMALLEST, MARK = 68, 18, 64, (36, 88, 211)


def generate_flow_pred(args: argparse.Namespace) -> None:
    """The command scripts/generate_flow_videos.py: predict the videos of a split, write them, score them."""
    device = announced(join_processes(args.device))
    if is_main():
        check_place(args.out / "metrics.json")  # now, and not after the work
    files = {role: (getattr(args, f"ckpt_{role}"), getattr(args, f"config_{role}")) for role in "fdg"}
    role = role_of(args.checkpoint, args.config) if args.checkpoint else "river"
    files["river" if role == "river" else "f"] = (args.checkpoint, args.config)
    loaded = load_model(files, device, args.autoencoder, args.alpha, args.gscale)
    plan = plan_for(
        loaded.predictor, loaded.config, context=args.context, frames=args.frames, steps=args.steps,
        solver=args.solver, atol=args.atol, res=args.res, grid=args.grid, past_horizon=args.past_horizon,
        warm_start=args.warm_start, seed=args.seed,
    )  # fmt: skip
    classes = getattr(loaded.predictor, "classes", ())
    if args.class_name is not None:
        class_number(classes, args.class_name)
    if args.guidance != 1 and not classes:
        raise UserError(f"--guidance {args.guidance:g}: the model was trained without classes")
    if args.metrics and not plan.fine:
        raise UserError(NO_TRUTH)
    data, size = args.data or loaded.config.data.data_root, loaded.config.data.crop_size
    split = args.split or evaluation_split(data)
    clips = open_clips(
        data,
        frames=plan.read_frames,
        size=size,
        short_side=loaded.config.data.input_size,
        stride=plan.read_stride,
        split=split,
        seed=args.seed,
        total_videos=args.num_videos or None,
    )
    print0(f"{len(clips)} videos of {data} ({split}{'' if args.split else ', the default'})")
    subject = Predictions(loaded.predictor, plan, device)
    protocol = Protocol(
        metrics=("psnr", "ssim", *(["lpips"] if args.lpips else [])), seed=args.seed, batch_size=args.batch_size,
        lpips=args.lpips or "alex", lpips_weights=args.lpips_weights, device=device,
    )  # fmt: skip
    scores = Pass(subject, clips, protocol, seed=args.seed) if args.metrics else None
    write_predictions(args, subject, clips, scores)
    if scores:
        report = Report(
            "flow_pred", loaded.runs[0], clips.source.path, plan.context + plan.frames, plan.stride, size, size,
            excluded_frames=plan.context, clips=len(clips), clips_trained_on=trained_on_of(loaded.runs, clips),
        )  # fmt: skip
        report.scores = scores.scores()  # over all processes
        report.details = {
            "split": split,
            "seed": args.seed,
            "videos": len(clips),
            "res": plan.res,
            "data_fingerprint": clips.fingerprint(),
            **({"class": args.class_name, "guidance": args.guidance} if classes else {}),
            **subject.facts(),
        }
        if is_main():
            report.deliver(args.out / "metrics.json")


def write_predictions(args: argparse.Namespace, subject: Predictions, clips: ClipDataset, scores: Pass | None) -> None:
    """Predict all clips, write them, and score them where that is asked for."""
    plan, counter, start = subject.plan, CallCounter(subject.predictor), time.monotonic()
    known = clips.source.fps(0)
    fps = args.fps or (known / plan.stride if known else Fraction(3))
    with ExitStack() as stack:
        write_h5 = "h5" in args.format and is_main()
        h5 = stack.enter_context(open_h5(args.out / "videos.h5")) if write_h5 else None
        predictions = predict(
            subject.predictor, clips, plan, args.batch_size, subject.device, args.class_name, args.guidance
        )
        for prediction in predictions:
            if h5:
                h5.add(prediction)
            write_clips(args.out, prediction, plan, fps, [kind for kind in args.format if kind != "h5"])
            if prediction.items[0] == 0:
                write_png(args.out / "strip.png", strip(prediction, plan))
            if scores:
                batch = Batch(
                    prediction.target, prediction.items, args.seed, 0, [args.class_name] * len(prediction.items)
                )
                scores.update(batch, prediction.generated[:, None])
        drift, calls = (count / len(clips) / plan.frames for count in (counter.drift, counter.total))
        if h5:
            h5.finish(drift)
    seconds = time.monotonic() - start
    print0(f"{args.out}: {len(clips)} videos, {calls:.1f} network calls per frame, {seconds:.1f} s")


class H5Writer:
    """generated_videos and target_videos (B, T, 3, H, W) float32 in [-1, 1], gzip, and the scalar avg_count."""

    def __init__(self, file: h5py.File) -> None:
        self.file = file

    def add(self, prediction: Prediction) -> None:
        """Append a batch."""
        self._append("generated_videos", prediction.generated)
        if prediction.target is not None:
            self._append("target_videos", prediction.target)

    def finish(self, calls_per_frame: float) -> None:
        """Store how often the drift was evaluated per predicted frame."""
        self.file["avg_count"] = calls_per_frame

    def _append(self, name: str, clips: Tensor) -> None:
        values = clips.transpose(1, 2).float().numpy()
        check_room(self.file.filename, values.nbytes, SMALL_CACHE_BYTES)
        if name not in self.file:
            shape = values.shape[1:]
            options = {"maxshape": (None, *shape), "chunks": (1, *shape), "compression": "gzip", "compression_opts": 9}
            self.file.create_dataset(name, (0, *shape), np.float32, **options)
        data = self.file[name]
        data.resize(len(data) + len(values), axis=0)
        data[-len(values) :] = values


@contextmanager
def open_h5(path: Path) -> Iterator[H5Writer]:
    """A writer; the file gets its name when the block ends."""
    with new_hdf5(path) as file:
        yield H5Writer(file)


def write_clips(folder: Path, prediction: Prediction, plan: Plan, fps: Fraction, formats: list[str]) -> list[Path]:
    """Each clip of a batch as <item>.mp4, .gif and .npy: the original to the left, where it is known."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for row, item in enumerate(prediction.items):
        parts = [part for part in (prediction.target, prediction.generated) if part is not None]
        frames = side_by_side([to_uint8(part[row, :, plan.first_shown :]) for part in parts])
        for kind in formats:
            path = folder / f"{item:04d}.{kind}"
            if kind == "npy":
                write_file(path, partial(np.save, arr=to_uint8(prediction.generated[row]), allow_pickle=False))
            else:
                write_video(path, frames, fps * plan.res)
            written.append(path)
    return written


def side_by_side(clips: list[np.ndarray]) -> np.ndarray:
    """Clips uint8 (T, H, W, 3) next to each other with a white gap."""
    gap = np.full((*clips[0].shape[:2], GAP, 3), 255, np.uint8)
    parts = [part for clip in clips for part in (gap, clip)][1:]
    return np.concatenate(parts, axis=2)


def strip(prediction: Prediction, plan: Plan, columns: int = 12) -> np.ndarray:
    """A picture of up to 4 clips, uint8: rows original, prediction, with `columns` frames spread over the time; named
    at the left, and above them which frames are given.
    """
    rows, names = [], []
    for row in range(min(4, len(prediction.items))):
        for name, clip in (("original", prediction.target), ("prediction", prediction.generated)):
            if clip is not None:
                frames = to_uint8(clip[row, :, plan.first_shown :])
                chosen = np.linspace(0, len(frames) - 1, min(columns, len(frames))).round().astype(int)
                factor = -(-SMALLEST // min(frames.shape[1:3]))  # so that the words fit
                large = frames[chosen].repeat(factor, axis=1).repeat(factor, axis=2)
                rows.append(np.concatenate(list(large), axis=1))
                names.append(name)
    height, width = large.shape[1:3]
    image = Image.new("RGB", (LEFT + rows[0].shape[1], HEAD + len(rows) * height), "white")
    draw, words = ImageDraw.Draw(image), ImageFont.load_default(12)
    for number, (name, pixels) in enumerate(zip(names, rows, strict=True)):
        image.paste(Image.fromarray(pixels), (LEFT, HEAD + number * height))
        draw.text((4, HEAD + number * height + height // 2), name, "black", words, anchor="lm")
    known = LEFT + int((chosen < plan.context - plan.first_shown).sum()) * width
    draw.text((LEFT + 2, 2), "given", "black", words)
    draw.text((known + 4, 2), "predicted", "black", words)
    draw.rectangle((known - 1, 0, known, image.height), MARK)
    return np.asarray(image)
