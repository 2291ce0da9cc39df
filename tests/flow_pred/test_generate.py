"""Predicted videos: which frames are compared with which, and the files."""

from fractions import Fraction

import h5py
import numpy as np
import pytest
import torch

from evaluation import psnr
from flow_pred import NeuralSDE, RiverPredictor, VectorFieldRegressor
from flow_pred.autoencoder import Identity
from flow_pred.evaluate import Scores, baselines
from flow_pred.generate import CallCounter, Plan, Prediction, predict
from flow_pred.generate_videos import open_h5, strip, write_clips
from training import distributed
from videodata import read_video
from videodata.errors import UserError

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
    (both, calls), (none, same) = distributed.launch(predict_all, 2, tmp_path / "launch")
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
            Scores(plan).update(prediction)
    else:
        assert prediction.target.shape == prediction.generated.shape
        frames = (prediction.target[0, 0, :, 0, 0] * 100).round().int().tolist()
        assert frames == [0, res, *range(res + 1, res + 1 + 3 * res)]


def test_scores_compare_predicted_frames_alone_with_their_baselines():
    """A perfect prediction of a ramp: at the cap, and the cross-fade of its whole frames is perfect too."""
    plan = Plan(context=2, frames=3, stride=2, res=2)
    target = Ramp(plan.read_frames, side=12)[0][None]
    target = plan.split(target)[1]
    prediction = Prediction(target.clone(), target, [0])
    found = baselines(prediction, plan)
    torch.testing.assert_close(found["cross-fade of true frames"], target)
    torch.testing.assert_close(found["cross-fade of predicted frames"], target)
    scores = Scores(plan)
    scores.update(prediction)
    means = {score.name: score.mean for score in scores.scores()}
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
    assert strip(prediction, plan).shape == (16, 7 * 8, 3)
    with h5py.File(tmp_path / "videos.h5") as file:
        assert file["generated_videos"].shape == file["target_videos"].shape == (3, 8, 3, 8, 8)
        assert file["generated_videos"].compression_opts == 9
        assert float(file["avg_count"][()]) == 2.0
    assert len(paths) == 3
    frames, fps = read_video(tmp_path / "0001.mp4")
    assert frames.shape == (7, 8, 18, 3) and fps == 6
    assert np.load(tmp_path / "0001.npy", allow_pickle=False).shape == (8, 8, 8, 3)
