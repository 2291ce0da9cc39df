"""Classes as a condition, and guidance towards them."""

import pytest
import torch

from training.cli import add_class_arguments, make_parser
from training.conditions import ClassEmbedding, class_numbers, drop_labels, guided
from videodata.errors import UserError


def test_each_class_and_none_have_a_vector():
    """Rows of a table (classes + 1, dim), the last for no class; gradients reach the rows that are asked for."""
    embedding = ClassEmbedding(3, 5)
    labels = torch.tensor([2, embedding.none, 2])
    vectors = embedding(labels)
    assert vectors.shape == (3, 5) and embedding.none == 3
    assert torch.equal(vectors, embedding.table.weight[labels]) and not torch.equal(vectors[0], vectors[1])
    vectors.sum().backward()
    assert embedding.table.weight.grad[:, 0].tolist() == [0, 0, 2, 1]


def test_labels_are_dropped_where_the_draw_is_below_the_probability():
    """Each clip by its own draw; 0 drops none, 1 all."""
    labels, uniform = torch.tensor([0, 1, 2, 1]), torch.tensor([0.05, 0.1, 0.0, 0.99])
    assert drop_labels(labels, 3, 0.1, uniform).tolist() == [3, 1, 3, 1]
    assert torch.equal(drop_labels(labels, 3, 0, uniform), labels) and (drop_labels(labels, 3, 1, uniform) == 3).all()
    assert drop_labels(labels, 3, 0.5, uniform).dtype == torch.int64


def test_guidance():
    """1: one call, the same bits; otherwise from what is said without a class towards, and past, what is said with."""
    calls = []

    def predict(labels):
        calls.append(labels.tolist())
        return torch.tensor([[0.1], [0.7], [-0.3]])[labels]

    labels = torch.tensor([0, 1])
    assert torch.equal(guided(predict, labels, 2, 1.0), predict(labels)) and calls == [[0, 1], [0, 1]]
    calls.clear()
    found = guided(predict, labels, 2, 3.0)
    assert sorted(calls) == [[0, 1], [2, 2]]
    assert torch.allclose(found, torch.tensor([[-0.3 + 3 * 0.4], [-0.3 + 3 * 1.0]]))
    assert torch.equal(guided(predict, labels, 2, 0.0), torch.full((2, 1), -0.3))


def test_numbers_of_labels():
    """By name; what has no label gets the number of no class, a label that is none of them is an error."""
    assert class_numbers(("3", "5"), ["5", None, "3"]).tolist() == [1, 2, 0]
    assert class_numbers(("3", "5"), ["5"]).dtype == class_numbers((), []).dtype == torch.int64
    with pytest.raises(UserError, match="class '4'.*there are 3, 5"):
        class_numbers(("3", "5"), ["4"])
    with pytest.raises(UserError, match="there are 0, 1"):  # '1' looks like '10', and is another thing
        class_numbers(("0", "1"), ["10"])


def test_flags():
    """--class and --guidance with their defaults; negative guidance is refused."""
    parser = make_parser("x")
    add_class_arguments(parser)
    assert vars(parser.parse_args([])).items() >= {"class_name": None, "guidance": 1.0}.items()
    args = parser.parse_args(["--class", "Archery", "--guidance", "2.5"])
    assert (args.class_name, args.guidance) == ("Archery", 2.5)
    for value in ("-1", "100.5", "1e9"):
        with pytest.raises(SystemExit):
            parser.parse_args(["--guidance", value])
