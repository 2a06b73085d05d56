"""Masks of any spelling are read off one example and spelled again for a batch of other sizes."""

import pytest
import torch
from foreign import PAD, VOCAB
from torch import nn

import lab
from lab.spelling import attend_to, respelled

REAL = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]]).bool()
LONG = torch.tensor([[1, 1, 1, 1, 1, 1], [0, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0]]).bool()
KEYS = LONG[:, None, None, :]
PAST = torch.ones(6, 6).tril().bool()


def additive(mask, low=float("-inf")):
    return torch.zeros(mask.shape).masked_fill(~mask, low)


@pytest.mark.parametrize(
    "spell",
    [lambda m: m, lambda m: ~m, lambda m: m.long(), lambda m: m.float(), additive, lambda m: additive(m, -1e9)],
    ids=["attend", "blocked", "ones", "floating ones", "-inf", "-1e9"],
)
def test_a_padding_mask_is_spelled_as_its_example_is(spell):
    assert torch.equal(attend_to(spell(REAL), REAL)(LONG), spell(LONG))


@pytest.mark.parametrize("spell", [lambda m: m, lambda m: ~m, additive], ids=["attend", "blocked", "-inf"])
@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        (lambda real: real[:, None, :], KEYS[:, 0]),
        (lambda real: real[:, None, None, :], KEYS),
        (lambda real: torch.ones(4, 4).tril().bool(), PAST),
        (lambda real: torch.ones(4, 4).tril().bool() & real[:, None, :], PAST & KEYS[:, 0]),
        (lambda real: torch.ones(4, 4).tril().bool() & real[:, None, None, :], PAST & KEYS),
    ],
    ids=["B 1 S", "B 1 1 S", "T T", "B T T", "B 1 T T"],
)
def test_a_mask_over_queries_and_keys_is_spelled_for_other_sizes(spell, shape, expected):
    made = respelled(spell(shape(REAL)), REAL, REAL)(LONG, LONG)
    assert made.shape == expected.shape and torch.equal(made, spell(expected))


def test_a_mask_of_no_known_pattern_is_left_alone():
    assert respelled(torch.eye(4).bool(), REAL, REAL) is None
    assert respelled(torch.ones(2, 5, 5).bool(), REAL, REAL) is None


class Annotated(nn.Module):
    """Takes its masks as the annotated transformer does: (B, T, T), True = may attend, or the other way round."""

    def __init__(self, inverted: bool, heeds: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inverted, self.heeds = inverted, heeds
        self.embedding, self.place = nn.Embedding(VOCAB, 16), nn.Embedding(40, 16)
        self.attention, self.head = nn.MultiheadAttention(16, 2, batch_first=True), nn.Linear(16, VOCAB)

    def forward(self, tgt, tgt_mask):
        blocked = tgt_mask if self.inverted else ~tgt_mask
        blocked = blocked if self.heeds else torch.ones_like(blocked).triu(1)
        x = self.embedding(tgt) + self.place(torch.arange(tgt.size(1)))
        blocked = blocked.repeat_interleave(2, dim=0) & ~torch.eye(tgt.size(1)).bool()  # no row without a key
        return self.head(x + self.attention(x, x, x, attn_mask=blocked)[0])


@pytest.mark.parametrize("inverted", [False, True])
def test_a_model_that_takes_one_mask_for_both_needs_no_wiring(inverted):
    ids = torch.tensor([[5, 6, 7, 8], [PAD, 9, 10, 11]])
    mask = torch.ones(4, 4).tril().bool() & (ids != PAD)[:, None, :]
    batch = {"tgt": ids, "tgt_mask": ~mask if inverted else mask}
    asked = ["sees-the-future", "attends-to-pads"]

    def report(model):
        return lab.diagnose(lab.Subject(model, batch, kind="causal_lm", pad_id=PAD), only=asked)

    assert set(report(Annotated(inverted)).passed) == set(asked)
    assert report(Annotated(inverted, heeds=False)).by_check("attends-to-pads")
