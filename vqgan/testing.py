"""Scores of a trained model on the patches of the test split."""

from __future__ import annotations

from pathlib import Path

import torch
from torch.utils.data import DataLoader

from evaluation.codebook import CodebookUsage
from evaluation.metrics import psnr, ssim
from training.device import resolve_device
from training.files import write_json
from vqgan.data import PatchDataset
from vqgan.model_file import load_model

BATCH = 4


@torch.no_grad()
def write_test_scores(model_file: Path, patches: PatchDataset, path: Path, device: str = "auto") -> dict:
    """PSNR and SSIM (means over patches) and codebook usage over all test patches, also as a JSON file."""
    target = resolve_device(device)
    model = load_model(model_file).to(target)
    usage, totals = CodebookUsage(model.num_embeddings), {"psnr": 0.0, "ssim": 0.0}
    for batch in DataLoader(patches, batch_size=BATCH):
        out = model(batch.to(target))
        pair = batch[:, :, None], out.frames.clamp(-1, 1).cpu()[:, :, None]
        totals["psnr"] += float(psnr(*pair).sum())
        totals["ssim"] += float(ssim(*pair).sum())
        usage.update(out.indices)
    scores = {name: value / len(patches) for name, value in totals.items()}
    scores |= {"codes_used": usage.used, "perplexity": usage.perplexity, "patches": len(patches)}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {"model": str(model_file), **scores})
    return scores
