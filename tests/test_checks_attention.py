"""Attention read where it is computed: each slip is named on a decoder that is not the kit's, and nothing else is."""

import pytest
import torch
from foreign import hugging_face
from plain import LEFT, PAD, Plain
from torch import nn
from torch.nn import functional as F

import lab
from lab.intercept import attentions
from lab.subject import Subject

OURS = ["attention-scale", "softmax-axis", "mask-fill", "head-mixing"]
ALSO = ["batch-independence", "sees-the-future", "attends-to-pads", "blind-to-itself", "residual", "mask-ignored"]


def diagnosed(model, ids=LEFT, only=(*OURS, *ALSO), **more):
    report = lab.diagnose(Subject(model, {"input_ids": ids}, kind="causal_lm", pad_id=PAD, **more), only=only)
    assert not report.errors, report.errors
    return report


def roots(report):
    return {finding.check for finding in report.findings if not finding.follows}


def test_a_healthy_decoder_passes():
    assert set(diagnosed(Plain()).passed) == {*OURS, *ALSO}


def scores(q, k):
    return q @ k.transpose(-2, -1)


def low(mask):
    """What is added to scores to block them."""
    return torch.zeros(mask.shape).masked_fill(~mask, -1e9)


def fused(q, k, mask, **how):
    return F.scaled_dot_product_attention(q, k, torch.eye(k.size(2), dtype=q.dtype), attn_mask=mask, **how)


SLIPS = {
    "not scaled": lambda q, k, mask: (scores(q, k) + low(mask)).softmax(-1),
    "sqrt(d_model)": lambda q, k, mask: (scores(q, k) / 24**0.5 + low(mask)).softmax(-1),
    "multiplied by sqrt(d_k)": lambda q, k, mask: (scores(q, k) * 6**0.5 + low(mask)).softmax(-1),
    "scaled twice": lambda q, k, mask: fused(q / 6**0.5, k, mask),
    "number of keys": lambda q, k, mask: (scores(q, k) / k.size(2) ** 0.5 + low(mask)).softmax(-1),
    "number of heads": lambda q, k, mask: (scores(q, k) / q.size(1) ** 0.5 + low(mask)).softmax(-1),
}


@pytest.mark.parametrize("slip", list(SLIPS))
def test_each_slip_of_the_scale_is_named(slip):
    report = diagnosed(Plain(weigh=SLIPS[slip]))
    assert roots(report) == {"attention-scale"}, report.text()
    (finding,) = report.findings
    assert slip in finding.message and finding.severity == "P2" and finding.evidence["attentions"] == 2
    assert finding.evidence["module"] == "blocks.0.attention" and finding.where.path.endswith(".py")


RIGHT_SCALES = {
    "a scaled query": lambda q, k, mask: (scores(q * 6**-0.5, k) + low(mask)).softmax(-1),
    "half on each": lambda q, k, mask: (scores(q * 6**-0.25, k / 6**0.25) + low(mask)).softmax(-1),
    "a scaled query and scale=1": lambda q, k, mask: fused(q * 6**-0.5, k, mask, scale=1.0),
    "one over d_k": lambda q, k, mask: (scores(q, k) / 6 + low(mask)).softmax(-1),
    "capped": lambda q, k, mask: ((scores(q, k) / 6**0.5 / 30).tanh() * 30 + low(mask)).softmax(-1),
    "einsum": lambda q, k, mask: (torch.einsum("bhid,bhjd->bhij", q, k) * 6**-0.5 + low(mask)).softmax(-1),
    "float32, on purpose": lambda q, k, mask: (scores(q.float(), k.float()) + low(mask)).softmax(-1).to(q.dtype),
    "a scale of 1, on purpose": lambda q, k, mask: (scores(q, k) * 1.0 + low(mask)).softmax(-1),
}


@pytest.mark.parametrize("how", list(RIGHT_SCALES))
def test_other_ways_to_scale_are_right_too(how):
    report = diagnosed(Plain(weigh=RIGHT_SCALES[how]), only=OURS)
    assert set(report.passed) == set(OURS), report.text()


def test_t5_keeps_its_queries_small_instead_of_scaling():
    batch = {"input_ids": torch.arange(5, 13)[None], "labels": torch.arange(20, 26)[None]}
    assert lab.diagnose(hugging_face("t5"), batch, only=["attention-scale"]).passed == ["attention-scale"]


def test_query_and_key_with_norms_are_not_judged():
    report = diagnosed(Plain(weigh=lambda q, k, mask: (scores(F.normalize(q, dim=-1), k) + low(mask)).softmax(-1)))
    assert "norm" in report.skipped["attention-scale"] and not report.findings


AXES = {
    "heads": lambda q, k, mask: (scores(q, k) / 6**0.5 + low(mask)).softmax(1),
    "queries": lambda q, k, mask: (scores(q, k) / 6**0.5 + low(mask)).softmax(-2),
}


@pytest.mark.parametrize("over", list(AXES))
def test_the_axis_of_the_softmax_is_named(over):
    report = diagnosed(Plain(weigh=AXES[over]))
    assert roots(report) == {"softmax-axis"}, report.text()
    assert f"sum to 1 over the {over}, not over the keys" in report.by_check("softmax-axis")[0].message


def test_a_transposed_layout_is_no_wrong_axis():
    """Weights as (keys, queries), summed over the first: the softmax is over dim=-2, and right."""

    def weigh(q, k, mask):
        return (scores(k, q) / 6**0.5 + low(mask).transpose(-2, -1)).softmax(-2).transpose(-2, -1)

    assert set(diagnosed(Plain(weigh=weigh), only=OURS).passed) == set(OURS)


def test_weights_that_sum_to_less_by_design_are_let_be():
    """A sink: one more score, whose column is dropped."""

    def weigh(q, k, mask):
        wide = torch.cat([scores(q, k) / 6**0.5 + low(mask), torch.zeros(*q.shape[:3], 1, dtype=q.dtype)], -1)
        return wide.softmax(-1)[..., :-1]

    report = diagnosed(Plain(weigh=weigh), only=OURS)
    assert not report.findings, report.text()


WEAK = {
    "tiny": lambda q, k, mask: (scores(q, k) / 6**0.5).masked_fill(~mask, -1e-9).softmax(-1),
    "times": lambda q, k, mask: (scores(q, k) / 6**0.5 * mask).softmax(-1),
    "added as 0 and 1": lambda q, k, mask: fused(q, k, mask.expand(len(q), 1, -1, -1).to(q.dtype)),
    "minus one": lambda q, k, mask: (scores(q, k) / 6**0.5 - (~mask).to(q.dtype)).softmax(-1),
    "where": lambda q, k, mask: torch.where(mask, scores(q, k) / 6**0.5, torch.zeros((), dtype=q.dtype)).softmax(-1),
    "after the softmax": lambda q, k, mask: (scores(q, k) / 6**0.5).softmax(-1) * mask,
}


@pytest.mark.parametrize("how", list(WEAK))
def test_a_mask_that_is_too_weak_is_the_root_of_what_follows(how):
    report = diagnosed(Plain(weigh=WEAK[how]))
    assert roots(report) == {"mask-fill"}, report.text()
    (finding,) = report.by_check("mask-fill")
    assert finding.severity == "P0" and max(v for v in finding.evidence.values() if isinstance(v, float)) > 0.1
    assert {f.check for f in report.findings if f.follows == "mask-fill"} >= {"sees-the-future"}


def written(q, k, mask):
    values = scores(q, k) / 6**0.5
    values[~mask.expand_as(values)] = -1e9
    return values.softmax(-1)


STRONG = {
    "gpt-1": lambda q, k, mask: (scores(q, k) / 6**0.5 * mask + -1e4 * (~mask).to(q.dtype)).softmax(-1),
    "written": written,
    "twice": lambda q, k, mask: ((scores(q, k) / 6**0.5).masked_fill(~mask, -1e9).softmax(-1)) * mask,
    "renormalised": lambda q, k, mask: F.normalize((scores(q, k) / 6**0.5).softmax(-1) * mask, p=1, dim=-1),
}


@pytest.mark.parametrize("how", list(STRONG))
def test_other_ways_to_block_a_key_are_right_too(how):
    report = diagnosed(Plain(weigh=STRONG[how]), only=OURS)
    assert not report.findings, report.text()


def test_view_at_the_split_and_at_the_merge_are_told_from_a_missing_mask():
    cut = Plain(split=lambda x: x.view(x.size(0), 4, x.size(1), -1))
    glued = Plain(merge=lambda out: out.reshape(out.size(0), out.size(2), -1))
    for model, word in ((cut, "split"), (glued, "merge")):
        report = diagnosed(model)
        assert roots(report) == {"head-mixing"}, report.text()
        finding = report.by_check("head-mixing")[0]
        assert word in finding.message and finding.where.path.endswith("test_checks_attention.py")
        assert "sees-the-future" in {f.check for f in report.findings if f.follows}
    report = diagnosed(Plain(see=lambda ids: (ids != PAD)[:, None, None, :]))
    assert roots(report) == {"sees-the-future"} and "head-mixing" in report.passed


def test_heads_in_another_order_are_no_mixture():
    def split(x):
        return x.view(*x.shape[:2], -1, 4).permute(0, 3, 1, 2)

    assert "head-mixing" in diagnosed(Plain(split=split)).passed


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.table, self.layer, self.head = nn.Embedding(60, 8), nn.GRU(8, 8, batch_first=True), nn.Linear(8, 60)

    def forward(self, input_ids):
        return self.head(self.layer(self.table(input_ids))[0])


def test_without_attention_the_reason_is_given():
    report = diagnosed(Recurrent())
    assert all("no attention was seen" in report.skipped[check] for check in OURS)
    assert {"sees-the-future", "batch-independence", "blind-to-itself"} <= set(report.passed)


def test_pytorchs_own_attention_is_read_with_and_without_its_weights():
    torch.manual_seed(0)
    layer, x = nn.MultiheadAttention(24, 4, batch_first=True).eval(), torch.randn(3, 7, 24)
    for need_weights in (True, False):
        with torch.no_grad(), attentions(layer) as seen:
            out, weights = layer(x, x, x, need_weights=need_weights, average_attn_weights=False)
        (mine,) = seen
        assert mine.width == 6 and mine.scale == pytest.approx(6**-0.5) and mine.clear
        if need_weights:
            torch.testing.assert_close(mine.weights.view_as(weights), weights)
        assert out.shape == x.shape and not layer._forward_hooks and not layer._forward_pre_hooks
