"""Evaluate."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from evaluation.codebook_usage import CodebookUsage
from evaluation.likelihood import BitsPerToken
from evaluation.psnr import psnr
from evaluation.report import Score
from evaluation.subject import Batch, Subject
from lvt.codes import CODES_NAME, write_codes
from lvt.config import is_transformer
from lvt.datasets import Videos, open_code_windows, open_frames, open_videos, thinned
from lvt.files import load_for_evaluation, needed_vqvae
from lvt.generate import FRAMES_PER_SECOND, generate_codes, sampling_options, write_clip
from lvt.transformer import VideoTransformer, bits_per_code, bits_per_subpixel, clip_nats
from lvt.vqvae import VQVAE, decode_clips, encode_clips
from training.device import resolve_device
from training.files import write_json
from training.loader import move
from training.randomness import derive_seed
from training.samples import collate
from training.state import weights_digest
from videodata.atomic import atomic_path
from videodata.errors import UserError
from videodata.pixels import channels_first, denormalize, normalize
from videodata.write_video import write_video


class Codes:
    """Usage of each codebook of a VQ-VAE."""

    def __init__(self, vqvae: VQVAE) -> None:
        self.usages = [CodebookUsage(vqvae.config.codebook.size) for _ in range(vqvae.config.codebook.num)]

    def update(self, codes: Tensor) -> None:
        """Count codes (B, C, T, h, w)."""
        for number, usage in enumerate(self.usages):
            usage.update(codes[:, number])

    def scores(self) -> list[Score]:
        """Over all processes, one pair of rows per codebook; starts anew."""
        labels = [f"codebook {number}" if len(self.usages) > 1 else "" for number in range(1, len(self.usages) + 1)]
        found = [usage.over_processes().scores(label) for usage, label in zip(self.usages, labels, strict=True)]
        self.usages = [CodebookUsage(len(usage.counts)) for usage in self.usages]
        return [score for scores in found for score in scores]


class Reconstructions(Subject):
    """Frames through the VQ-VAE and back."""

    own_metrics = ("codebook",)

    def __init__(self, vqvae: VQVAE, device: torch.device) -> None:
        self.vqvae, self.device, self.codes = vqvae, device, Codes(vqvae)

    @torch.no_grad()
    def make(self, batch: Batch) -> Tensor:
        codes = encode_clips(self.vqvae, denormalize(batch.clips).to(self.device))
        if batch.sample == 0:
            self.codes.update(codes)
        return decode_clips(self.vqvae, codes).cpu()

    def baselines(self, clips: Tensor) -> dict[str, Tensor]:
        return {"of the mean colour": clips.mean(dim=(3, 4), keepdim=True).expand_as(clips)}

    def own_scores(self) -> dict[str, list[Score]]:
        return {"codebook": self.codes.scores()}


class Continuations(Subject):
    """Clips of which the first `given` frames are shown and the others sampled; the given ones stay as they are.

    With none given, samples belong to no clip, and only the sets are compared.

    options: of `generate_codes`. class_index: of a class-conditional transformer.
    """

    random = True
    own_metrics = ("bits", "codebook")

    def __init__(
        self, transformer: VideoTransformer, vqvae: VQVAE, given: int, device: torch.device,
        class_index: int | None = None, **options: Any,
    ) -> None:  # fmt: skip
        self.transformer, self.vqvae, self.context, self.device = transformer, vqvae, given, device
        self.paired = given > 0
        self.class_index, self.options = class_index, options
        self.codes, self.bits, self.codes_per_frame = Codes(vqvae), BitsPerToken(), 0

    @torch.no_grad()
    def make(self, batch: Batch) -> Tensor:
        codes = encode_clips(self.vqvae, denormalize(batch.clips).to(self.device))
        classes = None if self.class_index is None else codes.new_full((len(codes),), self.class_index)
        if batch.sample == 0:
            self.codes.update(codes)
            self.bits.update(*clip_nats(self.transformer, codes, self.context, classes))
            self.codes_per_frame = codes[0, :, 0].numel()
        seeds = [derive_seed(batch.seed, "continue", item) for item in batch.items]
        made = generate_codes(self.transformer, codes, self.context, class_idx=classes, seeds=seeds, **self.options)
        frames = decode_clips(self.vqvae, made)[:, :, self.context :].cpu()
        return torch.cat([batch.clips[:, :, : self.context], frames], dim=2)

    def baselines(self, clips: Tensor) -> dict[str, Tensor]:
        codes = encode_clips(self.vqvae, denormalize(clips).to(self.device))
        found = {"reconstruction of the true frames": decode_clips(self.vqvae, codes).cpu()}
        if self.context:
            last = clips[:, :, self.context - 1 : self.context].expand(-1, -1, clips.shape[2] - self.context, -1, -1)
            found["last frame repeated"] = torch.cat([clips[:, :, : self.context], last], dim=2)
        return found

    def own_scores(self) -> dict[str, list[Score]]:
        bits, self.bits = self.bits.over_processes(), BitsPerToken()
        per_subpixel = bits_per_subpixel(bits.value, self.vqvae.config.codebook.num)
        scores = [bits.score(self.codes_per_frame), Score("bits-per-subpixel", [], value=float(per_subpixel))]
        return {"bits": scores, "codebook": self.codes.scores()}

    def facts(self) -> dict[str, Any]:
        return {"given_frames": self.context, "codes_per_frame": self.codes_per_frame, **self.options}


logger = logging.getLogger(__name__)
FRAMES_AT_ONCE = 64  # through the VQ-VAE
CLIPS_WRITTEN = 4  # continuations kept as videos


def batches(dataset: Dataset, size: int, device: torch.device, what: str) -> Iterator[Any]:
    """All items in order, as batches on the device, with a progress bar."""
    for start in tqdm(range(0, len(dataset), size), what, unit="batch", leave=False, disable=None):
        items = [dataset[index] for index in range(start, min(start + size, len(dataset)))]
        yield move(collate(items), device)


@torch.no_grad()
def reconstruction_error(model: VQVAE, clips: Dataset, device: torch.device) -> dict[str, float]:
    """Mean squared error of the reconstructions in [0, 1], and codebook usage over all of them."""
    total, count, codes = 0.0, 0, []
    for batch in batches(clips, 4, device, "reconstruction"):
        frames = batch.transpose(1, 2).flatten(0, 1)
        found = model.encode(frames)
        error = (model.denormalize(model.decode(found)) - frames / 255).square()
        total, count = total + float(error.double().sum()), count + error.numel()
        codes.append(found.cpu())
    usage = model.quantizer.usage(torch.cat(codes))
    return {"MSE": total / count, **{name: float(value) for name, value in usage.items()}}


@torch.no_grad()
def extract_codes(model: VQVAE, videos: Videos, folder: Path, device: torch.device) -> Path:
    """Encode every frame of every video to <folder>/codes.npy, going on where a killed call stopped; gives the path."""
    source = videos.source
    listed = [(source.id(video), source.label(video), source.length(video)) for video in videos.numbers]

    def codes_of(number: int) -> np.ndarray:
        video, length = videos.numbers[number], listed[number][2]
        starts = range(0, length, FRAMES_AT_ONCE)
        return np.concatenate([encode(video, start, min(FRAMES_AT_ONCE, length - start)) for start in starts])

    def encode(video: int, start: int, count: int) -> np.ndarray:
        pixels = source.read_clip(video, start, count, 1, (videos.size, videos.size))  # (T, H, W, 3)
        codes = encode_clips(model, channels_first(pixels)[None].to(device))  # (1, C, T, h, w)
        return codes[0].transpose(0, 1).cpu().numpy()

    path = folder / CODES_NAME
    made_from = f"{weights_digest(model.state_dict())} at {videos.size} pixels"
    write_codes(path, listed, codes_of, model.config.codebook.size, made_from)
    return path


@torch.no_grad()
def likelihood(model: VideoTransformer, windows: Dataset, device: torch.device) -> dict[str, float]:
    """Bits per code over all codes after the first N_PRIME frames (`bits_per_dim`, the original's name for it)."""
    total, count, codebooks = 0.0, 0, model.config.nc
    for batch in batches(windows, 4, device, "likelihood"):
        classes = batch["class_index"] if model.config.class_num else None
        nats, codes = clip_nats(model, batch["codes"].long(), model.config.n_prime, classes)
        total, count = total + float(nats.sum()), count + codes * len(nats)
    bits = bits_per_code(torch.tensor(total, dtype=torch.float64), count)
    return {"bits_per_dim": float(bits), "bits_per_subpixel": float(bits_per_subpixel(bits, codebooks))}


@torch.no_grad()
def write_samples(
    transformer: VideoTransformer, vqvae: VQVAE, windows: Dataset, config: dict[str, Any], folder: Path,
    device: torch.device,
) -> int:  # fmt: skip
    """Continue every clip NUM_SAMPLES times; writes video_<sample>_<clip>/{0..}.png, video.mp4 and codes.npy.

    What a killed call with the same weights and settings has written already is kept.
    """
    sampler, seed = config["TEST"]["VT_SAMPLER"], max(config["SEED"], 0)
    count = sampler["NUM_SAMPLES"]
    weights = weights_digest({"transformer": transformer.state_dict(), "vqvae": vqvae.state_dict()})
    begin_samples(folder, {"weights": weights, "clips": len(windows), "seed": seed, "sampler": sampler})
    for number in tqdm(range(len(windows)), "samples", unit="clip", leave=False, disable=None):
        targets = [folder / f"video_{sample}_{number}" for sample in range(count)]
        if all((target / "codes.npy").exists() for target in targets):
            continue
        item = move(collate([windows[number]] * count), device)
        codes = item["codes"].long()
        classes = item["class_index"] if transformer.config.class_num else None
        made = generate_codes(
            transformer, codes, sampler["N_PRIME"], class_idx=classes,
            seeds=[seed + number * count + sample for sample in range(count)], **sampling_options(sampler),
        )  # fmt: skip
        clips = decode_clips(vqvae, made)
        for sample, target in enumerate(targets):
            write_clip(target, clips[sample])
            with atomic_path(target / "codes.npy") as temporary, open(temporary, "wb") as file:
                np.save(file, made[sample].transpose(0, 1).cpu().numpy())
    return len(windows) * count


def begin_samples(folder: Path, made_from: dict[str, Any]) -> None:
    """Note beside the folder what its samples are made from; those that were made from something else are removed."""
    note = folder.with_name(f"{folder.name}.json")
    note.parent.mkdir(parents=True, exist_ok=True)
    if not note.exists() or json.loads(note.read_text()) != made_from:
        for stale in folder.glob("video_*_*"):
            shutil.rmtree(stale)
        write_json(note, made_from)


@torch.no_grad()
def continuation_scores(
    transformer: VideoTransformer, vqvae: VQVAE, clips: Dataset, config: dict[str, Any], device: torch.device,
    folder: Path,
) -> dict[str, float]:  # fmt: skip
    """PSNR of the frames after the given ones, mean over clips: of a sample, of the best of NUM_SAMPLES samples, and
    of two things that need no transformer: the last given frame repeated, and the reconstruction of the true frames.

    The first clips are written as <folder>/<clip>_{original,reconstruction,sample_0,sample_1,...}.mp4.
    """
    sampler, seed = config["TEST"]["VT_SAMPLER"], max(config["SEED"], 0)
    given, count = sampler["N_PRIME"], sampler["NUM_SAMPLES"]
    rows = []
    for number, batch in enumerate(batches(clips, 1, device, "continuation")):
        truth = normalize(batch)  # (1, 3, T, H, W)
        codes = encode_clips(vqvae, batch).repeat(count, 1, 1, 1, 1)
        made = generate_codes(
            transformer, codes, given, seeds=[seed + number * count + sample for sample in range(count)],
            **sampling_options(sampler),
        )  # fmt: skip
        samples, reconstructed = decode_clips(vqvae, made), decode_clips(vqvae, codes[:1])
        if number < CLIPS_WRITTEN:
            named = {"original": truth[0], "reconstruction": reconstructed[0]}
            named |= {f"sample_{sample}": clip for sample, clip in enumerate(samples)}
            for name, clip in named.items():
                write_video(folder / f"{number}_{name}.mp4", clip.cpu(), FRAMES_PER_SECOND)
        after = slice(given, None)
        scores = psnr(truth.expand_as(samples)[:, :, after], samples[:, :, after])
        last = truth[:, :, given - 1 : given].expand(-1, -1, truth.shape[2] - given, -1, -1)
        rows.append(
            [
                float(scores.mean()), float(scores.max()), float(psnr(truth[:, :, after], last)),
                float(psnr(truth[:, :, after], reconstructed[:, :, after])),
            ]
        )  # fmt: skip
    names = ("psnr_sample", f"psnr_best_of_{count}", "psnr_last_frame_repeated", "psnr_reconstruction")
    return dict(zip(names, np.mean(rows, axis=0).tolist(), strict=True))


VQVAE_EVALUATORS = ("MSEEvaluator", "CodesExtractor")


TRANSFORMER_EVALUATORS = ("BitsEvaluator", "VTSampler", "ContinuationEvaluator")


def evaluate_lvt(config: dict[str, Any], model: VQVAE | VideoTransformer | None = None) -> dict[str, Any]:
    """Run the evaluators that TEST.EVALUATORS names; gives and writes (evaluation.json) {data set: {task: {...}}}.

    Raises UserError for an unknown evaluator, missing weights or missing data.
    """
    names = evaluators_of(config)
    model = load_for_evaluation(config) if model is None else model
    device = resolve_device(config["MODEL"]["DEVICE"])
    model = model.to(device).eval()
    folder = Path(config["OUTPUT_DIR"])
    folder.mkdir(parents=True, exist_ok=True)
    results = {name: evaluate_dataset(config, model, name, names, device) for name in config["DATASETS"]["TEST"]}
    if "ContinuationEvaluator" in names:
        for name in config["DATASETS"]["VIDEOS"]:
            results.setdefault(name, {})["continuation"] = evaluate_continuation(config, model, name, device)
    write_json(folder / "evaluation.json", results)
    for name, tasks in results.items():
        for task, values in tasks.items():
            logger.info("%s %s: %s", name, task, ", ".join(f"{key} {value}" for key, value in values.items()))
    return results


def evaluators_of(config: dict[str, Any]) -> list[str]:
    """The names in TEST.EVALUATORS. Raises UserError for one that the model does not have, or that lacks a VQ-VAE."""
    names = [name.strip() for name in config["TEST"]["EVALUATORS"].split(",") if name.strip()]
    known = TRANSFORMER_EVALUATORS if is_transformer(config) else VQVAE_EVALUATORS
    for name in names:
        if name not in known:
            raise UserError(f"TEST.EVALUATORS: {name!r} does not fit this model; use {', '.join(known)}")
    if {"VTSampler", "ContinuationEvaluator"} & set(names):
        needed_vqvae(config, torch.device("cpu"))
    return names


def evaluate_dataset(
    config: dict[str, Any], model: VQVAE | VideoTransformer, dataset: str, evaluators: list[str], device: torch.device
) -> dict[str, dict[str, Any]]:
    """The results of some evaluators on one data set, by task."""
    folder = Path(config["OUTPUT_DIR"]) / "inference"
    limit = config["TEST"]["N_SAMPLES"]
    results: dict[str, dict[str, Any]] = {}
    if "MSEEvaluator" in evaluators:
        clips = thinned(open_frames(config, dataset, training=False), limit)
        results["reconstruction"] = reconstruction_error(model, clips, device)
    if "CodesExtractor" in evaluators:
        path = extract_codes(model, open_videos(config, dataset), folder / folder_name(dataset), device)
        results["codes"] = {"file": str(path)}
    if "BitsEvaluator" in evaluators:
        windows = thinned(open_code_windows(config, dataset, training=False), limit)
        results["likelihood"] = likelihood(model, windows, device)
    if "VTSampler" in evaluators:
        windows = thinned(open_code_windows(config, dataset, training=False), limit)
        target = folder / "samples" / folder_name(dataset)
        written = write_samples(model, needed_vqvae(config, device), windows, config, target, device)
        results["samples"] = {"folder": str(target), "clips": written}
    return results


def evaluate_continuation(
    config: dict[str, Any], model: VideoTransformer, dataset: str, device: torch.device
) -> dict[str, float]:
    """Scores of the continuations of a data set's first frames; some of them are written as videos."""
    clips = thinned(open_frames(config, dataset, training=False), config["TEST"]["N_SAMPLES"])
    target = Path(config["OUTPUT_DIR"]) / "inference" / "continuation" / folder_name(dataset)
    return continuation_scores(model, needed_vqvae(config, device), clips, config, device, target)


def folder_name(dataset: str) -> str:
    """The data set's name as the name of a folder: that of a path is its last part."""
    return dataset.rstrip("/").split("/")[-1].replace(":", "-").replace("#", "-")


def missed_expectations(config: dict[str, Any], results: dict[str, Any]) -> list[str]:
    """What of TEST.EXPECTED_RESULTS, (task, metric, value, tolerance) each, the results do not meet."""
    missed = []
    for task, metric, value, tolerance in config["TEST"]["EXPECTED_RESULTS"]:
        for dataset, tasks in results.items():
            found = tasks.get(task, {}).get(metric)
            if found is None or abs(found - value) > tolerance:
                missed.append(f"{dataset} {task}/{metric} is {found}, expected {value} +- {tolerance}")
    return missed
