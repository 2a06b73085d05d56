"""Attention, softmax row and schedule: each number beside what torch, or arithmetic, says of it."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lab import seen
from lab.config import TrainConfig
from lab.widgets import AttentionExplorer, ScheduleExplorer, SoftmaxRowExplorer

# AttentionExplorer


def one(kind: str, layer: int, heads: int, seed: int = 0) -> seen.Seen:
    weights = torch.rand(2, heads, 3, 3, generator=torch.Generator().manual_seed(seed)).softmax(-1)
    pads = torch.tensor([[True, False, False], [False, False, False]])
    should = ~pads[:, None].expand(2, 3, 3)
    names = [["p", "a", "b"]] * 2
    return seen.Seen(f"{kind}.{layer}", kind, layer, weights, None, should, names, names, pads, pads)


FOUND = [one("encoder", 0, 2), one("encoder", 1, 3), one("decoder", 0, 1)]


def test_kind_layer_head_and_row_choose_what_is_drawn():
    explorer = AttentionExplorer(FOUND)
    assert explorer.values == {"kind": "decoder", "layer": 0, "head": 0, "row": 0}
    explorer.set(kind="encoder", layer=1, head=2, row=1)
    drawn = torch.tensor([[cell.value for cell in row] for row in explorer.picture.grids[0].cells])
    torch.testing.assert_close(drawn, FOUND[1].weights[1, 2], atol=1e-4, rtol=0)  # a cell has four digits
    assert explorer.text.startswith("encoder layer 1, head 2, sentence 1 with 0 pads")


def test_leaks_and_mass_on_padding_are_those_of_the_weights():
    explorer = AttentionExplorer(FOUND).set(kind="encoder", head=1)
    share = float(FOUND[0].weights[0, 1, 1:, 0].mean())
    assert f"real queries give {share:.1%} of their weight to padding, with 2 leaks; 1 leaks" in explorer.text
    both = f"{float(torch.cat([FOUND[0].weights[0, :, 1:, 0].flatten(), torch.zeros(6)]).mean()):.1%}"
    assert f"All heads and sentences of the layer: real queries give {both}" in explorer.text


def test_a_kind_with_fewer_layers_and_heads_draws_the_controls_in():
    explorer = AttentionExplorer(FOUND).set(kind="encoder", layer=1, head=2)
    explorer.controls["kind"].value = "decoder"
    assert explorer.values == {"kind": "decoder", "layer": 0, "head": 0, "row": 0}
    with pytest.raises(ValueError, match="layer is 1; it must be a whole number from 0 to 0"):
        explorer.set(layer=1)
    assert explorer.controls["head"].disabled and not explorer.controls["row"].disabled


def test_faulty_healthy_and_both():
    other = [one("encoder", 0, 2, 7), one("encoder", 1, 3, 8), one("decoder", 0, 1, 9)]
    explorer = AttentionExplorer(FOUND, healthy=other).set(kind="encoder")
    faulty = explorer.page.value
    assert explorer.set(model="healthy").page.value == AttentionExplorer({"x": other}).set(kind="encoder").page.value
    explorer.set(model="both, and the difference")
    assert len(explorer.picture.grids) == 3 and len(explorer.lines) == 2
    assert explorer.set(model="faulty").page.value == faulty
    three = AttentionExplorer({"a": FOUND, "b": other, "c": FOUND})
    assert [value for _, value in three.controls["model"].options] == ["a", "b", "c"]


class Foreign(nn.Module):
    """A model that nobody here wrote the attention of: torch's own, causal, with or without the padding mask."""

    def __init__(self, masked: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.masked = nn.Embedding(9, 8), masked
        self.attention, self.head = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 9)

    def forward(self, input_ids, labels=None):
        x, pads = self.embedding(input_ids), input_ids == 0
        future = torch.ones(x.size(1), x.size(1), dtype=torch.bool).triu(1)
        mask = future[None].repeat_interleave(2 * len(x), 0)
        if self.masked:
            mask = mask | (pads.repeat_interleave(2, 0)[:, None] & ~torch.eye(x.size(1), dtype=torch.bool))
        out, self.weights = self.attention(x, x, x, attn_mask=mask, average_attn_weights=False)
        return self.head(out)


def test_of_a_model_it_draws_what_the_model_itself_computed():
    ids = torch.tensor([[0, 0, 5, 6, 7], [1, 2, 3, 4, 5]])
    faulty, healthy = Foreign(False).eval(), Foreign(True).eval()
    how = {"tokens": "abcdefghi".__getitem__, "kind": "causal_lm", "pad_id": 0}
    explorer = AttentionExplorer(faulty, {"input_ids": ids}, healthy=healthy, **how)
    explorer.set(head=1)
    faulty(ids)
    drawn = torch.tensor([[cell.value or 0.0 for cell in row] for row in explorer.picture.grids[0].cells])
    torch.testing.assert_close(drawn, faulty.weights[0, 1].detach(), atol=1e-4, rtol=0)
    assert "with 6 leaks; 3 leaks" in explorer.text and "▨ a" in explorer.picture.grids[0].columns
    assert "with 0 leaks" in explorer.set(model="healthy").text


@pytest.mark.parametrize(
    ("given", "how", "error", "message"),
    [
        (3, {}, TypeError, "int"),
        ({}, {}, ValueError, "model is empty"),
        ({"a": FOUND}, {"healthy": FOUND}, ValueError, "healthy is given beside models by name"),
        (nn.Linear(2, 2), {}, ValueError, "batch is None"),
    ],
)
def test_attention_explorer_refuses(given, how, error, message):
    with pytest.raises(error, match=message):
        AttentionExplorer(given, **how)


# SoftmaxRowExplorer

SCORES = (0.3, -1.2, 2.0, 0.7)
INF, BIG, MIN, SDPA, WITH, WITHOUT = list(SoftmaxRowExplorer().rows)


def row(blocked, scores=SCORES) -> SoftmaxRowExplorer:
    return SoftmaxRowExplorer(scores, blocked=blocked)


def test_where_a_key_is_left_all_conventions_agree():
    blocked = [True, False, False, True]
    left = torch.tensor(SCORES)[1:3].softmax(0)
    explorer = row(blocked)
    for found in explorer.rows.values():
        torch.testing.assert_close(found.weights, torch.tensor([0.0, *left, 0.0]))
        assert found.to_scores[[0, 3]].tolist() == [0, 0] and found.to_scores.isfinite().all()
    assert explorer.picture.counts()["exactly 0"] == 12 and explorer.picture.leaks == 0


def test_where_no_key_is_left_they_do_not():
    explorer = row([True] * 4)
    rows = explorer.rows
    assert rows[INF].weights.isnan().all() and rows[INF].to_values.isnan().all()
    for name in (BIG, MIN):
        torch.testing.assert_close(rows[name].weights, torch.full((4,), 0.25))
    assert "sums to 1, 1.00 of it on blocked keys, 0.50 on those in the future" in explorer.text
    assert explorer.picture.counts()["leak: weight on the future"] == 4
    assert "each weight is NaN" in explorer.text


@pytest.mark.parametrize("blocked", [[True] * 4, [True, True, False, True], [False] * 4])
def test_sdpa_and_multihead_answer_as_torch_itself_does(blocked):
    rows, mask = row(blocked).rows, torch.tensor(blocked)
    query = torch.zeros(1, 1, 1, 8)
    query[..., 0] = 8**0.5
    key = torch.zeros(1, 1, 4, 8)
    key[..., 0] = torch.tensor(SCORES)
    values = torch.eye(4)[None, None]
    expected = F.scaled_dot_product_attention(query, key, values, attn_mask=~mask.expand(1, 1, 1, 4))[0, 0, 0]
    torch.testing.assert_close(rows[SDPA].weights, expected, equal_nan=True)
    layer = nn.MultiheadAttention(8, 2)
    x, tokens = torch.randn(1, 8), torch.randn(4, 8)
    for name, need in ((WITH, True), (WITHOUT, False)):
        out = layer(x, tokens, tokens, attn_mask=mask[None], need_weights=need)[0]
        assert bool(out.isnan().any()) == bool(rows[name].weights.isnan().any())
    if not all(blocked):
        for name in (WITH, WITHOUT):
            torch.testing.assert_close(rows[name].weights, expected)


def test_the_gradient_is_that_of_the_softmax():
    found = row([False] * 4).rows[INF]
    weights, values = torch.tensor(SCORES).softmax(0), torch.arange(1.0, 5)
    torch.testing.assert_close(found.to_scores, weights * (values - weights @ values))
    torch.testing.assert_close(found.to_values, weights)


def test_a_nan_gradient_is_marked_and_said():
    explorer = row([True] * 4)
    cells = dict(zip(explorer.rows, explorer.picture.grids[0].cells, strict=True))
    for name, found in explorer.rows.items():
        for cell, gradient in zip(cells[name][-2:], (found.to_scores, found.to_values), strict=True):
            assert (cell.state == "not a number") == bool(gradient.isnan().any())
    assert f"{INF}: each weight is NaN, and so is the gradient of the values." in explorer.lines


def test_a_row_with_controls_moved_is_the_row_made_so():
    explorer = SoftmaxRowExplorer().set(scores=SCORES, blocked=[True, False, True, False])
    assert explorer.page.value == row([True, False, True, False]).page.value


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"scores": ()}, "scores has 0 numbers"),
        ({"scores": (1.0, 2.0)}, "keys has 4 entries, but there are 2 scores"),
        ({"blocked": [True]}, "blocked has 1 entries"),
        ({"query": 4}, r"query is 4; the keys are numbered 0\.\.3"),
        ({"scores": (1.0, 2.0, 3.0, 40.0)}, "scores holds 40.0"),
        ({"scores": (1.0, 2.0, 3.0, 0.25)}, "scores is 0.25; it must be a multiple of 0.1"),
    ],
)
def test_softmax_row_refuses(how, message):
    with pytest.raises(ValueError, match=message):
        SoftmaxRowExplorer(**how)


# ScheduleExplorer


def test_the_curve_is_that_of_the_formula():
    explorer = ScheduleExplorer(TrainConfig(400, 2e-3, "cosine", 50, 0.1))
    frame = explorer.as_frame()
    for step in (0, 20, 49, 50, 200, 399):
        cosine = 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * max(0, step - 50) / 350))
        assert frame.loc[step, "rate"] == pytest.approx(2e-3 * min(1, (step + 1) / 50) * cosine)
    assert len(frame) == 400
    assert explorer.numbers["mean"] == pytest.approx(frame["rate"].mean())
    assert (explorer.numbers["peak_step"], explorer.numbers["highest"]) == (49, pytest.approx(2e-3))
    assert explorer.numbers["warmup_share"] == 0.125 and "12.5%" in explorer.text


def test_it_is_what_an_optimizer_is_given_by_torch():
    """Linear to 0 after warmup, by torch's own schedulers."""
    explorer = ScheduleExplorer(TrainConfig(100, 0.1, "linear", 10, 0.0))
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    up = torch.optim.lr_scheduler.LinearLR(optimizer, 0.1, 1.0, 9)
    down = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, 90)
    both = torch.optim.lr_scheduler.SequentialLR(optimizer, [up, down], [10])
    rates = []
    for _ in range(100):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        both.step()
    assert explorer.as_frame()["rate"].tolist() == pytest.approx(rates, abs=1e-9)


def test_a_long_run_is_sampled_and_its_mean_is_near():
    explorer = ScheduleExplorer(TrainConfig(100_000, 1e-3, "linear", 10_000, 0.0))
    assert len(explorer.as_frame()) < 3000
    assert explorer.numbers["mean"] == pytest.approx(0.5e-3, rel=1e-3)
    assert explorer.numbers["peak_step"] == 9_999 and "about" in explorer.text
    explorer.set(warmup_steps=0)
    assert explorer.numbers["mean"] == pytest.approx(
        sum(1e-3 * (1 - step / 1e5) for step in range(100_000)) / 1e5, rel=1e-4
    )


@pytest.mark.parametrize(("warmup", "warned"), [(1500, True), (1001, True), (1000, False), (0, False)])
def test_a_warmup_longer_than_the_run_is_warned_of(warmup, warned):
    explorer = ScheduleExplorer().set(warmup_steps=warmup)
    assert ("The warmup is longer than the run" in explorer.text) == warned
    if warned:
        assert explorer.numbers["peak_step"] == 999
        assert f"reaches {1000 / warmup:.1%} of the peak" in explorer.text


def test_a_shorter_run_draws_the_warmup_in():
    explorer = ScheduleExplorer().set(warmup_steps=900)
    explorer.controls["steps"].value = 200
    assert explorer.values["warmup_steps"] == 400
    with pytest.raises(ValueError, match="warmup_steps is 500; it must be a whole number from 0 to 400"):
        explorer.set(warmup_steps=500)


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_the_shortest_runs_are_drawn(steps):
    explorer = ScheduleExplorer(TrainConfig(steps, warmup_steps=0))
    assert len(explorer.as_frame()) == steps
    assert explorer.still().render("png").startswith(b"\x89PNG")
