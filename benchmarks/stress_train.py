"""Kill main.py with SIGKILL at random moments until it has finished; compare its weights with an undisturbed run."""

from __future__ import annotations

import argparse
import hashlib
import random
import shutil
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


def kill_or_let_end(folder: Path, epochs: int, seconds: float) -> bool:
    """Start the command and kill it after that time; False when it ended before."""
    process = subprocess.Popen(
        command(epochs), cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    try:
        _, errors = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return True
    if process.returncode != 0:
        raise SystemExit(f"a run ended with status {process.returncode}:\n{errors}")
    return False


def stress(work: Path, epochs: int, kills: int, draws: random.Random) -> list[bool]:
    """Kill `kills` times; whenever a run has come to its end, compare it and start another. Gives the comparisons."""
    straight, folder = work / "straight", work / "killed"
    straight.mkdir()
    seconds = run_to_the_end(straight, epochs)
    expected, equal, done = weights_of(straight), [], 0
    while True:
        folder.mkdir(exist_ok=True)
        if done < kills and kill_or_let_end(folder, epochs, draws.uniform(0.2, 0.9) * seconds):
            done += 1
            print(".", end="", flush=True)
            continue
        run_to_the_end(folder, epochs)
        found = weights_of(folder)
        equal.append(found == expected)
        if found != expected:
            print(f"different: {[name for name in expected if expected[name] != found.get(name)]}")
        if done == kills:
            return equal
        shutil.rmtree(folder)


def main() -> int:
    """Print the result; exit status 1 when a byte differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="SIGKILLs")
    parser.add_argument("--epochs", type=int, default=12, help="length of the run, 9 steps each")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        equal = stress(Path(name), args.epochs, args.kills, random.Random(args.seed))
    print(f"\n{args.kills} kills; {sum(equal)} of {len(equal)} results have the undisturbed run's bytes in every file")
    return 0 if all(equal) else 1


if __name__ == "__main__":
    sys.exit(main())
