"""How well the VQ-VAE reconstructs clips and the transformer continues them; and the evaluators of TEST.EVALUATORS.

Every score comes from a `Subject`, whether `scripts/evaluate.py` asks for it or `TEST.EVALUATORS`.
"""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from evaluation.codebook_usage import CodebookUsage
from evaluation.likelihood import BitsPerToken
from evaluation.protocol import Protocol
from evaluation.report import Score
from evaluation.runner import evaluate
from evaluation.subject import Batch, Subject
from lvt.codes import CODES_NAME, write_codes
from lvt.config import is_transformer
from lvt.datasets import Videos, open_code_windows, open_frames, open_videos, thinned
from lvt.files import load_for_evaluation, needed_vqvae
from lvt.generate import FRAMES_PER_SECOND, generate_codes, sampling_options, write_clip
from lvt.transformer import VideoTransformer, bits_per_subpixel, clip_nats
from lvt.vqvae import VQVAE, decode_clips, encode_clips
from training import distributed
from training.files import write_json
from training.loader import move
from training.randomness import derive_seed
from training.samples import collate
from training.state import weights_digest
from videodata.atomic import atomic_path
from videodata.errors import UserError
from videodata.pixels import channels_first
from videodata.write_video import write_video

logger = logging.getLogger(__name__)
VQVAE_EVALUATORS = ("MSEEvaluator", "CodesExtractor")
TRANSFORMER_EVALUATORS = ("BitsEvaluator", "VTSampler", "ContinuationEvaluator")
FRAMES_AT_ONCE = 64  # through the VQ-VAE
CLIPS_AT_ONCE = 8  # continued together: reading the weights costs most, and is shared by them
CLIPS_WRITTEN = 4  # continuations kept as videos


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
        self.squared_error = torch.zeros(2, dtype=torch.float64)  # sum over all values in [0, 1], and their number

    @torch.no_grad()
    def make(self, batch: Batch) -> Tensor:
        codes = encode_clips(self.vqvae, batch.clips.to(self.device))
        made = decode_clips(self.vqvae, codes).cpu()
        if batch.sample == 0:
            self.codes.update(codes)
            error = ((made - batch.clips) / 2).square()
            self.squared_error += torch.tensor([error.double().sum(), error.numel()], dtype=torch.float64)
        return made

    def baselines(self, clips: Tensor) -> dict[str, Tensor]:
        return {"of the mean colour": clips.mean(dim=(3, 4), keepdim=True).expand_as(clips)}

    def own_scores(self) -> dict[str, list[Score]]:
        return {"codebook": self.codes.scores()}


class Bits:
    """Bits that a transformer needs for codes."""

    def __init__(self, transformer: VideoTransformer, given: int) -> None:
        self.transformer, self.given, self.bits, self.codes_per_frame = transformer, given, BitsPerToken(), 0

    def update(self, codes: Tensor, classes: Tensor | None) -> None:
        """Count the codes (B, C, T, h, w) after the given frames."""
        self.bits.update(*clip_nats(self.transformer, codes, self.given, classes))
        self.codes_per_frame = codes[0, :, 0].numel()

    def scores(self) -> list[Score]:
        """Per code, and per red, green or blue value, over all processes; starts anew."""
        bits, self.bits = self.bits.over_processes(), BitsPerToken()
        per_subpixel = bits_per_subpixel(bits.value, self.transformer.config.nc)
        return [bits.score(self.codes_per_frame), Score("bits-per-subpixel", [], value=float(per_subpixel))]


class Likelihood(Subject):
    """Windows of codes that the transformer gives a probability. The runner deals out their numbers as "clips"."""

    paired = False
    own_metrics = ("bits",)

    def __init__(self, transformer: VideoTransformer, windows: Dataset, device: torch.device) -> None:
        self.windows, self.device, self.bits = windows, device, Bits(transformer, transformer.config.n_prime)
        self.conditional = transformer.config.class_num > 0

    @torch.no_grad()
    def make(self, batch: Batch) -> Tensor:
        shown = move(collate([self.windows[item] for item in batch.items]), self.device)
        self.bits.update(shown["codes"].long(), shown["class_index"] if self.conditional else None)
        return batch.clips

    def own_scores(self) -> dict[str, list[Score]]:
        return {"bits": self.bits.scores()}


class Continuations(Subject):
    """Clips of which the first `given` frames are shown and the others sampled; the given ones stay as they are.

    With none given, samples belong to no clip, and only the sets are compared.

    options: of `generate_codes`. class_index: of a class-conditional transformer. folder: gets the first clips as
    <clip>_{original,reconstruction,sample_0,sample_1,...}.mp4.
    """

    random = True
    own_metrics = ("bits", "codebook")

    def __init__(
        self, transformer: VideoTransformer, vqvae: VQVAE, given: int, device: torch.device,
        class_index: int | None = None, folder: Path | None = None, **options: Any,
    ) -> None:  # fmt: skip
        self.transformer, self.vqvae, self.context, self.device = transformer, vqvae, given, device
        self.paired = given > 0
        self.class_index, self.folder, self.options = class_index, folder, options
        self.codes, self.bits = Codes(vqvae), Bits(transformer, given)
        self.shown: tuple[Tensor, Tensor] | None = None  # the last clips and their codes

    @torch.no_grad()
    def make(self, batch: Batch) -> Tensor:
        codes = self.encode(batch.clips)
        classes = None if self.class_index is None else codes.new_full((len(codes),), self.class_index)
        if batch.sample == 0:
            self.codes.update(codes)
            self.bits.update(codes, classes)
        seeds = [derive_seed(batch.seed, "continue", item) for item in batch.items]
        made = generate_codes(self.transformer, codes, self.context, class_idx=classes, seeds=seeds, **self.options)
        frames = decode_clips(self.vqvae, made)[:, :, self.context :].cpu()
        clips = torch.cat([batch.clips[:, :, : self.context], frames], dim=2)
        if self.folder is not None and batch.items[0] < CLIPS_WRITTEN:
            self.write(batch, clips)
        return clips

    def encode(self, clips: Tensor) -> Tensor:
        """Codes of clips; kept for their further samples and baselines."""
        if self.shown is None or self.shown[0] is not clips:
            self.shown = (clips, encode_clips(self.vqvae, clips.to(self.device)))
        return self.shown[1]

    def write(self, batch: Batch, made: Tensor) -> None:
        """Keep what was made of the first clips, and with the first sample what it is compared to."""
        kinds = {f"sample_{batch.sample}": made}
        if batch.sample == 0:
            kinds |= {"original": batch.clips, "reconstruction": decode_clips(self.vqvae, self.encode(batch.clips))}
        for kind, clips in kinds.items():
            for item, clip in zip(batch.items, clips, strict=True):
                if item < CLIPS_WRITTEN:
                    write_video(self.folder / f"{item}_{kind}.mp4", clip.cpu(), FRAMES_PER_SECOND)

    def baselines(self, clips: Tensor) -> dict[str, Tensor]:
        found = {"reconstruction of the true frames": decode_clips(self.vqvae, self.encode(clips)).cpu()}
        if self.context:
            last = clips[:, :, self.context - 1 : self.context].expand(-1, -1, clips.shape[2] - self.context, -1, -1)
            found["last frame repeated"] = torch.cat([clips[:, :, : self.context], last], dim=2)
        return found

    def own_scores(self) -> dict[str, list[Score]]:
        return {"bits": self.bits.scores(), "codebook": self.codes.scores()}

    def facts(self) -> dict[str, Any]:
        return {"given_frames": self.context, "codes_per_frame": self.bits.codes_per_frame, **self.options}


def evaluate_lvt(config: dict[str, Any], model: VQVAE | VideoTransformer | None = None) -> dict[str, Any]:
    """Run the evaluators that TEST.EVALUATORS names; gives and writes (evaluation.json) {data set: {task: {...}}}.

    All processes score together; what writes codes and samples is left to the main one, which alone gets the results.
    Raises UserError for an unknown evaluator, missing weights or missing data.
    """
    names = evaluators_of(config)
    model = load_for_evaluation(config) if model is None else model
    device = distributed.join_processes(config["MODEL"]["DEVICE"])
    model = model.to(device).eval()
    results = {name: score_dataset(config, model, name, names, device) for name in config["DATASETS"]["TEST"]}
    if "ContinuationEvaluator" in names:
        for name in config["DATASETS"]["VIDEOS"]:
            results.setdefault(name, {})["continuation"] = continuation(config, model, name, device)
    if not distributed.is_main():
        return {}
    for name in config["DATASETS"]["TEST"]:
        results[name] |= write_dataset(config, model, name, names, device)
    folder = Path(config["OUTPUT_DIR"])
    folder.mkdir(parents=True, exist_ok=True)
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
    if "ContinuationEvaluator" in names and config["TEST"]["VT_SAMPLER"]["N_PRIME"] < 1:
        raise UserError("ContinuationEvaluator compares with clips that are continued: TEST.VT_SAMPLER.N_PRIME is 0")
    return names


def score_dataset(
    config: dict[str, Any], model: VQVAE | VideoTransformer, dataset: str, evaluators: list[str], device: torch.device
) -> dict[str, dict[str, float]]:
    """What MSEEvaluator and BitsEvaluator measure on one data set, by task."""
    results = {}
    limit, protocol = config["TEST"]["N_SAMPLES"], Protocol(seed=max(config["SEED"], 0), device=device)
    if "MSEEvaluator" in evaluators:
        clips = thinned(open_frames(config, dataset, training=False, dtype="float32"), limit)
        subject = Reconstructions(model, device)
        scores = evaluate(subject, lambda _: clips, replace(protocol, metrics=("codebook",)))
        total, count = distributed.all_sum(subject.squared_error).tolist()
        results["reconstruction"] = {"MSE": total / count, **usage_of_all(scores)}
    if "BitsEvaluator" in evaluators:
        windows = thinned(open_code_windows(config, dataset, training=False), limit)
        subject = Likelihood(model, windows, device)
        bits = evaluate(subject, lambda _: torch.arange(len(windows)), replace(protocol, metrics=("bits",)))
        # "dim" is the original's word for a code
        results["likelihood"] = dict(zip(("bits_per_dim", "bits_per_subpixel"), (b.mean for b in bits), strict=True))
    return results


def usage_of_all(scores: list[Score]) -> dict[str, float]:
    """Means over the codebooks: perplexity, and the share of the codes that occur among those that could."""
    perplexity = [score.mean for score in scores if score.definition == "codebook-perplexity"]
    notes = [score.notes for score in scores if score.definition == "codebook-usage"]
    used = [note["codes_used"] / min(note["codes"], note["tokens"]) for note in notes]
    return {"perplexity": fmean(perplexity), "code_usage": fmean(used)}


def continuation(
    config: dict[str, Any], model: VideoTransformer, dataset: str, device: torch.device
) -> dict[str, float]:
    """PSNR of the frames after the given ones, mean over clips: of a sample, of the best of NUM_SAMPLES samples, and
    of two things that need no transformer: the last given frame repeated, and the reconstruction of the true frames.

    The first clips are written as videos.
    """
    sampler, count = config["TEST"]["VT_SAMPLER"], config["TEST"]["VT_SAMPLER"]["NUM_SAMPLES"]
    clips = thinned(open_frames(config, dataset, training=False, dtype="float32"), config["TEST"]["N_SAMPLES"])
    folder = Path(config["OUTPUT_DIR"]) / "inference" / "continuation" / folder_name(dataset)
    subject = Continuations(
        model, needed_vqvae(config, device), sampler["N_PRIME"], device, folder=folder, **sampling_options(sampler)
    )
    protocol = Protocol(("psnr",), max(config["SEED"], 0), samples=count, batch_size=CLIPS_AT_ONCE, device=device)
    rows = {score.label: score.mean for score in evaluate(subject, lambda _: clips, protocol)}
    return {
        "psnr_sample": rows[""],
        f"psnr_best_of_{count}": rows.get(f"best of {count}", rows[""]),
        "psnr_last_frame_repeated": rows["last frame repeated"],
        "psnr_reconstruction": rows["reconstruction of the true frames"],
    }


def write_dataset(
    config: dict[str, Any], model: VQVAE | VideoTransformer, dataset: str, evaluators: list[str], device: torch.device
) -> dict[str, dict[str, Any]]:
    """What CodesExtractor and VTSampler write for one data set, by task."""
    folder, results = Path(config["OUTPUT_DIR"]) / "inference", {}
    if "CodesExtractor" in evaluators:
        path = extract_codes(model, open_videos(config, dataset), folder / folder_name(dataset), device)
        results["codes"] = {"file": str(path)}
    if "VTSampler" in evaluators:
        windows = thinned(open_code_windows(config, dataset, training=False), config["TEST"]["N_SAMPLES"])
        target = folder / "samples" / folder_name(dataset)
        written = write_samples(model, needed_vqvae(config, device), windows, config, target, device)
        results["samples"] = {"folder": str(target), "clips": written}
    return results


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
