"""A point that walks along a line and then turns up or down: the smallest task that needs drift, denoiser and noise.

The flow alone cannot branch and drifts off the track; the diffusion adds the branching, and the denoiser keeps the
trajectories on the track (arXiv 2501.18871). Axes: B points, T times; all positions are (x, y).
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from flow_pred.config import BifurcationSettings
from flow_pred.latents import at_rest
from flow_pred.neural_sde import log_diffusion
from flow_pred.objectives import diffusion_nll, mean_square
from training.distributed import print0
from training.optim import build_optimizer
from training.writing import check_place
from videodata.errors import UserError
from videodata.frame_folder import write_png

SPEED, STRAIGHT, STEPS = 0.1, 45, 100  # per unit of time; units before the fork; units in all
ANGLE = math.radians(30)
WIDTH, HEIGHT, MARGIN, SCALE = 700, 520, 30, 3  # of one panel; pictures are drawn larger and reduced
PANELS = {
    "f": "flow alone: drifts off, never branches",
    "fg": "flow + diffusion",
    "fd": "flow + denoiser: one branch",
    "fdg": "all three",
}


class ResidualBlock(nn.Module):
    """Two linear layers with LayerNorm, and a shortcut."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.linear1, self.linear2 = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.norm2(self.linear2(F.relu(self.norm1(self.linear1(x))))))


class PlaneField(nn.Module):
    """A field on the plane: (B, 2) -> (B, 2). State-dict keys are the original's."""

    def __init__(self, hidden: int = 64, blocks: int = 3) -> None:
        super().__init__()
        self.input_layer = nn.Linear(2, hidden)
        self.network = nn.ModuleList(ResidualBlock(hidden) for _ in range(blocks))
        self.output_layer = nn.Linear(hidden, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.input_layer(x)
        for block in self.network:
            x = block(x)
        return self.output_layer(x)


def track(branch: int) -> Tensor:
    """Positions (T, 2) at times 0 .. 100 on the upper (+1) or the lower (-1) branch."""
    times = torch.arange(STEPS + 1, dtype=torch.float64)
    after = (times - STRAIGHT).clamp_min(0) * SPEED
    x = times.clamp_max(STRAIGHT) * SPEED + after * math.cos(ANGLE)
    return torch.stack([x, branch * after * math.sin(ANGLE)], dim=1).float()


def distance_to_track(points: Tensor) -> Tensor:
    """Distance (...) of points (..., 2) from the nearest point of the Y."""
    fork = torch.tensor([STRAIGHT * SPEED, 0.0])
    ends = [torch.zeros(2), track(1)[-1], track(-1)[-1]]
    return torch.stack([distance_to_segment(points, fork, end) for end in ends]).amin(0)


def distance_to_segment(points: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """Distance (...) of points (..., 2) from a segment."""
    along = end - start
    share = ((points - start) @ along / along.square().sum()).clamp(0, 1)
    return (points - start - share[..., None] * along).norm(dim=-1)


def draw_bifurcation(args: argparse.Namespace) -> None:
    """What scripts/train_bifurcation.py does: train, print a line per combination of networks, write the picture."""
    if args.out.suffix.lower() != ".png":  # now, and not after the training
        raise UserError(f"{args.out}: the picture is a PNG; give it a name that ends in .png")
    check_place(args.out)
    sde = train_bifurcation(BifurcationSettings(steps=args.steps), args.seed)
    panels = []
    for parts, title in PANELS.items():
        points = sde.sample(args.trajectories, torch.Generator().manual_seed(args.seed), parts, args.substeps)
        report = judge(points)
        numbers = "  ".join(f"{key} {value:.3f}" for key, value in dataclasses.asdict(report).items())
        print0(f"{parts:4} {numbers}")
        panels.append(np.asarray(panel(points, f"{title} ({report.up_fraction:.0%} up)")))
    rows = [np.concatenate(panels[:2], axis=1), np.concatenate(panels[2:], axis=1)]
    print0(write_png(args.out, np.concatenate(rows, axis=0)))


def panel(trajectories: Tensor, title: str) -> Image.Image:
    """Trajectories (B, T, 2) over the track."""
    image = Image.new("RGB", (WIDTH * SCALE, HEIGHT * SCALE), "white")
    canvas = ImageDraw.Draw(image, "RGBA")

    def place(points: Tensor) -> list[tuple[float, float]]:
        x = MARGIN + points[:, 0] / 10 * (WIDTH - 2 * MARGIN)
        y = HEIGHT / 2 - points[:, 1] / 7 * (HEIGHT - 2 * MARGIN)
        return [(float(a) * SCALE, float(b) * SCALE) for a, b in zip(x, y, strict=True)]

    for branch in (1, -1):
        canvas.line(place(track(branch)), fill=(214, 69, 65, 255), width=3 * SCALE)
    for trajectory in trajectories:
        canvas.line(place(trajectory), fill=(31, 78, 121, 60), width=SCALE)
    image = image.resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS)
    ImageDraw.Draw(image).text((MARGIN, 12), title, fill="black", font_size=20)
    return image


@dataclass
class PlaneSDE:
    """Flow, denoiser and diffusion on the plane."""

    flow: nn.Module
    denoiser: nn.Module
    diffusion: nn.Module
    settings: BifurcationSettings

    def sample(
        self, count: int, generator: torch.Generator, parts: str = "fdg", substeps: int = 1, length: int = STEPS
    ) -> Tensor:
        """Trajectories (count, length + 1, 2) from the origin by Euler-Maruyama; parts: which networks take part."""
        x, h, points = torch.zeros(count, 2), 1 / substeps, [torch.zeros(count, 2)]
        with at_rest(self.flow, self.denoiser, self.diffusion):
            for _ in range(length):
                for _ in range(substeps):
                    drift = self.flow(x) + (self.denoiser(x) if "d" in parts else 0)
                    step = h * drift
                    if "g" in parts:
                        dw = math.sqrt(h) * torch.randn(count, 2, generator=generator)
                        step = step + log_diffusion(self.diffusion(x), self.settings.log_range).exp() * dw
                    x = x + step
                points.append(x)
        return torch.stack(points, dim=1)


def train_bifurcation(settings: BifurcationSettings, seed: int = 0) -> PlaneSDE:
    """Train flow and denoiser, then the diffusion on top of the flow, from scratch."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    networks = [PlaneField(settings.hidden, settings.blocks) for _ in range(3)]
    flow = trained(networks[0], settings, settings.rate, lambda net: flow_loss(net, *draw(settings, generator)))
    denoiser = trained(networks[1], settings, settings.rate, lambda net: denoiser_loss(net, *draw(settings, generator)))
    diffusion = trained(
        networks[2],
        settings,
        settings.diffusion_rate,
        lambda net: diffusion_loss(net, flow, settings, *draw(settings, generator)),
    )
    return PlaneSDE(flow, denoiser, diffusion, settings)


def draw(settings: BifurcationSettings, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Positions between two observations, perturbations and velocities, (B, 2) each."""
    tracks = torch.stack([track(1), track(-1)])
    branch = torch.randint(2, (settings.batch,), generator=generator)
    step = torch.randint(STEPS, (settings.batch,), generator=generator)
    start, end = tracks[branch, step], tracks[branch, step + 1]
    share = torch.rand(settings.batch, 1, generator=generator)
    noise = settings.noise_std * torch.randn(settings.batch, 2, generator=generator)
    return torch.lerp(start, end, share), noise, end - start


def flow_loss(flow: nn.Module, x: Tensor, noise: Tensor, velocity: Tensor) -> Tensor:
    """Squared error of the velocity at perturbed positions."""
    return mean_square(flow(x + noise), velocity).mean()


def denoiser_loss(denoiser: nn.Module, x: Tensor, noise: Tensor, velocity: Tensor) -> Tensor:
    """Denoising score matching."""
    return mean_square(denoiser(x + noise), -noise).mean()


def diffusion_loss(
    diffusion: nn.Module, flow: nn.Module, settings: BifurcationSettings, x: Tensor, noise: Tensor, velocity: Tensor
) -> Tensor:
    """Likelihood of what the flow leaves unexplained, both at the same perturbed positions."""
    with torch.no_grad():
        residual = velocity - flow(x + noise)
    return diffusion_nll(log_diffusion(diffusion(x + noise), settings.log_range), residual).mean()


def trained(network: nn.Module, settings: BifurcationSettings, rate: float, loss: object) -> nn.Module:
    """Adam with a cosine schedule; gives the averaged network."""
    optimizer = build_optimizer("adam", network.parameters(), rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.steps)
    averaged = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(settings.average))
    for _ in range(settings.steps):
        optimizer.zero_grad()
        loss(network).backward()
        optimizer.step()
        schedule.step()
        averaged.update_parameters(network)
    return copy.deepcopy(averaged.module).eval()


@dataclass
class BranchingReport:
    """How sampled trajectories compare with the track."""

    up_fraction: float  # of trajectories that end above the line
    end_error: float  # mean distance of the end from the nearest of the two true ends
    track_distance: float  # mean distance from the Y
    track_distance_p99: float


def judge(trajectories: Tensor) -> BranchingReport:
    """Score trajectories (B, T, 2)."""
    ends = torch.stack([track(1)[-1], track(-1)[-1]])
    distance = distance_to_track(trajectories).flatten()
    return BranchingReport(
        (trajectories[:, -1, 1] > 0).float().mean().item(),
        torch.cdist(trajectories[:, -1], ends).amin(1).mean().item(),
        distance.mean().item(),
        distance.quantile(0.99).item(),
    )
