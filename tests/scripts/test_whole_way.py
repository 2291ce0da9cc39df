"""Once the whole way: a cluster writes tars, a web server offers them, two machines train from there, one is lost."""

import json
import re
import time

import pytest

from scripts import evaluate, prepare_data
from tests.conftest import ROOT
from tests.training.processes import free_port
from tests.training.two_machines import Agent, machines, meeting
from tests.videodata.local_ray import local_ray
from tests.videodata.range_server import range_server
from videodata.tars.source import TarSource

STEPS = 12


@pytest.fixture
def cluster(monkeypatch):
    """Ray with four workers."""
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    with local_ray(4):
        yield


@pytest.mark.posix
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    "count", [pytest.param(80, marks=pytest.mark.slow), pytest.param(2000, marks=pytest.mark.exhaustive)]
)
def test_from_a_cluster_to_a_score(tmp_path, cluster, capsys, count):
    pytest.importorskip("aiohttp", reason="aiohttp is not installed")
    words = ["shapes", "--count", str(count), "--frames", "20", "--size", "32", "--format", "tar"]
    words += ["--shard_size", "100kB"]
    prepare_data.main([*words, "--out", str(tmp_path / "tars"), "--engine", "ray", "--shares", "4"])
    assert f"4 parts, {count} videos" in capsys.readouterr().out
    assert len(list((tmp_path / "tars").rglob("*.tar"))) >= 4
    with range_server(tmp_path / "tars") as server, machines() as agents:
        address = f"{server.url}/clips.index"
        assert len(TarSource(address)) == count

        run, port = tmp_path / "run", free_port()
        command = [ROOT / "scripts" / "train_tokenizer3d.py", "--preset", "tiny_kl", "--data", address]
        command += ["--run_dir", run, "--steps", STEPS, "--batch_size", 4, "--save_every", 1, "--workers", 0]
        command += ["--device", "cpu"]

        def start(name: str) -> Agent:
            agents.append(Agent(tmp_path / name, meeting(port), command))
            return agents[-1]

        both = [start("first"), start("second")]
        deadline = time.monotonic() + 900
        while not list((run / "checkpoints").glob("step-*.json")):
            assert time.monotonic() < deadline and both[0].process.poll() is None, both[0].log.read_text()[-3000:]
            time.sleep(0.02)
        host, lost = sorted(both, key=lambda agent: not agent.listens_on(port))
        lost.pull_the_plug()
        texts = [agent.finish() for agent in (start("again"), host)]
        continued = {int(step) for step in re.findall(r"continuing \S+ at step (\d+)", "".join(texts))}
        assert len(continued) == 1 and 1 <= continued.pop() < STEPS
        assert [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()][-1] == STEPS

        told = ["--checkpoint", str(run), "--data", address, "--metrics", "psnr", "--num_clips", "4", "--device", "cpu"]
        evaluate.main(["tokenizer3d", *told, "--out", str(tmp_path / "scores.json")])
        parts = [path for _, path, asked in server.requests if asked and path.endswith(".tar")]
    assert len(parts) > 20  # clips came as parts of shards, not shard by shard
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert scores["clips"] == 4 and scores["clips_trained_on"] == 0
    assert scores["data"] == address and scores["scores"][0]["mean"] > 5  # decibels
