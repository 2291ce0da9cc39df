"""Kill prepare_ucf101.py with SIGKILL at random moments until it has finished; compare its bytes with those of an
undisturbed run.
"""

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


def run_once(command: list[str]) -> float:
    """Seconds of an undisturbed run."""
    begin = time.perf_counter()
    subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - begin


def run_with_kills(command: list[str], kills: int, longest: float, rng: random.Random, again) -> int:
    """Kill the command `kills` times after a random time; `again()` is called when a run ended before its kill.

    Returns how many runs ended by themselves. The last run is left alone.
    """
    done, ended = 0, 0
    while done < kills:
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        try:
            _, errors = process.communicate(timeout=rng.uniform(0.0, longest))
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            done += 1
            print(".", end="", flush=True)
            continue
        if process.returncode != 0:
            raise SystemExit(f"a run after {done} kills ended with status {process.returncode}:\n{errors}")
        ended += 1
        again()
    run_once(command)
    print()
    return ended


def digest(*paths: Path) -> str:
    """SHA-256 over some files."""
    total = hashlib.sha256()
    for path in paths:
        total.update(path.read_bytes())
    return total.hexdigest()


def stress_prepare(args: argparse.Namespace) -> bool:
    """prepare_ucf101.py on generated videos: the array and its side-car after all kills are those without a kill."""
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        shapes = [sys.executable, "-m", "scripts.prepare_data", "shapes", "--out", str(work / "in"), "--size", "64"]
        run_once([*shapes, "--count", str(args.videos), "--frames", "60"])

        def command(out: Path) -> list[str]:
            flags = ["--num_frames", "16", "--width", "160", "--height", "120", "--workers", "2"]
            script = [sys.executable, str(ROOT / "prepare_ucf101.py")]
            return [*script, "--video_folder", str(work / "in"), "--output_npy_file", str(out), *flags]

        whole, out = work / "whole" / "x.npy", work / "killed" / "x.npy"
        seconds = run_once(command(whole))
        matches: list[bool] = []

        def check_and_restart() -> None:
            matches.append(digest(out, out.with_suffix(".json")) == digest(whole, whole.with_suffix(".json")))
            shutil.rmtree(out.parent)

        ended = run_with_kills(command(out), args.kills, 1.2 * seconds, random.Random(args.seed), check_and_restart)
        check_and_restart()
        print(f"prepare: {args.kills} kills, an undisturbed run takes {seconds:.1f} s, {ended + 1} results compared")
        print(
            f"{sum(matches)} of {len(matches)} results have the same bytes (array and side-car) as the undisturbed run"
        )
        return all(matches)


def main() -> int:
    """Exit status 1 when a result differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="SIGKILLs")
    parser.add_argument("--videos", type=int, default=150, help="generated input videos of 60 frames")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    return 0 if stress_prepare(parser.parse_args()) else 1


if __name__ == "__main__":
    sys.exit(main())
