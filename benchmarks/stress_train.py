"""Kill main.py with SIGKILL at random moments until it has finished; compare its weights with an undisturbed run."""

from __future__ import annotations

import argparse
import hashlib
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RUN = "run"


def command(epochs: int) -> list[str]:
    """A small run that saves often."""
    levels = "levels=[{dim: 8, heads: 2, latent_dim: 4}, {dim: 16, heads: 2, latent_dim: 4}]"
    return [
        sys.executable, str(ROOT / "main.py"), "--npy_file", "shapes:40,frames=8,size=16", "--preset", "tiny",
        "--set", levels, "stem_dim=8", "canvas_dim=8", "head_dim=4", "--frames", "4", "--size", "16", "16",
        "--batch_size", "4", "--num_epochs", str(epochs), "--learning_rate", "1e-3", "--perceptual_weight", "0",
        "--save_every", "5", "--ema", "0.99", "--run_name", RUN, "--device", "cpu",
    ]  # fmt: skip


def weights_of(folder: Path) -> dict[str, str]:
    """SHA-256 of the last weights and of every epoch's tensors."""
    last = sorted((folder / "runs" / RUN / "checkpoints").glob("weights-*.safetensors"))[-1]
    return {last.name: hashlib.sha256(last.read_bytes()).hexdigest()} | {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("*_epoch_*.pth")
    }


def run_to_the_end(folder: Path, epochs: int) -> float:
    """Run undisturbed; gives the seconds it took."""
    start = time.monotonic()
    subprocess.run(command(epochs), cwd=folder, check=True, capture_output=True)
    return time.monotonic() - start


def run_with_kills(folder: Path, epochs: int, kills: int, seconds: float, draws: random.Random) -> int:
    """Start and kill the command `kills` times, then let it finish; gives how many kills hit a running process."""
    hits = 0
    for _ in range(kills):
        process = subprocess.Popen(command(epochs), cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            process.wait(timeout=draws.uniform(0.3, 1.0) * seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            hits += 1
    run_to_the_end(folder, epochs)
    return hits


def main() -> int:
    """Print the result; exit status 1 when a byte differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="SIGKILLs")
    parser.add_argument("--epochs", type=int, default=12, help="length of the run, 9 steps each")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        straight, killed = Path(name, "straight"), Path(name, "killed")
        straight.mkdir()
        killed.mkdir()
        seconds = run_to_the_end(straight, args.epochs)
        # a fraction of the run, so that several kills fall into it; start-up is part of every attempt
        hits = run_with_kills(killed, args.epochs, args.kills, seconds * 0.6, random.Random(args.seed))
        expected, found = weights_of(straight), weights_of(killed)
        equal = expected == found
        print(f"{hits} of {args.kills} kills hit the running command; {len(expected)} weight files compared")
        print("byte-identical" if equal else f"DIFFERENT: {[n for n in expected if expected[n] != found.get(n)]}")
    return 0 if equal else 1


if __name__ == "__main__":
    sys.exit(main())
