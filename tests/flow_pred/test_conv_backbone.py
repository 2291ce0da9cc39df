"""The convolutional network and what is common to both backbones: roles, conditions, classes, texts."""

import pytest
import torch

from flow_pred.config import parse_config
from flow_pred.conv_backbone import ConvRegressor
from flow_pred.files import build_regressor
from flow_pred.regressor import VectorFieldRegressor
from tests.flow_pred.tiny import tiny_values
from videodata.errors import UserError

SIZE = {"state_size": 2, "state_res": (4, 3), "inner_dim": 16, "depth": 2}
K = 3


def network(backbone: str = "conv", role: str = "river", **options: object) -> torch.nn.Module:
    """An untrained network whose answer is not 0."""
    torch.manual_seed(0)
    kind, size = (ConvRegressor, SIZE) if backbone == "conv" else (VectorFieldRegressor, {**SIZE, "mid_depth": 1})
    made = kind(**size, role=role, dropout=0.0, num_input_frames=K, **options)
    for parameter in made.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    return made.eval()


def maps(batch: int, frames: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(batch, 2 * frames, 4, 3, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("role", "frames"), [("f", 1), ("g", 1), ("d", K)])
def test_parts_of_the_sde_answer_0_before_they_learn(role, frames):
    """With the newest frame's values, or with those of all frames; every parameter has a gradient once that is over."""
    answer = ConvRegressor(**SIZE, role=role, num_input_frames=K)(maps(2, K))
    assert answer.shape == (2, 2 * frames, 4, 3) and not answer.any()
    trained = network(role=role)
    trained(maps(2, K)).square().sum().backward()
    assert all(parameter.grad is not None for parameter in trained.trained_parameters())


@pytest.mark.parametrize("backbone", ["conv", "transformer"])
@pytest.mark.parametrize("condition", ["random", "last"])
def test_river_reads_all_that_it_is_shown(backbone, condition):
    """Each frame, the path time, and the distance where there is one change the answer."""
    net, time = network(backbone, condition=condition), torch.tensor([0.3, 0.3])
    if condition == "last":
        given = [maps(2, 1), maps(2, K, 1), None, None, time]
    else:
        given = [maps(2, 1), maps(2, 1, 1), maps(2, 1, 2), torch.tensor([1, 1]), time]
    with torch.no_grad():
        answer = net(*given)
        for place, value in enumerate(given):
            if value is not None:
                changed = list(given)
                changed[place] = value + 1
                assert (net(*changed) - answer).abs().max() > 1e-5, place
    assert answer.shape == (2, 2, 4, 3)


@pytest.mark.parametrize("backbone", ["conv", "transformer"])
@pytest.mark.parametrize("text_width", [0, 5])
def test_a_class_changes_the_answer_and_none_is_the_last(backbone, text_width):
    """By its row of the table, or by its text's embedding; no labels are those of no class."""
    net = network(backbone, condition="last", classes=2, text_width=text_width)
    if text_width:
        net.class_code.texts.copy_(torch.randn(2, 5))
    else:
        torch.nn.init.normal_(net.class_code.table.weight)
    given = (maps(1, 1), maps(1, K, 1), None, None, torch.tensor([0.3]))
    with torch.no_grad():
        first, second, none, silent = (
            net(*given, labels) for labels in (torch.tensor([0]), torch.tensor([1]), torch.tensor([2]), None)
        )
    assert (first - second).abs().max() > 1e-5 and (first - none).abs().max() > 1e-5
    assert torch.equal(none, silent)


def test_the_configuration_chooses_the_backbone_and_names_what_it_cannot_do():
    """Sizes that no network has, and keys that need another one."""
    model = parse_config(tiny_values("river", backbone="conv", condition="last")).model
    assert isinstance(build_regressor(model), ConvRegressor)
    with pytest.raises(UserError, match="state_res"):
        network(role="f")(torch.zeros(1, 2 * K, 4, 4))
    with pytest.raises(UserError, match="multiple of 8"):
        ConvRegressor(**{**SIZE, "inner_dim": 12}, role="f", num_input_frames=K)
    with pytest.raises(UserError, match="transformer or conv"):
        parse_config(tiny_values("river", backbone="unet"))
    with pytest.raises(UserError, match="random or last"):
        parse_config(tiny_values("river", condition="first"))
    with pytest.raises(UserError, match="condition: last"):
        parse_config(tiny_values("river", context_noise=0.1))
    with pytest.raises(UserError, match="condition of RIVER"):
        parse_config(tiny_values("f_mse", classes=["a"]))


def test_a_state_dict_fits_both_ways_of_making_it():
    """Channels-last weights are the same numbers under the same names."""
    first, second = network(), network()
    second.load_state_dict({key: value.contiguous() for key, value in first.state_dict().items()})
    given = (maps(1, 1), maps(1, 1, 1), maps(1, 1, 2), torch.tensor([2]), torch.tensor([0.1]))
    with torch.no_grad():
        torch.testing.assert_close(second(*given), first(*given))
