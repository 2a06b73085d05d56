"""Masks against their definition, position by position. True = may attend."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lab import masks

PAD = 0


@st.composite
def padded_ids(draw):
    """Ids with padding anywhere: right, left, inner, everywhere, nowhere."""
    length = draw(st.integers(1, 7))
    row = st.lists(st.sampled_from([PAD, 3, 4]), min_size=length, max_size=length)
    return torch.tensor(draw(st.lists(row, min_size=1, max_size=3)))


@given(padded_ids())
def test_decoder_is_causal_and_key_is_real(ids):
    mask = masks.decoder(ids, PAD)
    batch, length = ids.shape
    assert mask.shape == (batch, 1, length, length) and mask.dtype == torch.bool
    for b in range(batch):
        for query in range(length):
            for key in range(length):
                assert mask[b, 0, query, key].item() == (key <= query and ids[b, key].item() != PAD)


@given(padded_ids())
def test_key_is_real_looks_at_keys_alone(ids):
    mask = masks.key_is_real(ids, PAD)
    assert mask.shape == (len(ids), 1, 1, ids.size(1)) and mask.dtype == torch.bool
    assert mask[:, 0, 0].tolist() == [[token != PAD for token in row] for row in ids.tolist()]


@pytest.mark.parametrize("length", [1, 2, 5])
def test_causal_by_its_definition(length):
    assert masks.causal(length).tolist() == [[key <= query for key in range(length)] for query in range(length)]


@given(padded_ids(), st.data())
def test_the_last_rows_are_those_of_the_whole_mask(ids, data):
    last = data.draw(st.integers(1, ids.size(1)))
    assert torch.equal(masks.decoder(ids, PAD, last), masks.decoder(ids, PAD)[:, :, -last:])
    assert torch.equal(masks.causal(ids.size(1), last), masks.causal(ids.size(1))[-last:])
