"""Tables of a fresh transformer start at the scale of the rows that are added up; similar codes start similar."""

import pytest
import torch

from lvt.table_start import CONTEXT_SCALE, SLICE_SCALE, start_tables
from lvt.transformer import VideoTransformer

NODE = {
    "NC": 2, "NV": 32, "D": 48, "DA": 8, "DE": 64, "KERNEL": [7, 3, 3], "STRIDE": [8, 1, 1], "BLOCKS_E": [[1, 6, 6]],
    "N_HEAD_E": [2], "BLOCKS_D": [[1, 6, 6]], "N_HEAD_D": [2], "SHARE_P": False,
}  # fmt: skip


@pytest.fixture
def model():
    torch.manual_seed(0)
    return VideoTransformer(NODE)


def context_features(model, codes):
    """What the encoder's convolution adds up for the last slice, without the border."""
    context, _ = model.slice_inputs(codes, torch.full((len(codes),), 7))
    return model.encoder.conv(context)[:, :, 1:-1, 1:-1]


def test_the_past_is_as_large_as_what_stands_beside_it(model):
    """The matrix start gives a tenth of that."""
    codes = torch.randint(32, (4, 2, 8, 6, 6), generator=torch.Generator().manual_seed(1))
    before = context_features(model, codes).std()
    slices = model.encoder.slice_embedding.weight.clone()
    start_tables(model, 8)
    assert before < 0.3 and 0.7 * CONTEXT_SCALE < context_features(model, codes).std() < 1.4 * CONTEXT_SCALE
    torch.testing.assert_close(model.encoder.slice_embedding.weight, SLICE_SCALE * slices)
    assert 0.8 < model.decoder.embed(codes[:, :, 0]).std() / 2**0.5 < 1.2


def test_codes_that_look_alike_start_alike(model):
    """Rows follow the vectors of the codebook: a code nearly equal to another has nearly its row, in every table."""
    books = [torch.randn(32, 16, generator=torch.Generator().manual_seed(k)) for k in range(2)]
    for book in books:
        book[1] = book[0] + 0.01
    start_tables(model, 8, books)
    tables = [model.encoder.conv.weight[:, :32, 1, 1, 1].t(), model.encoder.conv.weight[:, 32:, 1, 1, 1].t()]
    tables += [layer.weight for layer in model.decoder.ch_embedder]
    tables.append(model.ch_predictor.U[1].weight[:, 48:].t())
    for table in tables:
        near, far = (table[1] - table[0]).norm(), (table[2] - table[0]).norm()
        assert near < 0.1 * far


def test_taps_that_are_never_seen_stay(model):
    """What lies ahead of a frame cannot add anything, and is left alone."""
    ahead = model.encoder.conv.weight[:, :, 4:].clone()
    start_tables(model, 8)
    assert torch.equal(model.encoder.conv.weight[:, :, 4:], ahead)
