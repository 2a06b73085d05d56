"""Labels: what the decoder is fed, how rows are padded, what the loss counts."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from lab import labels as L

PAD, START, EOS = 0, 1, 2
LABEL = st.one_of(st.just(L.IGNORE_INDEX), st.integers(2, 9))


@st.composite
def batches(draw, label=LABEL):
    length = draw(st.integers(1, 6))
    return torch.tensor(draw(st.lists(st.lists(label, min_size=length, max_size=length), min_size=1, max_size=4)))


@given(batches())
def test_shift_right_by_its_definition(labels):
    for row, fed in zip(labels.tolist(), L.shift_right(labels, START, PAD).tolist(), strict=True):
        real = [t for t, label in enumerate(row) if label != L.IGNORE_INDEX]
        for t, token in enumerate(fed):
            before = row[t - 1] if t else L.IGNORE_INDEX
            expected = START if real[:1] == [t] else PAD if before == L.IGNORE_INDEX else before
            assert token == expected


@given(batches())
def test_ignore_index_never_reaches_the_decoder(labels):
    given_labels = labels.clone()
    assert (L.shift_right(labels, START, PAD) >= 0).all()
    assert torch.equal(labels, given_labels), "the labels themselves must stay"


@pytest.mark.parametrize(
    ("row", "fed"),
    [
        ([5, 6, 2, -100, -100], [1, 5, 6, 2, 0]),
        ([-100, -100, 5, 6, 2], [0, 0, 1, 5, 6]),
        ([5, -100, 6, 2], [1, 5, 0, 6]),
        ([-100, -100], [0, 0]),
        ([5], [1]),
    ],
    ids=["right", "left", "inner", "nothing", "one"],
)
def test_shift_right_keeps_padding_where_it_is(row, fed):
    assert L.shift_right(torch.tensor([row]), START, PAD).tolist() == [fed]


@given(st.lists(st.lists(st.integers(2, 9), min_size=1, max_size=6), min_size=1, max_size=4))
def test_shift_right_equals_hugging_face_on_right_padding(rows):
    from transformers.models.bart.modeling_bart import shift_tokens_right

    labels = L.pad(rows, L.IGNORE_INDEX)
    assert torch.equal(L.shift_right(labels, START, PAD), shift_tokens_right(labels, PAD, START))


def test_pad_by_side():
    rows = [[5], [6, 7, 8]]
    assert L.pad(rows, PAD).tolist() == [[5, 0, 0], [6, 7, 8]]
    assert L.pad(rows, PAD, "left").tolist() == [[0, 0, 5], [6, 7, 8]]


@pytest.mark.parametrize("side", ["left", "right"])
def test_collate_pairs(side):
    batch = L.collate_pairs([([5, 6], [7]), ([8], [3, 4])], pad_id=PAD, bos_id=START, eos_id=EOS, side=side)
    right = {
        "input_ids": [[5, 6, 2], [8, 2, 0]],
        "decoder_input_ids": [[1, 7, 2], [1, 3, 4]],
        "labels": [[7, 2, -100], [3, 4, 2]],
    }
    left = {
        "input_ids": [[5, 6, 2], [0, 8, 2]],
        "decoder_input_ids": [[0, 1, 7], [1, 3, 4]],
        "labels": [[-100, 7, 2], [3, 4, 2]],
    }
    assert {name: ids.tolist() for name, ids in batch.items()} == (right if side == "right" else left)


def test_collate_takes_tensors_and_lists():
    pairs = [([5, 6], [7]), ([8], [3, 4])]
    ids = {"pad_id": PAD, "bos_id": START, "eos_id": EOS}
    of_lists = L.collate_pairs(pairs, **ids)
    of_tensors = L.collate_pairs([(torch.tensor(s), torch.tensor(t)) for s, t in pairs], **ids)
    assert all(torch.equal(of_lists[name], of_tensors[name]) for name in of_lists)


def test_collate_texts_labels_are_one_ahead():
    batch = L.collate_texts([[5, 6], [7]], pad_id=PAD, bos_id=START, eos_id=EOS)
    assert batch["input_ids"].tolist() == [[1, 5, 6], [1, 7, 2]]
    assert batch["labels"].tolist() == [[5, 6, 2], [7, 2, -100]]


@pytest.mark.parametrize("collate", [L.collate_pairs, L.collate_texts])
def test_collate_refuses_a_batch_without_a_row(collate):
    with pytest.raises(ValueError, match="no row; give at least one"):
        collate([], pad_id=PAD, bos_id=START, eos_id=EOS)


def test_collate_refuses_a_batch_of_all_padding():
    with pytest.raises(ValueError, match="all padding: none of its 2 pairs holds a token"):
        L.collate_pairs([([], []), ([], [])], pad_id=PAD, bos_id=START, eos_id=EOS)


@pytest.mark.parametrize(("collate", "row"), [(L.collate_pairs, ([5], [6])), (L.collate_texts, [5])])
def test_collate_refuses_an_unknown_side(collate, row):
    with pytest.raises(ValueError, match="side is 'center'; it is 'left' or 'right'"):
        collate([row], pad_id=PAD, bos_id=START, eos_id=EOS, side="center")


@given(batches(st.one_of(st.just(L.IGNORE_INDEX), st.integers(0, 9))), st.integers(0, 99))
def test_cross_entropy_is_the_mean_over_what_counts(labels, seed):
    logits = torch.randn(*labels.shape, 10, generator=torch.Generator().manual_seed(seed), requires_grad=True)
    loss = L.cross_entropy(logits, labels)
    loss.backward()
    assert torch.equal(logits.grad.abs().sum(-1) > 0, labels != L.IGNORE_INDEX)
    if (labels != L.IGNORE_INDEX).any():
        torch.testing.assert_close(loss, F.cross_entropy(logits.flatten(0, 1), labels.flatten()))


def test_cross_entropy_of_nothing_is_zero_with_zero_gradients():
    logits = torch.randn(2, 3, 5, requires_grad=True)
    loss = L.cross_entropy(logits, torch.full((2, 3), L.IGNORE_INDEX))
    loss.backward()
    assert loss.item() == 0.0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


@pytest.mark.parametrize(
    ("given_type", "loss_type"),
    [(torch.bfloat16, torch.float32), (torch.float32, torch.float32), (torch.float64, torch.float64)],
)
def test_cross_entropy_never_computes_in_less_than_it_is_given(given_type, loss_type):
    logits, labels = torch.randn(2, 3, 5).to(given_type), torch.randint(5, (2, 3))
    loss = L.cross_entropy(logits, labels)
    assert loss.dtype == loss_type
    torch.testing.assert_close(loss, F.cross_entropy(logits.to(loss_type).flatten(0, 1), labels.flatten()))


@pytest.mark.parametrize(("logits", "labels"), [((2, 3, 5), (2, 4)), ((2, 3, 5), (6,)), ((6, 5), (6,))])
def test_cross_entropy_refuses_shapes_that_do_not_fit(logits, labels):
    with pytest.raises(ValueError, match=r"need \(B, T, V\), \(B, T\)"):
        L.cross_entropy(torch.randn(logits), torch.zeros(labels, dtype=torch.long))


def test_count_targets():
    assert L.count_targets(torch.tensor([[5, -100], [0, 7]])) == 3
    with pytest.raises(ValueError, match=r"every label of this \(2, 3\) batch is -100 .*drop it, or label a token"):
        L.count_targets(torch.full((2, 3), L.IGNORE_INDEX))
