"""The evaluators that TEST.EVALUATORS names, what they write into OUTPUT_DIR, and evaluation.json."""

from __future__ import annotations

import json
import logging
import shutil
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from evaluation.measuring import Watch
from evaluation.protocol import Protocol
from evaluation.report import Score, beside_others
from evaluation.runner import evaluate, trained_on_of
from evaluation.subject import Batch, Subject
from lvt.codes import CODES_NAME, decode_codes, write_codes
from lvt.config import DEFAULTS, is_transformer
from lvt.datasets import (
    known_classes,
    name_tokenizer,
    open_code_windows,
    open_frames,
    open_videos,
    thinned,
    trained_cells,
)
from lvt.files import load_configured, load_sampler_tokenizer, weights_behind
from lvt.generate import FRAMES_PER_SECOND, generate_codes, sampling_options, write_clip
from lvt.scores import Continuations, Likelihood, Reconstructions
from lvt.transformer import VideoTransformer
from lvt.vqvae import VQVAE, encode_clips
from training import distributed
from training.data import collate, move
from training.state import weights_digest
from training.tokenizer import video_frames
from training.writing import check_place
from videodata.encode import write_video
from videodata.errors import UserError
from videodata.files import read_json, write_file, write_json
from videodata.pixels import channels_first

logger = logging.getLogger(__name__)
FRAMES_AT_ONCE = 64  # through the VQ-VAE
CLIPS_AT_ONCE = 8  # continued together: reading the weights costs most, and is shared by them
CLIPS_WRITTEN = 4  # continuations kept as videos
Config = dict[str, Any]
Results = dict[str, Any]


def evaluate_lvt(config: Config, model: VQVAE | VideoTransformer | None = None) -> dict[str, dict[str, Results]]:
    """Run the evaluators that TEST.EVALUATORS names; gives {data set: {task: {...}}}, and writes those with scores.

    They are written to evaluation.json; beside a result of another protocol there, to evaluation_2.json, ...

    All processes score together; what writes codes and samples is left to the main one, which alone gets the results.
    Raises UserError for an unknown evaluator, missing weights or missing data.
    """
    name_tokenizer(config)
    names = evaluators_of(config)
    results: dict[str, dict[str, Results]] = {dataset: {} for dataset in config["DATASETS"]["TEST"]}
    if not names:
        return results
    place = Path(config["OUTPUT_DIR"]) / "evaluation.json"
    if distributed.is_main():
        check_place(place)  # now, and not after the work
    model = load_configured(config) if model is None else model
    model = model.to(distributed.join_processes(config["MODEL"]["DEVICE"])).eval()
    for evaluators in (SCORED, WRITTEN):
        if evaluators is WRITTEN and not distributed.is_main():
            return {}
        for name, (task, evaluator) in evaluators.items():
            for dataset in config["DATASETS"][DATASETS_OF.get(name, "TEST")] if name in names else ():
                results.setdefault(dataset, {})[task] = evaluator(config, model, dataset)
    for dataset, tasks in results.items():  # first: perhaps they cannot be written
        for task, values in tasks.items():
            logger.info("%s %s: %s", dataset, task, ", ".join(f"{key} {value}" for key, value in values.items()))
    write_scores(place, config, names, results)
    return results


def write_scores(place: Path, config: Config, names: list[str], results: dict[str, dict[str, Results]]) -> None:
    """Write the tasks that have scores, with the protocol, to the place or beside results of another one there."""
    tasks = [SCORED[name][0] for name in names if name in SCORED]
    if not tasks:
        return
    protocol = {
        "tasks": sorted(tasks),
        "TEST": {key: config["TEST"][key] for key in ("N_SAMPLES", "VT_SAMPLER")},
        "DATASETS": {key: config["DATASETS"][key] for key in ("TEST", "VIDEOS")},
        **{key: config[key] for key in ("INPUT", "SEED")},
        **masked_settings(config),
    }
    protocol = json.loads(json.dumps(protocol))  # as a file gives it back: lists for tuples
    place = beside_others(place, lambda found: found.get("protocol") == protocol)
    scores = {data: {task: found[task] for task in tasks if task in found} for data, found in results.items()}
    write_json(place, {**scores, "protocol": protocol})
    logger.info("written to %s", place)


def masked_settings(config: Config) -> dict[str, Any]:
    """How a masked decoder is sampled, which is a part of the protocol; nothing of another model."""
    node = config["MODEL"]["AUTOREGRESSIVE"]["VT"]
    return {"MASKED": node["MASKED"]} if is_transformer(config) and node["DECODER"] == "masked" else {}


def evaluators_of(config: Config) -> list[str]:
    """The names in TEST.EVALUATORS. Raises UserError for one that the model does not have, or that lacks a VQ-VAE."""
    names = [name.strip() for name in config["TEST"]["EVALUATORS"].split(",") if name.strip()]
    known = [name for name in (*SCORED, *WRITTEN) if (name in OF_THE_VQVAE) != is_transformer(config)]
    decoder = config["MODEL"]["AUTOREGRESSIVE"]["VT"]["DECODER"]
    known = [name for name in known if OF_DECODERS.get(name, decoder) == decoder]
    for name in names:
        if name not in known:
            raise UserError(f"TEST.EVALUATORS: {name!r} does not fit this model; use {', '.join(known)}")
    if {"VTSampler", "ContinuationEvaluator"} & set(names):
        load_sampler_tokenizer(config, torch.device("cpu"))
    if "ContinuationEvaluator" in names and config["TEST"]["VT_SAMPLER"]["N_PRIME"] < 1:
        raise UserError("ContinuationEvaluator compares with clips that are continued: TEST.VT_SAMPLER.N_PRIME is 0")
    return names


def reconstruction(config: Config, model: VQVAE, dataset: str) -> Results:
    """MSEEvaluator: the error of frames in [0, 1], and the use of the codebooks, mean over them."""
    clips = open_frames(config, dataset, training=False)
    scores, clips_seen = measure(config, Reconstructions(model), dataset, clips, Protocol(("mse", "codebook")))
    notes = [score.notes for score in scores if score.definition == "codebook-usage"]
    return {
        "MSE": scores[0].mean,
        "perplexity": fmean(score.mean for score in scores if score.definition == "codebook-perplexity"),
        # of the codes that could occur: fewer than there are, where there are few tokens
        "code_usage": fmean(note["codes_used"] / min(note["codes"], note["tokens"]) for note in notes),
        **clips_seen,
    }


def likelihood(config: Config, model: VideoTransformer, dataset: str) -> Results:
    """BitsEvaluator; "dim" is the original's word for a code."""
    windows = open_code_windows(config, dataset, training=False)
    scores, clips_seen = measure(
        config, Likelihood(model, trained_cells(config)), dataset, windows, Protocol(("bits",))
    )
    return {"bits_per_dim": scores[0].mean, "bits_per_subpixel": scores[1].mean, **clips_seen}


def masked_likelihood(config: Config, model: VideoTransformer, dataset: str) -> Results:
    """MaskedBitsEvaluator: what there is in place of a likelihood, of a masked decoder."""
    windows = open_code_windows(config, dataset, training=False)
    scores, clips_seen = measure(config, Likelihood(model), dataset, windows, Protocol(("masked-bits",)))
    return {**{score.name: score.mean for score in scores}, **scores[-1].notes, **clips_seen}


def continuation(config: Config, model: VideoTransformer, dataset: str) -> Results:
    """ContinuationEvaluator: PSNR of the frames after the given ones, mean over clips: of a sample, of the best of
    NUM_SAMPLES samples, and of two things that need no transformer: the last given frame repeated, and the
    reconstruction of the true frames.

    The first clips are written as <clip>_{original,reconstruction,sample_0,sample_1,...}.mp4.
    """
    sampler, count = config["TEST"]["VT_SAMPLER"], config["TEST"]["VT_SAMPLER"]["NUM_SAMPLES"]
    folder = Path(config["OUTPUT_DIR"]) / "inference" / "continuation" / folder_name(dataset)

    def keep(batch: Batch, made: Tensor, rows: dict[str, Tensor]) -> None:
        kinds = {"original": batch.clips, "reconstruction": rows["reconstruction of the true frames"]}
        kinds |= {f"sample_{sample}": clips for sample, clips in enumerate(made.unbind(1))}
        for place, item in enumerate(batch.items):
            for kind, clips in kinds.items() if item < CLIPS_WRITTEN else ():
                write_video(folder / f"{item}_{kind}.mp4", clips[place], FRAMES_PER_SECOND)

    tokenizer = load_sampler_tokenizer(config, model.encoder.conv.weight.device)
    given = video_frames(tokenizer, sampler["N_PRIME"])
    subject = Continuations(model, tokenizer, given, **sampling_options(sampler))
    frames = config["INPUT"]["N_FRAMES_PER_VIDEO_TEST"]  # of codes
    clips = open_frames(config, dataset, training=False, frames=video_frames(tokenizer, frames) if frames > 0 else None)
    protocol = Protocol(("psnr",), samples=count, batch_size=CLIPS_AT_ONCE)
    scores, clips_seen = measure(config, subject, dataset, clips, protocol, keep)
    rows = {score.label: score.mean for score in scores}
    best = [score.mean for score in scores if score.label.startswith("best of")] or [rows[""]]
    return {
        "psnr_sample": rows[""],
        f"psnr_best_of_{count}": best[0],
        "psnr_last_frame_repeated": rows["last frame repeated"],
        "psnr_reconstruction": rows["reconstruction of the true frames"],
        **clips_seen,
    }


def measure(
    config: Config, subject: Subject, name: str, data: Dataset, protocol: Protocol, watch: Watch | None = None
) -> tuple[list[Score], Results]:
    """The scores of TEST.N_SAMPLES items of a data set, and how many of them are among what was trained on."""
    protocol.seed, protocol.device = max(config["SEED"], 0), distributed.join_processes(config["MODEL"]["DEVICE"])
    items = thinned(data, config["TEST"]["N_SAMPLES"])
    seen = trained_on_of(weights_behind(config), items)
    if seen:
        logger.warning("WARNING: %d of these %d clips of %s were in the training set", seen, len(items), name)
    scores = evaluate(subject, lambda _: items, protocol, watch)
    return scores, {"clips": len(items), "clips_trained_on": seen}


@torch.no_grad()
def extract_codes(config: Config, model: VQVAE, dataset: str) -> Results:
    """CodesExtractor: encode every frame of every video, going on where a killed call stopped."""
    videos, device = open_videos(config, dataset), model.pixel_mean.device
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

    path = Path(config["OUTPUT_DIR"]) / "inference" / folder_name(dataset) / CODES_NAME
    made_from = f"{weights_digest(model.state_dict())} at {videos.size} pixels"
    write_codes(path, listed, codes_of, model.config.codebook.size, made_from, videos.provenance)
    return {"file": str(path)}


@torch.no_grad()
def write_samples(config: Config, transformer: VideoTransformer, dataset: str) -> Results:
    """VTSampler: continue every clip NUM_SAMPLES times; writes video_<sample>_<clip>/{0..}.png, video.mp4, codes.npy.

    What a killed call with the same weights and settings has written already is kept.
    """
    sampler, seed, device = config["TEST"]["VT_SAMPLER"], max(config["SEED"], 0), transformer.encoder.conv.weight.device
    count, tokenizer = sampler["NUM_SAMPLES"], load_sampler_tokenizer(config, device)
    windows = thinned(open_code_windows(config, dataset, training=False), config["TEST"]["N_SAMPLES"])
    folder = Path(config["OUTPUT_DIR"]) / "inference" / "samples" / folder_name(dataset)
    weights = weights_digest({"transformer": transformer.state_dict(), "vqvae": tokenizer.module.state_dict()})
    made_from = {"weights": weights, "clips": len(windows), "seed": seed, "sampler": sampler, **masked_settings(config)}
    begin_samples(folder, made_from)
    for number in tqdm(range(len(windows)), "samples", unit="clip", leave=False, disable=None):
        targets = [folder / f"video_{sample}_{number}" for sample in range(count)]
        if all((target / "codes.npy").exists() for target in targets):
            continue
        item = move(collate([windows[number]] * count), device)
        codes = item["codes"].long()
        classes = known_classes(transformer.config, item["class_index"]) if transformer.config.class_num else None
        made = generate_codes(
            transformer, codes, sampler["N_PRIME"], class_idx=classes,
            seeds=[seed + number * count + sample for sample in range(count)], **sampling_options(sampler),
        )  # fmt: skip
        clips = decode_codes(tokenizer, made)
        for sample, target in enumerate(targets):
            write_clip(target, clips[sample])
            codes_made = made[sample].transpose(0, 1).cpu().numpy()
            write_file(target / "codes.npy", partial(np.save, arr=codes_made, allow_pickle=False))
    return {"folder": str(folder), "clips": len(windows) * count}


def begin_samples(folder: Path, made_from: dict[str, Any]) -> None:
    """Note beside the folder what its samples are made from; those that were made from something else are removed."""
    note = folder.with_name(f"{folder.name}.json")
    note.parent.mkdir(parents=True, exist_ok=True)
    before = read_json(note)
    if isinstance(before, dict) and isinstance(before.get("sampler"), dict):
        defaults = DEFAULTS["TEST"]["VT_SAMPLER"]  # that of a key which is younger than the note
        before["sampler"] = {**{key: defaults[key] for key in made_from["sampler"]}, **before["sampler"]}
    if before != made_from:
        for stale in folder.glob("video_*_*"):
            shutil.rmtree(stale)
        write_json(note, made_from)


SCORED = {  # by all processes together: evaluator -> task in evaluation.json, and the function
    "MSEEvaluator": ("reconstruction", reconstruction),
    "BitsEvaluator": ("likelihood", likelihood),
    "MaskedBitsEvaluator": ("masked likelihood", masked_likelihood),
    "ContinuationEvaluator": ("continuation", continuation),
}
WRITTEN = {  # by the main process
    "CodesExtractor": ("codes", extract_codes),
    "VTSampler": ("samples", write_samples),
}
OF_THE_VQVAE = ("MSEEvaluator", "CodesExtractor")
OF_DECODERS = {"BitsEvaluator": "causal", "MaskedBitsEvaluator": "masked"}  # the others: of both
DATASETS_OF = {"ContinuationEvaluator": "VIDEOS"}  # the others: TEST


def folder_name(dataset: str) -> str:
    """The data set's name as the name of a folder: that of a path is its last part."""
    return Path(dataset).name.replace(":", "-").replace("#", "-")


def missed_expectations(config: dict[str, Any], results: dict[str, Any]) -> list[str]:
    """What of TEST.EXPECTED_RESULTS, (task, metric, value, tolerance) each, the results do not meet."""
    missed = []
    for task, metric, value, tolerance in config["TEST"]["EXPECTED_RESULTS"]:
        for dataset, tasks in results.items():
            found = tasks.get(task, {}).get(metric)
            if found is None or abs(found - value) > tolerance:
                missed.append(f"{dataset} {task}/{metric} is {found}, expected {value} +- {tolerance}")
    return missed
