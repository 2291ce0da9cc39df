"""The networks that know the factors of generated clips: what they learn and read; FVD-digits, FVD-shapes, motion."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from benchmarks.spoilt_clips import CONTEXT, FRAMES, Spoilt, scores, two_samples
from evaluation.factor_training import Clips, Truth, losses, measure, one_clip, together, train_factors
from evaluation.factors import (
    KINDS,
    LOST,
    SIDE,
    FactorFeatures,
    FactorNetwork,
    IdentityInPlace,
    Readings,
    Things,
    clearest,
    middles,
    nearest,
    open_factors,
    small_clips,
    weights_of,
)
from evaluation.protocol import Protocol
from evaluation.runner import evaluate
from evaluation.videos import score_folders
from scripts import train_factor_network
from tests.training import processes
from videodata import UserError, open_clips, write_video
from videodata.digits import FORMS, Digits, make_digits, read_handwriting
from videodata.files import sha256_of
from videodata.source import Objects
from videodata.splits import divide


@pytest.mark.parametrize("kind", KINDS)
def test_the_stored_network_is_the_one_that_was_measured(kind):
    """Below 2 MB, 16 bit, and its figures beside it with the command that made it."""
    told, tensors = json.loads(weights_of(kind).with_suffix(".json").read_text()), load_file(weights_of(kind))
    assert weights_of(kind).stat().st_size < 2 * 2**20 and told["sha256"] == sha256_of(weights_of(kind))
    assert told["command"] == f"python scripts/train_factor_network.py {kind}" and told["core_minutes"] <= 8
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16, torch.int64}
    for name, found in told["accuracy"].items():
        assert (
            name.startswith("val") and found["found"] > 0.9 and found["pixels_off"] < 1 and found["velocity_off"] < 0.5
        )


@pytest.mark.parametrize("kind", KINDS)
def test_it_reads_clips_of_the_test_part(kind):
    """As well as those of val, whose figures are told: no part was trained on."""
    told = json.loads(weights_of(kind).with_suffix(".json").read_text())["accuracy"]
    found = measure(open_factors(kind), kind, 64, "test")
    for name, test in found.items():
        val = told[name.replace("test", "val")]
        assert test["pixels_off"] < val["pixels_off"] + 0.3 and test["found"] > val["found"] - 0.05
        assert test["kind_right_all_frames"] > val["kind_right_all_frames"] - 0.12


def test_nothing_of_val_and_test_is_trained_on():
    """Neither their videos nor their writers."""
    clips = Clips("digits")
    train = set(np.flatnonzero(np.isin(read_handwriting().forms, FORMS["train"])))
    for source in clips.sources:
        held_out = {*divide(source, "val"), *divide(source, "test")}
        assert not held_out & set(clips.videos.tolist())
    shown = {
        digit.image for video in clips.videos[::200] for digit in make_digits(clips.sources[0]._seed, int(video), 3)
    }
    assert len(shown) > 500 and shown <= train
    shapes = Clips("shapes")
    assert not {*divide(shapes.sources[0], "val"), *divide(shapes.sources[0], "test")} & set(shapes.videos.tolist())


def perfect(truth: Truth, kinds: int) -> Readings:
    """What heads should say of clips with the things of `truth`."""
    frames = truth.centres.shape[2]
    middle = middles(torch.zeros(SIDE // 2, SIDE // 2))
    away = (middle - truth.centres[..., None, None]).square().sum(dim=3)
    away[~truth.there] = 1e6
    distance, which = away.min(dim=1)  # (B, T, h, w)
    batch = torch.arange(len(distance))[:, None, None, None]
    times = torch.arange(frames)[None, :, None, None]
    here = torch.logit(torch.exp(-distance / 4.5).clamp(1e-4, 1 - 1e-4))
    kind = torch.nn.functional.one_hot(truth.kinds[batch, which], kinds).float() * 20
    channels_first = [
        values.movedim(-1, 2)
        for values in (
            truth.centres[batch, which, times],
            truth.velocities[batch, which, times],
            truth.colors[batch, which],
            kind,
        )
    ]
    return Readings(here, *channels_first)


def some(count=6, source=None):
    source = source or Digits(100, size=SIDE, digits=3, colour=True)
    return together([one_clip(source, video, np.arange(8)) for video in range(count)])


def test_losses_see_only_what_is_wrong_and_no_order():
    """Perfect heads have no loss but that of a soft target; the things of a clip may come in any order; each head that
    is wrong is punished by its own loss.
    """
    _, truth = some()
    found = perfect(truth, 10)
    best = losses(found, truth)
    assert all(best[name] < 1e-4 for name in ("centre", "velocity", "color", "kind"))
    turned = Truth(*(values.flip(1) for values in truth))
    for name, loss in losses(found, turned).items():
        assert loss.item() == pytest.approx(best[name].item(), abs=1e-5)
    for name, field in zip(best, Readings._fields, strict=True):
        wrong = losses(found._replace(**{field: getattr(found, field).flip(1)}), truth)
        assert wrong[name] > best[name] + 0.01
        assert all(wrong[other] == best[other] for other in best if other != name)


def test_the_clearest_things_are_the_true_ones():
    """Of perfect heads: every thing within a hundredth of a pixel, with its kind and colour. Where two are closer than
    two cells one of them may be hidden; it counts as the other one.
    """
    _, truth = some()
    things = clearest(perfect(truth, 10), 3)
    distance, which = nearest(things, truth.centres)
    assert (distance < 0.01).float().mean() > 0.9 and distance.max() < LOST
    seen = distance[:, :, 0] < 0.01
    batch = torch.arange(len(seen))[:, None]
    assert (things.kinds[batch, 0, which[:, :, 0]].argmax(-1) == truth.kinds)[seen].all()
    assert torch.allclose(things.colors[batch, 0, which[:, :, 0]][seen], truth.colors[seen], atol=1e-5)


def test_what_is_not_seen_is_lost():
    """A distance is at most LOST, and just that where no thing is clear enough."""
    _, truth = some()
    things = clearest(perfect(truth, 10), 3)
    assert (nearest(things._replace(clarity=things.clarity * 0.2), truth.centres)[0] == LOST).all()
    assert (nearest(things, truth.centres + 1000)[0] == LOST).all()


@pytest.mark.parametrize("kind", ["digits", pytest.param("shapes", marks=pytest.mark.exhaustive)])
def test_training(kind):
    """The same steps give the same weights; twenty of them already tell better where things are and of what colour."""
    one, two = (train_factors(kind, 20, batch=8, rate=1e-2) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))
    clips, truth = Clips(kind, "val").draw(24, 7)
    torch.manual_seed(0)
    with torch.no_grad():
        before, after = (losses(net.read(net(clips)), truth) for net in (FactorNetwork(KINDS[kind]).eval(), one))
    assert all(after[name] < before[name] - 0.05 for name in ("here", "centre", "color"))


def test_clips_of_a_batch_follow_from_the_seed():
    clips = Clips("shapes")
    (one, truth), (two, _), (other, _) = clips.draw(6, 1), clips.draw(6, 1), clips.draw(6, 2)
    assert torch.equal(one, two) and one.shape != other.shape or not torch.equal(one, other)
    assert one.min() >= -1 and one.max() <= 1 and one.shape[3:] == (SIDE, SIDE)
    assert truth.centres.shape[2] == one.shape[2]


def test_features_do_not_depend_on_the_batch_or_the_size():
    """Of a clip alone and among others the same; of a clip that is drawn twice as large, nearly."""
    features = FactorFeatures("digits")
    small, large = (
        torch.stack([c[i] for i in range(16)])
        for c in (open_clips("digits:300,frames=16", 16, size, split="test", windows="first") for size in (32, 64))
    )
    found = features(small)
    assert found.shape == (16, features.dimensions) and torch.allclose(found[3:4], features(small[3:4]), atol=1e-4)
    assert (features(large) - found).abs().mean() < 0.25 < (found[:8] - found[8:]).abs().mean()
    assert small_clips(torch.zeros(1, 3, 4, 100, 50)).shape == (1, 3, 4, 64, 32)
    assert small_clips(torch.zeros(1, 3, 4, 16, 20)).shape == (1, 3, 4, 32, 40)
    assert features(small[:, :, :4]).isfinite().all()


@pytest.mark.parametrize("kind", ["digits", pytest.param("shapes", marks=pytest.mark.exhaustive)])
def test_the_order_without_any_model(kind):
    """True clips, the last frame repeated, noise, by FVD from other true clips and by motion. Clips that are softly
    blurred or shaken lie in between; beside the last frame repeated FVD has them in no fixed order.
    """
    pair, ways = two_samples(kind, 128), ("true", "soft", "jitter", "repeated", "noise")
    found = {way: scores(way, pair, (f"fvd-{kind}", "motion")) for way in ways}
    fvd = {way: rows[f"FVD-{kind}"].mean for way, rows in found.items()}
    assert fvd["true"] < fvd["repeated"] < fvd["noise"]
    assert fvd["true"] < min(fvd["soft"], fvd["jitter"]) < fvd["noise"]
    motion = {way: rows["motion"].mean for way, rows in found.items()}
    assert motion["true"] < motion["repeated"] < motion["noise"]
    true, repeated = (found["noise"][f"motion {row}"].mean for row in ("true clips", "last frame repeated"))
    assert true < motion["soft"] < motion["repeated"] and true < motion["jitter"] < motion["repeated"]
    assert motion["repeated"] == pytest.approx(repeated) and repeated < motion["noise"]


def test_motion_grows_with_the_time_that_nothing_moves():
    """Frame by frame; the given frames do not count, and those are the true clips' own figures in the first one."""
    rows = scores("repeated", two_samples("digits", 32), ("motion",))
    still, true = rows["motion"].per_frame, rows["motion true clips"].per_frame
    assert len(still) == FRAMES - CONTEXT and len(rows["motion"].per_clip) == 32
    assert still[0] < still[3] < still[9] and max(true) < 1.5
    assert rows["motion"].notes["feature_network"]["sha256"] == sha256_of(weights_of("digits"))


def test_motion_of_any_size_and_form():
    """In frames twice as large, and in those that are wider, mirrored or not, the things are found where they are."""
    for options in ({"size": 64}, {"size": (32, 48)}, {"size": (32, 48), "flip": True, "stride": 2}):
        clips = open_clips("digits:300,frames=40", 12, split="test", seed=2, **options)
        found = scores("jitter", (clips, clips), ("motion",))
        assert found["motion true clips"].mean < 1.2 < LOST, options


def test_identity_in_place():
    """Of the true clips nearly all, of shaken ones as many; of what stands still, turns into others, or is noise none.

    Identity alone would give the last frame repeated almost as much as the true clips.
    """
    for kind, least in (("digits", 0.75), ("shapes", 0.6)):
        pair = two_samples(kind, 48)
        found = {
            way: scores(way, pair, ("identity-in-place",)) for way in ("true", "jitter", "repeated", "changed", "noise")
        }
        true, jitter, repeated, changed, noise = (rows["identity in place frame 12"].mean for rows in found.values())
        assert true > least and jitter > true - 0.1
        assert max(repeated, changed) < 0.15 and noise == 0, kind
        for rows in found.values():
            assert rows["identity in place frame 12, true clips"].mean == true
        assert found["changed"]["identity in place frame 4"].mean > least  # they turn after the sixth


def placed(kinds=(3, 8), shift=(0.0, 0.0), seen_as=None):
    """The judgement of clips of perfect readings: digits that move along a line, shifted from where they should be."""
    frames = 8
    row = torch.stack([torch.linspace(4, 18, frames), torch.linspace(6, 20, frames)], dim=-1)
    paths = torch.stack([row, 32 - row])  # (M, T, 2)
    kinds = torch.tensor(kinds)
    shown = kinds if seen_as is None else torch.tensor(seen_as)
    centres = (paths + torch.tensor(shift)).transpose(0, 1)[None]
    logits = torch.nn.functional.one_hot(shown, 10).float()[None, None].expand(1, frames, -1, -1) * 10
    seen = Things(torch.ones(1, frames, 2), centres, torch.zeros(1, frames, 2, 2), torch.ones(1, frames, 2, 3), logits)
    judge = object.__new__(IdentityInPlace)
    objects = Objects(kinds.numpy(), np.ones((2, 3)), paths.numpy() / 32)
    return judge._in_place([4, 8], objects, seen, paths)


def test_identity_in_place_counts_all_things_in_their_places():
    assert placed() == placed(shift=(2.0, 2.0)) == [1.0, 1.0]
    assert placed(shift=(3.0, 3.0)) == [0.0, 0.0]  # 4.2 pixels away
    assert placed(seen_as=(3, 9)) == placed(seen_as=(8, 3)) == [0.0, 0.0]


def both_kinds():
    rows = scores("jitter", two_samples("shapes", 10), ("motion", "identity-in-place"))
    return {name: score.to_dict() for name, score in rows.items()}


def test_two_processes_equal_one(tmp_path):
    one = both_kinds()
    for found in processes.launch(both_kinds, 2, tmp_path):
        assert {name: score["per_clip"] for name, score in found.items()} == {
            name: pytest.approx(score["per_clip"], abs=1e-5) for name, score in one.items()
        }


def test_ids_say_that_this_is_no_fvd():
    score = scores("true", two_samples("digits", 128), ("fvd-digits",))["FVD-digits"]
    assert score.definition == f"fvd-digits-{sha256_of(weights_of('digits'))[:8]}-16f-128-ddof1-8bit"
    assert score.to_dict()["meaning"].count("no published FVD") == 1
    assert score.notes["feature_network"]["file"] == "factors-digits.safetensors"


def test_folders_of_videos(tmp_path):
    """Files of any size are compared, too: a folder with itself has no distance, one that is shown backwards some."""
    for number, clip in enumerate(two_samples("shapes", 4)[0]):
        for name, frames in (("a", clip), ("b", clip.flip(1, 2))):
            (tmp_path / name).mkdir(exist_ok=True)
            write_video(tmp_path / name / f"{number}.mp4", frames, 8)
    asked = Protocol(metrics=("fvd-shapes",), force=True)
    same, other = (score_folders(tmp_path / "a", tmp_path / name, asked).scores[0] for name in "ab")
    assert same.name == "FVD-shapes" and same.mean < 1e-3 < 1 < other.mean


def test_what_does_not_fit_is_one_line(tmp_path):
    """Other files in place of the weights, clips of nobody's making, too few of them, too short ones."""
    with pytest.raises(UserError, match="train_factor_network.py digits makes it"):
        open_factors("digits", tmp_path / "none.safetensors")
    with pytest.raises(UserError, match="does not fit the model: .*heads.weight"):
        open_factors("digits", weights_of("shapes"))
    (tmp_path / "page.safetensors").write_text("<html>login</html>")
    with pytest.raises(UserError, match="a web page"):
        open_factors("digits", tmp_path / "page.safetensors")
    clips, _ = pair = two_samples("digits", 20)
    with pytest.raises(UserError, match="FVD-digits of 20 clips .* at least 128"):
        scores("noise", pair, ("fvd-digits",))
    short = open_clips("digits:3000,frames=3", 3, 32, split="test")
    with pytest.raises(UserError, match="3 frames are too short for FVD-digits: digits needs 4"):
        scores("noise", (short, short), ("fvd-digits",))
    np.save(tmp_path / "a.npy", np.zeros((3, 20, 16, 16, 3), np.uint8))
    files = open_clips(tmp_path / "a.npy", 8, 32)
    with pytest.raises(UserError, match="generated videos only"):
        scores("noise", (files, files), ("motion",))
    with pytest.raises(UserError, match="generated videos only"):
        scores("noise", ([clips[0]], clips), ("motion",))
    prior = Spoilt("noise", clips)
    prior.paired = False
    with pytest.raises(UserError, match="--metrics motion: this model has"):
        evaluate(prior, lambda seed: clips, Protocol(metrics=("motion",)))


def test_the_command(tmp_path, capsys):
    for kind in KINDS:
        out = tmp_path / f"{kind}.safetensors"
        train_factor_network.main([kind, "--out", str(out), "--steps", "2", "--clips", "12"])
        told = json.loads(out.with_suffix(".json").read_text())
        assert told["sha256"] == sha256_of(out) and "--steps 2" in told["command"]
        assert len(told["accuracy"]) == (3 if kind == "digits" else 1)
        network = open_factors(kind, out)
        assert network.deviation.min() > 0 and not network.training
        assert "written to" in capsys.readouterr().out
