"""Checkpoints in parts: as those of one file in all that counts, on any number of processes."""

import errno
import json
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from torch.distributed.tensor import DTensor

from evaluation.report import default_place
from scripts import consolidate as script
from tests.training import processes
from tests.training.runs import largest_difference, run, weights
from tests.training.tiny_gan import TinyGAN
from training import checkpoint as checkpoints
from training import distributed, sharded
from training.checkpoint import checkpoint_of, checkpoints_in, consolidate, load_checkpoint, newest_checkpoint
from training.folder import trained_on
from training.state import flatten
from training.tokenizer import recipe_of
from videodata.errors import UserError

pytestmark = pytest.mark.slow


class Watched(TinyGAN):
    """Keeps the whole states that the epoch hook gets."""

    def __init__(self, folder=None, **options):
        super().__init__(batch_norm=True, **options)
        self.folder = folder

    def writes_epoch(self, epoch):
        return self.folder is not None

    def on_epoch_end(self, epoch, checkpoint):
        if self.folder is not None:
            state = checkpoint()
            torch.save(state, self.folder / f"{state['step']}.pt")


def go(folder, steps=8, gathered=None, **changes):
    """The digest of a run, sharded unless `changes` say otherwise."""
    return run(folder, Watched(gathered), steps=steps, **{"fsdp": True, "save_every": 4, **changes}).digest


def launch(folder, world, *arguments, function=go):
    """Run in several processes; gives the digest that all of them have."""
    shutil.rmtree(folder / "launch", ignore_errors=True)
    digests = processes.launch(function, world, folder / "launch", *arguments)
    assert len(set(digests)) == 1
    return digests[0]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of two processes with checkpoints of steps 4 and 8, its digest, and the states that it gathered."""
    folder = tmp_path_factory.mktemp("sharded")
    (folder / "gathered").mkdir()
    return folder, launch(folder, 2, folder / "run", 8, folder / "gathered")


@pytest.fixture
def a_copy(finished, tmp_path):
    """A copy of the finished run."""
    return Path(shutil.copytree(finished[0] / "run", tmp_path / "run"))


def assert_equal(one, two):
    """Equal nested states, types and bits."""
    assert type(one) is type(two)
    if isinstance(one, dict):
        assert one.keys() == two.keys()
        for key in one:
            assert_equal(one[key], two[key])
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(two)
        for first, second in zip(one, two, strict=True):
            assert_equal(first, second)
    elif isinstance(one, torch.Tensor):
        assert one.dtype == two.dtype and torch.equal(one, two)
    else:
        assert one == two


def test_each_process_writes_its_shard_and_nothing_is_a_pickle(finished):
    """Files of about equal size, JSON beside them, and a state that holds no divided tensor."""
    newest = newest_checkpoint(finished[0] / "run" / "checkpoints")
    assert sorted(newest.files) == ["index.json", "shard-00000.safetensors", "shard-00001.safetensors", "state.pt"]
    assert sorted(path.name for path in newest.path.iterdir()) == sorted([*newest.files, "manifest.json"])
    state = torch.load(newest.path / "state.pt", weights_only=True)
    whole = dict(flatten(state))
    assert whole["networks.autoencoder.encoder.weight"].is_meta
    assert not whole["networks.discriminator.norm.running_mean"].is_meta
    stored = sum(value.nbytes for _, value in flatten(load_checkpoint(newest.path)) if value.dim())
    shards = [newest.files[f"shard-0000{number}.safetensors"]["size"] for number in (0, 1)]
    assert max(shards) < 0.75 * stored


def test_read_whole_it_is_what_the_processes_gather(finished, a_copy):
    """load_checkpoint, the consolidated file and the weights file agree bit for bit with torch's own gathering."""
    gathered = torch.load(finished[0] / "gathered" / "8.pt", weights_only=True)
    state = load_checkpoint(a_copy)
    assert state.pop("format") == 1
    assert_equal(state, gathered)
    step = a_copy / "checkpoints" / "step-0000008"
    assert_equal(load_checkpoint(step), {"format": 1, **gathered})
    shared = load_checkpoint(step.parent / "weights-0000008.safetensors")
    averaged = {**gathered["networks"], **gathered["ema"]}
    for (name, one), (other, two) in zip(sorted(flatten(shared["networks"])), sorted(flatten(averaged)), strict=True):
        assert name == other and torch.equal(one, two)
    assert recipe_of(step) == recipe_of(a_copy) == "tiny_gan"
    assert checkpoint_of(step).manifest == checkpoint_of(a_copy).manifest
    assert default_place(step) == default_place(a_copy) == a_copy / "evaluation.json"
    assert trained_on(step) == trained_on(a_copy)


def test_a_script_makes_one_file_of_it(tmp_path, capsys):
    """Like that of a run with DDP; the run goes on from it when the folder is gone."""
    for name, fsdp in (("parts", True), ("whole", False)):
        launch(tmp_path, 2, function=lambda: run(tmp_path / name, steps=4, save_every=2, fsdp=fsdp).digest)  # noqa: B023
    capsys.readouterr()
    script.main([str(tmp_path / "parts")])
    paths = [tmp_path / name / "checkpoints" / "step-0000004.pt" for name in ("parts", "whole")]
    assert capsys.readouterr().out == f"{paths[0]}\n"
    states = [load_checkpoint(path) for path in paths]
    assert list(states[0]) == list(states[1])
    tensors = [{name: value.double() for name, value in flatten(state)} for state in states]
    assert largest_difference(*tensors) < 1e-6
    manifests = [json.loads(path.with_suffix(".json").read_text()) for path in paths]
    assert manifests[0].keys() == manifests[1].keys()
    assert [entry.step for entry in checkpoints_in(paths[0].parent)] == [4, 4, 2]
    shutil.rmtree(paths[0].with_suffix(""))
    assert run(tmp_path / "parts", steps=5).finished
    with pytest.raises(UserError, match="is no checkpoint in parts"):
        consolidate(paths[0])


def test_it_goes_on_with_any_number_of_processes(tmp_path, caplog):
    """Four in two groups, two, two with whole copies, four and one: the weights of one process, to 1e-6."""
    folder = tmp_path / "run"
    forms = []
    for world, steps, changes in (
        (4, 3, {"replicas": 2}), (2, 6, {}), (2, 8, {"fsdp": False}), (4, 10, {}), (1, 12, {"fsdp": False}),
    ):  # fmt: skip
        launch(tmp_path, world, function=lambda: run(folder, steps=steps, **{"fsdp": True, **changes}).digest)  # noqa: B023
        newest = newest_checkpoint(folder / "checkpoints")
        assert newest.step == steps
        forms.append(newest.path.is_dir())
    assert forms == [True, True, False, True, False]
    run(tmp_path / "straight")
    assert largest_difference(weights(folder), weights(tmp_path / "straight")) < 1e-6
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    straight = [json.loads(line) for line in (tmp_path / "straight" / "metrics.jsonl").read_text().splitlines()]
    for one, two in zip(rows, straight, strict=True):
        assert one["loss/autoencoder"] == pytest.approx(two["loss/autoencoder"], abs=1e-6)


@pytest.mark.posix
@pytest.mark.parametrize(
    "place",
    [
        *("shard:1", "publish:0"),
        *(pytest.param(place, marks=pytest.mark.exhaustive) for place in ("index:0", "state:0", "manifest:0", "old:0")),
    ],
)
def test_killed_anywhere_in_a_save(tmp_path, finished, monkeypatch, place):
    """SIGKILL at any file of the second save: the first counts, the rest goes, and the run ends with the same bits."""
    name, rank = place.split(":")
    reached = {
        "shard": lambda path: path.name.startswith("shard-"), "index": lambda path: path.name == "index.json",
        "state": lambda path: path.name == "state.pt", "manifest": lambda path: path.name == "manifest.json",
        "publish": lambda path: path.name == "step-0000008", "old": lambda path: path.name == ".step-0000004.tmp",
    }[name]  # fmt: skip
    rename = os.replace

    def killed(source, target):
        now = "0000008" in str(target) or name == "old"
        if now and reached(Path(target)) and distributed.rank() == int(rank):
            os.kill(os.getpid(), 9)
        rename(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        with pytest.raises(Exception, match=r"terminated"):
            launch(tmp_path, 2, tmp_path / "run", function=lambda folder: go(folder, keep=1))
    left = [entry.step for entry in checkpoints_in(tmp_path / "run" / "checkpoints")]
    assert left == ([8, 4] if name == "old" else [4])
    assert launch(tmp_path, 2, tmp_path / "run") == finished[1]
    assert not list((tmp_path / "run").rglob("*.tmp"))


@pytest.mark.parametrize("name", ["shard-00001.safetensors", "state.pt", "index.json"])
@pytest.mark.parametrize("damage", ["flipped", "cut", "removed"])
def test_a_damaged_file_is_named_and_the_checkpoint_before_is_used(a_copy, caplog, name, damage):
    path = a_copy / "checkpoints" / "step-0000008" / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content if damage == "flipped" else content[:-10])
    if damage == "removed":
        path.unlink()
    assert newest_checkpoint(a_copy / "checkpoints").step == 4
    assert f"step-0000008: damaged, it has a file {name} that" in caplog.text
    with pytest.raises(UserError, match="damaged|holds no valid"):
        load_checkpoint(path.parent)
    assert load_checkpoint(a_copy)["step"] == 4


def test_processes_share_the_look_at_the_files_and_go_on_from_the_one_before(a_copy, finished, tmp_path):
    """Whichever process finds the damage; nothing valid is an error in all."""
    shard = a_copy / "checkpoints" / "step-0000008" / "shard-00001.safetensors"
    shard.write_bytes(bytes(shard.stat().st_size))
    assert launch(tmp_path, 2, a_copy) == finished[1]
    for path in a_copy.glob("checkpoints/step-*/state.pt"):
        path.write_bytes(b"x" * path.stat().st_size)
    with pytest.raises(Exception, match="every checkpoint is damaged"):
        launch(tmp_path, 2, a_copy)


def test_a_full_disk_in_one_process(tmp_path, finished, monkeypatch):
    """A warning of the main process; nothing half-written stays, the next save comes, and the bits are the same. Three
    times in a row, or at the end, it is an error in all.
    """
    write, steps = sharded.written, re.compile(r"step-0*(\d+)")

    def full(path, content):
        step = int(steps.search(str(path))[1])
        if distributed.rank() == 1 and step in refused:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(path, content)

    monkeypatch.setattr(sharded, "written", full)
    refused = {4}
    assert launch(tmp_path, 2, tmp_path / "run") == finished[1]
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").glob("[.s]*")) == ["step-0000008"]
    log = (tmp_path / "run" / "train.log").read_text()
    assert log.count("WARN checkpoint not saved: [Errno 28] No space left") == 1
    refused = {1, 2, 3}
    with pytest.raises(Exception, match=r"no checkpoint saved in 3 attempts .*No space left"):
        launch(tmp_path, 2, tmp_path / "more", function=lambda folder: go(folder, save_every=1))
    refused = {8}
    with pytest.raises(Exception, match=r"the last checkpoint could not be saved"):
        launch(tmp_path, 2, tmp_path / "last")


def test_nothing_is_gathered_that_nobody_writes(tmp_path, monkeypatch):
    """Not at the ends of epochs, and not at a save; the digest of the end alone looks at whole tensors."""
    monkeypatch.setattr(distributed, "whole", None)
    launch(tmp_path, 2, tmp_path / "run", function=lambda folder: go(folder, steps=4))


def test_networks_of_the_meta_device(tmp_path, finished):
    """Made with values in the main process alone, they train as if made everywhere; buffers that no file has, too."""

    def made(folder):
        with distributed.made_on_main(True):
            recipe = Watched()
        for network in recipe.networks.values():
            assert all(parameter.is_meta for parameter in network.parameters()) == (distributed.rank() == 1)
            constant = torch.ones(2, device=next(network.parameters()).device)
            network.register_buffer("constant", constant, persistent=False)
        digest = run(folder, recipe, steps=8, fsdp=True, save_every=4).digest
        for network in recipe.networks.values():
            assert network.constant.tolist() == [1, 1]
            assert all(isinstance(parameter, DTensor) for parameter in network.parameters())
        return digest

    assert launch(tmp_path, 2, tmp_path / "run", function=made) == finished[1]


def test_foreign_folders_are_refused_and_never_run(a_copy, tmp_path):
    """An index that leads outside, claims what is not there, or is none; a state that would run code."""
    step = a_copy / "checkpoints" / "step-0000008"
    (step / "manifest.json").unlink()
    index = json.loads((step / "index.json").read_text())
    assert load_checkpoint(step)["step"] == 8  # unverified, as a file without manifest
    name = "networks/autoencoder/encoder.weight"
    part = index[name]["parts"][0]
    for changed in (
        {**index, name: {**index[name], "parts": [{**part, "file": "../../x.safetensors"}]}},
        {**index, name: {**index[name], "shape": [2**40, *index[name]["shape"][1:]]}},
        {**index, name: {**index[name], "parts": [part]}},
        {**index, name: {**index[name], "dtype": "F31"}},
        {**index, name: {**index[name], "parts": [{**part, "offsets": [-1, 0, 0, 0, 0]}] * 2}},
        {key: value for key, value in index.items() if key != name},
        {name: 3},
        [],
    ):
        (step / "index.json").write_text(json.dumps(changed))
        with pytest.raises(UserError, match=r"index.json: (damaged|does not name)|shard-00000.safetensors: damaged"):
            load_checkpoint(step)
    (step / "index.json").write_text(json.dumps(index))

    class Malicious:
        def __reduce__(self):
            return (Path(tmp_path / "marker").touch, ())

    torch.save({"format": 1, "networks": Malicious()}, step / "state.pt")
    with pytest.raises(UserError, match="not a checkpoint of tensors and plain types"):
        load_checkpoint(step)
    assert not (tmp_path / "marker").exists()


def test_what_cannot_be_sharded_is_one_line(tmp_path):
    """Groups of unequal size, and groups of what is not sharded."""
    with pytest.raises(UserError, match="--replicas has no effect without --fsdp"):
        run(tmp_path, replicas=2)
    with pytest.raises(Exception, match="--replicas 3: 2 processes cannot be divided into so many groups"):
        launch(tmp_path, 2, tmp_path / "run", function=lambda folder: go(folder, replicas=3))


def test_manifests_that_are_damaged(a_copy, caplog):
    """Ignored and left alone, as those of one file; so is a folder whose saving was interrupted."""
    folder = a_copy / "checkpoints"
    path = folder / "step-0000008" / "manifest.json"
    manifest = json.loads(path.read_text())
    for changed in ({**manifest, "files": {"../x": {"size": 1, "sha256": ""}}}, {**manifest, "files": 3}, {}, []):
        path.write_text(json.dumps(changed))
        assert [entry.step for entry in checkpoints_in(folder)] == [4]
    assert caplog.text.count("its manifest is damaged") == 4
    path.unlink()
    assert [entry.step for entry in checkpoints_in(folder)] == [4]
    assert "its saving was interrupted" in caplog.text and checkpoints.newest_weights(folder) is None
