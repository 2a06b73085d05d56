"""MaskExplorer: its counts are those of pencil and paper, its weights and losses those that torch computes."""

import math

import pytest
import torch
import torch.nn.functional as F

from lab import faults
from lab.widgets import MaskExplorer
from lab.widgets.mask_explorer import FAULTS, PAD, batch, small_model

LEFT, RIGHT = {"padding": "left"}, {"padding": "right"}


def triangle(n: int) -> int:
    return n * (n + 1) // 2


@pytest.fixture(scope="module")
def explorer() -> MaskExplorer:
    return MaskExplorer((7, 4, 5))


@pytest.fixture(autouse=True)
def as_made(explorer):
    explorer.set(**MaskExplorer((7, 4, 5)).values)


@pytest.mark.parametrize("side", ["left", "right", "middle"])
def test_the_healthy_mask_leaks_nowhere_and_pads_reach_no_loss(explorer, side):
    numbers = explorer.set(padding=side).numbers
    assert (numbers["leaks_in_batch"], numbers["idle_leaks_in_batch"], numbers["on_padding"]) == (0, 0, 0)
    assert numbers["loss"] == numbers["loss_other_pads"] == numbers["loss_healthy"]
    assert explorer.picture.leaks == 0


def test_padded_left_without_the_padding_mask_each_real_query_sees_each_pad(explorer):
    numbers = explorer.set(**LEFT, padding_mask=False, row=1).numbers
    assert (numbers["leaks"], numbers["idle_leaks"]) == (4 * 3, triangle(3))
    assert (numbers["leaks_in_batch"], numbers["idle_leaks_in_batch"]) == (4 * 3 + 5 * 2, triangle(3) + triangle(2))
    assert 0 < numbers["on_padding"] < 1
    assert numbers["loss"] != numbers["loss_other_pads"] and numbers["loss"] != numbers["loss_healthy"]
    assert "Leaks: 12 from real queries, 6 from padding's own rows (all sentences: 22 and 9)" in explorer.text
    assert "what is in the pads reaches it" in explorer.text
    assert explorer.picture.counts(0)["leak: padding may be attended to"] == 12
    assert explorer.picture.counts(1)["leak: weight on padding"] == 12


def test_padded_right_without_the_padding_mask_nothing_real_changes(explorer):
    numbers = explorer.set(**RIGHT, padding_mask=False, row=1).numbers
    assert (numbers["leaks_in_batch"], numbers["idle_leaks"]) == (0, triangle(3))
    assert numbers["loss"] == numbers["loss_other_pads"] == numbers["loss_healthy"]
    assert "does not reach it" in explorer.text and "the same to the last bit" in explorer.text
    assert explorer.picture.leaks == 0


def test_padded_right_the_leak_bites_without_the_causal_mask_or_where_the_loss_counts_pads(explorer):
    both_off = explorer.set(**RIGHT, padding_mask=False, causal=False).numbers
    assert both_off["leaks"] == 4 * 3 + (6 + 0) and both_off["loss"] != both_off["loss_other_pads"]
    counted = explorer.set(causal=True, ignore_padding=False).numbers
    assert counted["leaks_in_batch"] == 0
    assert (counted["counted"], counted["loss"] != counted["loss_healthy"]) == (21, True)


def test_padded_in_the_middle_the_tokens_after_the_pads_leak(explorer):
    numbers = explorer.set(padding="middle", padding_mask=False, row=1).numbers
    assert (numbers["leaks"], numbers["idle_leaks"]) == (2 * 3, triangle(3))


def test_without_the_causal_mask_the_future_leaks(explorer):
    numbers = explorer.set(**LEFT, causal=False, row=1).numbers
    assert numbers["leaks"] == triangle(4) - 4 and numbers["on_padding"] == 0
    assert numbers["loss"] == numbers["loss_other_pads"] != numbers["loss_healthy"]
    assert explorer.picture.counts(1)["leak: weight on the future"] == 6


def test_the_weights_are_those_that_torch_computes_from_the_parameters(explorer):
    explorer.set(**LEFT, padding_mask=False, row=1)
    ids, _ = batch((7, 4, 5), "left", True)
    model = small_model(12, 0)
    block = model.blocks[0]
    with torch.no_grad():
        x = block.self_norm(model.embedder(ids))[1]
        query, key = F.linear(
            x, block.self_attention.in_proj.weight[:32], block.self_attention.in_proj.bias[:32]
        ).chunk(2, -1)
        future = torch.ones(7, 7).triu(1).bool()
        expected = (query @ key.T / 16**0.5).masked_fill(future, -torch.inf).softmax(-1)
    drawn = torch.tensor([[cell.value or 0.0 for cell in row] for row in explorer.picture.grids[1].cells])
    torch.testing.assert_close(drawn, expected, atol=1e-4, rtol=0)  # a cell has four digits
    assert explorer.numbers["on_padding"] == pytest.approx(float(expected[3:, :3].sum(-1).mean()))


def test_the_losses_are_those_that_torch_computes_from_the_logits(explorer):
    numbers = explorer.set(**LEFT, padding_mask=False).numbers
    ids, labels = batch((7, 4, 5), "left", True)
    model = small_model(12, 0)

    def loss() -> float:
        with torch.no_grad():
            logits = model(ids).logits
        return float(F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100))

    assert numbers["loss_healthy"] == pytest.approx(loss(), rel=1e-6)
    with faults.get("attends-to-pads").inject():
        assert numbers["loss"] == pytest.approx(loss(), rel=1e-6)
        with torch.no_grad():
            model.embedder.token.weight[PAD].neg_()
        assert numbers["loss_other_pads"] == pytest.approx(loss(), rel=1e-6)
    assert numbers["counted"] == 7 + 4 + 5


def test_the_fault_is_the_switch_that_is_off(explorer):
    by_switch = explorer.set(**LEFT, padding_mask=False).page.value, dict(explorer.numbers)
    assert (explorer.set(padding_mask=True, fault="attends-to-pads").page.value, explorer.numbers) == by_switch
    explorer.set(causal=False)
    assert "attends-to-pads sits in masks.decoder, which is in use only while both masks are on" in explorer.text


def test_the_fully_masked_rows_of_padding_are_nan_or_uniform_by_the_fault(explorer):
    nan = explorer.set(**LEFT, fault="minus-infinity", row=1).numbers
    assert math.isnan(nan["loss"]) and nan["leaks"] == 0 and nan["idle_leaks"] == 21
    assert "is not a number" in explorer.text
    uniform = explorer.set(fault="minus-1e9").numbers
    assert uniform["idle_leaks"] == 21 and uniform["leaks"] == 0
    assert uniform["loss"] == pytest.approx(uniform["loss_healthy"], rel=1e-6)
    assert explorer.picture.grids[1].cells[0][-1].value == pytest.approx(1 / 7, abs=1e-4)


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_shows_on_a_batch_padded_left_and_leaves_the_kit_healthy(explorer, fault):
    explorer.set(**LEFT)
    good = explorer.page.value
    assert explorer.set(fault=fault).page.value != good
    assert explorer.set(fault="none").page.value == good


def test_a_sentence_without_a_token_and_a_batch_of_none(explorer):
    explorer.set(**LEFT, lengths=(3, 0, 2), row=1)
    assert explorer.numbers["counted"] == 5 and "0 tokens and 3 pads" in explorer.text
    explorer.set(lengths=(0, 0, 0))
    assert "counts no position" in explorer.text


def test_the_targets_are_the_tokens_after_and_the_loss_is_told_of_pads_alone(explorer):
    ids, labels = batch((5, 3), "middle", True)
    assert (labels == -100).tolist() == (ids == PAD).tolist()
    for row in range(2):
        real = ids[row] != PAD
        assert ids[row][real][1:].tolist() == labels[row][real][:-1].tolist()
    assert explorer.set(**LEFT, row=1).picture.counts(2)["for the loss alone: no token"] == 3


def test_the_random_state_is_left_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    MaskExplorer()
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"lengths": ()}, "lengths has 0 sentences"),
        ({"lengths": (1, 2, 3, 4, 5)}, "lengths has 5 sentences"),
        ({"lengths": (13,)}, "lengths holds 13"),
        ({"padding": "top"}, "unknown padding 'top'"),
    ],
)
def test_it_refuses(how, message):
    with pytest.raises(ValueError, match=message):
        MaskExplorer(**how)
