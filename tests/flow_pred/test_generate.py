"""Predicted videos: which frames are compared with which, and the files."""

from fractions import Fraction

import h5py
import numpy as np
import pytest
import torch

from evaluation import psnr
from evaluation.measuring import Pass
from evaluation.protocol import Protocol
from evaluation.subject import Batch
from flow_pred import NeuralSDE, RiverPredictor, VectorFieldRegressor
from flow_pred.autoencoder import Identity
from flow_pred.config import parse_config
from flow_pred.generate import HEAD, LEFT, MARK, open_h5, strip, write_clips
from flow_pred.predict import CallCounter, Plan, plan_for, predict
from flow_pred.scores import Predictions
from tests.flow_pred.tiny import tiny_values
from tests.training import processes
from videodata import read_video
from videodata.errors import UserError
from videodata.pixels import to_uint8

SIZE = {"state_size": 3, "state_res": (8, 8), "inner_dim": 16, "depth": 1, "mid_depth": 1}


class Ramp(torch.utils.data.Dataset):
    """Clips in which frame t is t / 100 everywhere, plus 0.1 per clip."""

    def __init__(self, frames: int, side: int = 8) -> None:
        self.frames, self.side = frames, side

    def __len__(self):
        return 3

    def __getitem__(self, index):
        tone = torch.arange(self.frames) / 100 + index / 10
        return tone.view(1, -1, 1, 1).expand(3, -1, self.side, self.side).contiguous()


def river() -> RiverPredictor:
    torch.manual_seed(0)
    return RiverPredictor(VectorFieldRegressor(**SIZE), Identity())


def sde() -> NeuralSDE:
    torch.manual_seed(0)
    return NeuralSDE(
        VectorFieldRegressor(**SIZE, role="f", num_input_frames=2), num_input_frames=2, autoencoder=Identity()
    )


def test_a_clip_does_not_change_with_the_batch_size():
    """Every clip has noise of its own, keyed by its number."""
    plan = Plan(2, 2, options={"steps": 2})
    one = [p.generated for p in predict(river(), Ramp(4), plan, 1, torch.device("cpu"))]
    three = [p.generated for p in predict(river(), Ramp(4), plan, 3, torch.device("cpu"))]
    torch.testing.assert_close(torch.cat(one), torch.cat(three), atol=1e-5, rtol=1e-4)


def scores_of(plan: Plan, target: torch.Tensor, made: torch.Tensor) -> dict[str, float]:
    """The mean scores of one batch by their names."""
    scored = Pass(Predictions(river(), plan, torch.device("cpu")), Ramp(1), Protocol())
    scored.update(Batch(target, list(range(len(made))), 0), made[:, None])
    return {score.name: score.mean for score in scored.scores()}


def predict_all() -> tuple[torch.Tensor | None, int]:
    """All clips, one at a time, and how often the network was called; on the main process of several."""
    predictor = river()
    counter = CallCounter(predictor)
    plan = Plan(2, 2, options={"steps": 2})
    found = [p.generated for p in predict(predictor, Ramp(4), plan, 1, torch.device("cpu"))]
    return (torch.cat(found) if found else None), counter.total


@pytest.mark.slow
def test_several_processes_share_the_clips(tmp_path):
    """Two processes, three batches: the main process has what one process has, the other one nothing."""
    (both, calls), (none, same) = processes.launch(predict_all, 2, tmp_path / "launch")
    expected, count = predict_all()
    assert torch.equal(both, expected) and none is None and calls == same == count


@pytest.mark.parametrize(
    ("stride", "res", "read"), [(1, 1, (5, 1)), (4, 1, (5, 4)), (4, 4, (17, 1)), (4, 2, (9, 2)), (3, 2, (5, 3))]
)
def test_the_true_frames_in_between_are_read_where_they_exist(stride, res, read):
    """Length and stride of the clip that is read; the target has the times of the prediction."""
    plan = Plan(context=2, frames=3, stride=stride, res=res, options={"outputs_per_interval": res})
    assert (plan.read_frames, plan.read_stride) == read
    (prediction, *_) = predict(sde(), Ramp(plan.read_frames), plan, 3, torch.device("cpu"))
    assert prediction.generated.shape[2] == 2 + 3 * res
    if stride % res:
        assert prediction.target is None
        with pytest.raises(UserError, match="true frames"):
            scores_of(plan, prediction.target, prediction.generated)
    else:
        assert prediction.target.shape == prediction.generated.shape
        frames = (prediction.target[0, 0, :, 0, 0] * 100).round().int().tolist()
        assert frames == [0, res, *range(res + 1, res + 1 + 3 * res)]


def test_scores_compare_predicted_frames_alone_with_their_baselines():
    """A perfect prediction of a ramp: at the cap, and the cross-fade of its whole frames is perfect too."""
    plan = Plan(context=2, frames=3, stride=2, res=2)
    target = Ramp(plan.read_frames, side=12)[0][None]
    target = plan.split(target)[1]
    means = scores_of(plan, target, target.clone())
    for name in ("predicted", "true"):
        assert means[f"PSNR in between, cross-fade of {name} frames"] == 100
    assert means["PSNR in between"] == 100
    repeated = target[:, :, 1:2].expand(-1, -1, 3, -1, -1)
    expected = psnr(target[:, :, 2::2], repeated)
    assert means["PSNR in between, last frame repeated"] == pytest.approx(expected.item(), abs=1e-6)


def test_all_files_are_written_with_what_was_predicted(tmp_path):
    """HDF5 with the documented keys, mp4 and gif side by side at the rate of the output, npy of the prediction."""
    plan = Plan(context=2, frames=3, stride=2, res=2, options={"outputs_per_interval": 2})
    predictor = sde()
    counter = CallCounter(predictor)
    with open_h5(tmp_path / "videos.h5") as h5:
        for prediction in predict(predictor, Ramp(plan.read_frames), plan, 2, torch.device("cpu")):
            h5.add(prediction)
            paths = write_clips(tmp_path, prediction, plan, Fraction(3), ["mp4", "gif", "npy"])
        h5.finish(counter.drift / 3 / 3)
    picture, blank = strip(prediction, plan), (255, 255, 255)
    assert picture.shape == (HEAD + 2 * 64, LEFT + 7 * 64, 3)  # frames of 8 x 8 are enlarged; one of them is given
    large = to_uint8(prediction.generated[0, :, plan.first_shown :]).repeat(8, axis=1).repeat(8, axis=2)
    assert np.array_equal(picture[HEAD + 64 :, LEFT + 2 * 64 : LEFT + 3 * 64], large[2])
    assert tuple(picture[HEAD, LEFT + 64]) == MARK and tuple(picture[HEAD, LEFT + 3]) != MARK
    words = [picture[:HEAD, LEFT : LEFT + 60], picture[:HEAD, LEFT + 66 :], *np.split(picture[HEAD:, :LEFT], 2)]
    assert all((part != blank).any() for part in words)
    with h5py.File(tmp_path / "videos.h5") as file:
        assert file["generated_videos"].shape == file["target_videos"].shape == (3, 8, 3, 8, 8)
        assert file["generated_videos"].compression_opts == 9
        assert float(file["avg_count"][()]) == 2.0
    assert len(paths) == 3
    frames, fps = read_video(tmp_path / "0001.mp4")
    assert frames.shape == (7, 8, 18, 3) and fps == 6
    assert np.load(tmp_path / "0001.npy", allow_pickle=False).shape == (8, 8, 8, 3)


def test_near_and_far_frames_have_rows_and_the_sde_its_mean_path():
    """Frames 1-4 and those after them; the mean path is the row without noise, and the noise is on again after it."""
    torch.manual_seed(0)
    networks = [VectorFieldRegressor(**SIZE, role=role, num_input_frames=2) for role in "fg"]
    noisy = NeuralSDE(networks[0], None, networks[1], num_input_frames=2, autoencoder=Identity())
    plan = Plan(context=2, frames=6, options={"steps": 1})
    target = torch.stack([Ramp(8)[index] for index in range(3)])
    batch = Batch(target, [0, 1, 2], 0)
    subject = Predictions(noisy, plan, torch.device("cpu"))
    made = subject.make(batch)
    rows = subject.compared(batch, made)
    still = Predictions(NeuralSDE(networks[0], num_input_frames=2, autoencoder=Identity()), plan, torch.device("cpu"))
    assert torch.equal(rows["mean path"], still.make(batch)) and torch.equal(subject.make(batch), made)
    assert not torch.equal(rows["mean path"], made) and "mean path" not in still.compared(batch, made)
    assert list(subject.parts(12)) == ["", "frames 1-4", "frames 5-12"] and list(subject.parts(4)) == [""]


def test_sampling_goes_by_the_configuration_unless_flags_say_otherwise():
    """Steps, solver and horizon of `evaluation`; the reference grid has its own solver."""
    values = tiny_values()
    values["evaluation"] = {"steps": 1, "solver": "euler", "past_horizon": 2}
    config = parse_config(values)
    options = plan_for(river(), config).options
    assert (options["steps"], options["method"], options["past_horizon"]) == (1, "euler", 2)
    options = plan_for(river(), config, steps=3, solver="heun", past_horizon=-1).options
    assert (options["steps"], options["method"], options["past_horizon"]) == (3, "heun", -1)
    assert plan_for(river(), config, grid="reference", steps=20).options["method"] == "rk4"
    assert plan_for(sde(), config).options["steps"] == 1
    values["evaluation"] = {}
    options = plan_for(river(), parse_config(values)).options  # what a result says it was sampled with
    assert (options["steps"], options["method"]) == (10, "midpoint")
