"""What every generator reaches over every tokenizer that fits it, with five minutes of one core for either.

Each tokenizer is trained and scored once, encodes the clips, and every generator of its kind is trained on that and
continues validation clips. The steps are those of five minutes on the machine of docs/results.md; the seconds that they
took here stand in the table. A killed run goes on where it was. Several can share a folder: --only names the
tokenizers of each.

    python benchmarks/pairs.py --out runs/pairs
    python benchmarks/pairs.py --out runs/pairs --only "3-D, codes" --generators causal masked
    python benchmarks/pairs.py --out runs/pairs --table
"""

import argparse
import json
import math
import os
import resource
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from training.cli import make_parser, positive_float, run
from videodata.errors import UserError
from videodata.files import write_json

ROOT = Path(__file__).resolve().parent.parent
SIZE, CLIPS, SAMPLES = 32, 128, 2  # of the frames; validation clips that are scored, and continuations of each
FLOW = "configs/flow_pred/digits_{}_tiny.yaml"
BATCH = 16  # clips at a time in an evaluation
METRICS = "psnr energy fvd-digits identity identity-in-place"
SCORES = {  # of the table: as evaluate.py names them
    "PSNR": ("PSNR", ".2f"),
    "ES-clip": ("ES-clip", ".4f"),
    "FVD-digits": ("FVD-digits", ".1f"),
    "identity frame 12": ("identity, frame 12", ".2f"),
    "identity in place frame 12": ("in place", ".2f"),
}


@dataclass(frozen=True)
class Tokenizer:
    """How one is trained, scored and opened, and the array (t, h, w, c) that it makes of a clip."""

    train: str  # words after `python`; {data}, {run}, {steps} are filled in
    steps: int  # of five minutes
    scored_as: str  # the model's name for evaluate.py; "": by no command of its own
    grid: tuple[int, int, int]
    width: int  # channels of the latents, or codebooks
    size: int | None = None  # codes of a codebook; None: latents
    frames: int = 17
    given: int = 5
    given_cells: int = 5  # latent frames that the given ones become
    more: tuple[str, ...] = ()  # generators that learn its latents, where it makes codes too
    opens: str = "{run}"  # for encode.py
    codes: int | None = None  # of a position, where they are not all that `width` codebooks of `size` can say

    @property
    def data(self) -> str:
        return f"digits:4000,frames={self.frames},size={SIZE},colour=1"


VQGAN = (
    "scripts/train_vqgan.py --config configs/vqgan/demo.yaml --data {data} --run_dir {run} --steps {steps} "
    "--evaluate_every {steps} "
)
F8 = VQGAN + "--hidden_dims 16 64 64 64 --downsample_factor 8 --num_embeddings "
TOKENIZER_3D = "scripts/train_tokenizer3d.py --data {data} --run_dir {run} --steps {steps} --preset "
TOKENIZERS = {
    "vqgan, 9 bits": Tokenizer(F8 + "512", 1050, "vqgan", (17, 4, 4), 1, 512, more=("river", "sde")),
    "vqgan, 3 bits": Tokenizer(F8 + "8", 1050, "vqgan", (17, 4, 4), 1, 8),
    "ldm vqgan": Tokenizer(
        VQGAN + "--ldm configs/vqgan/ldm_f8_tiny.yaml", 1000, "vqgan", (17, 4, 4), 1, 512, more=("river", "sde")
    ),
    "lvt vqvae": Tokenizer(
        "scripts/train_lvt.py --config-file configs/lvt/VQVAE_tiny.yaml --data {data} --run_dir {run} --steps {steps} "
        "TEST.EVAL_PERIOD {steps} VIS_PERIOD {steps}", 7000, "", (17, 8, 8), 2, 128,
    ),
    "3-D, codes": Tokenizer(TOKENIZER_3D + "tiny_fsq", 850, "tokenizer3d", (5, 4, 4), 2, 40, given_cells=2, codes=1000,
        opens="tokenizer3d:{run},codebooks=2"),
    "3-D, KL": Tokenizer(TOKENIZER_3D + "tiny_kl", 850, "tokenizer3d", (5, 4, 4), 16, given_cells=2),
    "vvae": Tokenizer(
        "scripts/train_vvae.py --preset tiny --data {data} --run_dir {run} --steps {steps} --pictures_every {steps} "
        "--evaluate_every {steps}", 620, "vvae", (4, 4, 4), 32, frames=16, given=4, given_cells=1,
    ),
    "flow_pred's own": Tokenizer(
        "scripts/train_flow_autoencoder.py --config configs/flow_pred/digits_river_tiny.yaml --data {data} "
        "--run-dir {run} --steps {steps} --evaluate_every {steps} --pictures_every {steps}", 2700, "", (17, 8, 8), 8,
    ),
}  # fmt: skip
CHANNELS = {"vqgan, 9 bits": 8, "ldm vqgan": 4}  # of the latents of those that make codes, too
GENERATORS = ("causal", "masked", "river", "sde")
STEPS = {  # of five minutes; of the SDE, those of its flow, and a fifth as many of its noise
    "causal": {"vqgan, 9 bits": 3200, "vqgan, 3 bits": 4600, "ldm vqgan": 3200, "lvt vqvae": 2850, "3-D, codes": 4600},
    "masked": {"vqgan, 9 bits": 3150, "vqgan, 3 bits": 5900, "ldm vqgan": 3150, "lvt vqvae": 1900, "3-D, codes": 3400},
    "river": {"vqgan, 9 bits": 9400, "ldm vqgan": 9400, "3-D, KL": 9400, "vvae": 9400, "flow_pred's own": 3800},
    "sde": {"vqgan, 9 bits": 13700, "ldm vqgan": 13700, "3-D, KL": 13700, "vvae": 13700, "flow_pred's own": 4200},
}


class Bench:
    """What was done so far, in the folder `out`: a file of results for each command."""

    def __init__(self, out: Path, effort: float) -> None:
        self.out, self.effort = out, effort

    def steps(self, count: int) -> int:
        """Of a training, at this effort."""
        return max(2, round(count * self.effort))

    def call(self, name: str, command: str, **words: Any) -> float:
        """Run a command once; its CPU seconds. Raises UserError with its last line where it fails."""
        done = self.out / "done" / f"{name}.json"
        if done.is_file():
            return json.loads(done.read_text(encoding="utf-8"))["seconds"]
        filled = [word.format(**words) for word in shlex.split(command)]
        print(f"{name}: {shlex.join(filled)}", flush=True)
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        log = self.out / "log" / f"{name}.txt"
        for path in (done, log):
            path.parent.mkdir(parents=True, exist_ok=True)
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        with log.open("w", encoding="utf-8") as file:
            status = subprocess.run(
                [sys.executable, *filled], cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, env=environment, check=False
            ).returncode
        if status:
            raise UserError(f"{name} ended with status {status}: {last_line(log)}")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds = sum(getattr(after, key) - getattr(before, key) for key in ("ru_utime", "ru_stime"))
        write_json(done, {"command": filled, "seconds": seconds})
        return seconds

    def tokenizer(self, name: str) -> Path:
        """Train one, and score it on validation clips; its run folder."""
        it, run_dir = TOKENIZERS[name], self.out / plain(name)
        self.call(plain(name), it.train, data=it.data, run=run_dir, steps=self.steps(it.steps))
        if it.scored_as:
            self.call(
                f"{plain(name)}-score",
                f"scripts/evaluate.py {it.scored_as} --checkpoint {{run}} --data {{data}} --split val "
                f"--frames {it.frames} --num_clips {CLIPS} --batch_size {BATCH} --metrics psnr --out {{out}}",
                data=it.data, run=run_dir, out=self.out / f"{plain(name)}.json",
            )  # fmt: skip
        return run_dir

    def encoded(self, name: str, kind: str) -> Path:
        """The codes or latents of the clips."""
        it, folder = TOKENIZERS[name], self.out / f"{plain(name)}-{kind}"
        self.call(
            folder.name,
            f"scripts/encode.py --checkpoint {it.opens} --data {{data}} --size {SIZE} --frames {it.frames} "
            f"--kind {kind} --out {{out}}",
            run=self.tokenizer(name), data=it.data, out=folder,
        )  # fmt: skip
        return folder

    def pair(self, tokenizer: str, generator: str) -> None:
        """Train a generator over a tokenizer, and score what it makes."""
        it, name = TOKENIZERS[tokenizer], f"{plain(tokenizer)}-{generator}"
        if generator in ("causal", "masked"):
            flags = self.train_transformer(tokenizer, generator, self.out / name)
        else:
            flags = self.train_predictor(tokenizer, generator, self.out / name)
        self.call(
            f"{name}-score",
            f"scripts/evaluate.py {flags} --data {{data}} --split val --num_clips {CLIPS} --samples {SAMPLES} "
            f"--given {it.given} --frames {it.frames} --batch_size {BATCH} --metrics {METRICS} --out {{out}}",
            run=self.out / name, data=it.data, out=self.out / f"{name}.json",
        )  # fmt: skip

    def train_transformer(self, tokenizer: str, decoder: str, run_dir: Path) -> str:
        """The latent video transformer, a slice for each latent frame; flags of its evaluation."""
        it, (t, h, w) = TOKENIZERS[tokenizer], TOKENIZERS[tokenizer].grid
        vt = "MODEL.AUTOREGRESSIVE.VT"
        blocks = json.dumps([[1, h, w]] * 3, separators=(",", ":"))
        file = {"causal": "VT_tiny", "masked": "VT_masked_frame_tiny"}[decoder]
        steps = self.steps(STEPS[decoder][tokenizer])
        self.call(
            run_dir.name,
            f"scripts/train_lvt.py --config-file configs/lvt/{file}.yaml --data {{codes}} --run_dir {{run}} "
            f"--steps {steps} INPUT.N_FRAMES_PER_VIDEO_TRAIN {t} INPUT.N_FRAMES_PER_VIDEO_TEST {t} {vt}.NC {it.width} "
            f"{vt}.NV {it.size} {vt}.STRIDE ({t},1,1) {vt}.BLOCKS_E {blocks} {vt}.BLOCKS_D {blocks} "
            f"{vt}.N_PRIME {it.given_cells} TEST.VT_SAMPLER.N_PRIME {it.given_cells} "
            f"SOLVER.SLICES_PER_CLIP {min(4, t)} TEST.EVAL_PERIOD {steps} VIS_PERIOD {steps}",
            codes=self.encoded(tokenizer, "codes"), run=run_dir,
        )  # fmt: skip
        return "lvt --checkpoint {run}"

    def train_predictor(self, tokenizer: str, model: str, run_dir: Path) -> str:
        """RIVER, or the flow of the SDE and its noise; flags of the evaluation."""
        it, (t, h, w) = TOKENIZERS[tokenizer], TOKENIZERS[tokenizer].grid
        regressor, width = "model.vector_field_regressor", CHANNELS.get(tokenizer, it.width)
        steps = self.steps(STEPS[model][tokenizer])
        latents, seen = self.encoded(tokenizer, "latents"), min(4, it.given_cells)
        words = (
            f"data.latents={{latents}} data.data_root={{data}} data.frames_per_sample={it.frames} "
            f"training.num_observations={t} training.condition_frames={it.given} "
            f"training.frames_to_generate={it.frames - it.given} {regressor}.state_size={width} "
            f"{regressor}.state_res=[{h},{w}] model.num_input_frames={seen} model.unroll={min(2, t - seen)}"
        )
        parts = [("river", run_dir, steps, "")]
        if model == "sde":
            noise = run_dir.with_name(f"{run_dir.name}-noise")
            parts = [("f-01-mse", run_dir, steps, ""), ("g-01-nll", noise, steps // 5, " model.f_ckpt_path={flow}")]
        for config, folder, count, more in parts:
            self.call(
                folder.name,
                f"scripts/train_flow_pred.py --config {FLOW.format(config)} --run-dir {{run}} --steps {count} "
                f"--evaluate_every {count} --pictures_every {count} {words}{more}",
                latents=latents, data=it.data, run=folder, flow=run_dir,
            )  # fmt: skip
        return "flow_pred --checkpoint {run}" + (f" --diffusion {shlex.quote(str(noise))}" if model == "sde" else "")

    def table(self) -> None:
        """Print what there is, and the seconds of the trainings."""
        columns = ["tokenizer", "bits", "its PSNR", "generator", *(title for title, _ in SCORES.values()), "CPU s"]
        print(f"\n| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
        for name in TOKENIZERS:
            own = self.scores(plain(name)).get("PSNR")
            for generator in generators_of(name):
                scores = self.scores(f"{plain(name)}-{generator}")
                if scores:
                    first = [name, bits_of(name, generator), "" if own is None else f"{own:.2f}", generator]
                    cells = [format(scores[key], form) for key, (_, form) in SCORES.items()]
                    trained = [plain(name), f"{plain(name)}-{generator}", f"{plain(name)}-{generator}-noise"]
                    tokenizer, *parts = map(self.seconds, trained)
                    print(f"| {' | '.join([*first, *cells, f'{tokenizer:.0f} + {sum(parts):.0f}'])} |")

    def scores(self, name: str) -> dict[str, float]:
        """The means of an evaluation by name; empty where it was not made."""
        path = self.out / f"{name}.json"
        if not path.is_file():
            return {}
        return {score["name"]: score["mean"] for score in json.loads(path.read_text(encoding="utf-8"))["scores"]}

    def seconds(self, name: str) -> float:
        """What a command took; 0 where it was not run."""
        path = self.out / "done" / f"{name}.json"
        return json.loads(path.read_text(encoding="utf-8"))["seconds"] if path.is_file() else 0.0


def plain(name: str) -> str:
    """The name of a tokenizer as that of a folder."""
    return "-".join("".join(c if c.isalnum() else " " for c in name).split())


def last_line(log: Path) -> str:
    """Of what a command said."""
    lines = log.read_text(encoding="utf-8").strip().splitlines()
    return lines[-1] if lines else "it said nothing"


def generators_of(tokenizer: str) -> tuple[str, ...]:
    """Those that take it."""
    it = TOKENIZERS[tokenizer]
    return ("river", "sde") if it.size is None else ("causal", "masked", *it.more)


def bits_of(tokenizer: str, generator: str) -> str:
    """Of the codes of a clip; empty for latents."""
    it = TOKENIZERS[tokenizer]
    if generator not in ("causal", "masked"):
        return ""
    return f"{math.prod(it.grid) * math.log2(it.codes or it.size**it.width):,.0f}"


def build_parser() -> argparse.ArgumentParser:
    """The flags."""
    parser = make_parser(__doc__.splitlines()[0])
    add = parser.add_argument
    add("--out", type=Path, required=True, metavar="DIR", help="gets runs, codes, latents and results")
    add("--only", nargs="+", choices=TOKENIZERS, default=list(TOKENIZERS), metavar="NAME", help="tokenizers: "
        + "; ".join(TOKENIZERS))  # fmt: skip
    add("--generators", nargs="+", choices=GENERATORS, default=list(GENERATORS))
    add("--effort", type=positive_float, default=1.0, help="factor on the steps of every training")
    add("--table", action="store_true", help="only print what there is")
    return parser


def main(argv: list[str] | None = None) -> None:
    """Run what is missing, and print the table."""
    args = build_parser().parse_args(argv)
    bench = Bench(args.out.resolve(), args.effort)
    if not args.table:
        for name in args.only:
            bench.tokenizer(name)
            for generator in generators_of(name):
                if generator in args.generators:
                    bench.pair(name, generator)
    bench.table()


if __name__ == "__main__":
    run(main)
