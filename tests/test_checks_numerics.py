"""The checks on precision, paths, noise and memory, on models that nobody here wrote."""

import numpy
import pytest
import torch
import torch.nn.functional as F
from foreign import EOS, PAD, NanoGPT, TorchTransformer, hugging_face, pairs_batch
from torch import nn

import lab
from lab.subject import Subject

IDS = torch.tensor([[5, 6, 7, 8, 9], [PAD, PAD, 10, 11, 12]])
CHECKS = ["precision-drift", "backend-parity", "noise-at-inference", "stale-state"]


def asked(model, *names, batch=None, **given):
    batch = {"input_ids": IDS, "attention_mask": (IDS != PAD).long()} if batch is None else batch
    report = lab.diagnose(Subject(model, batch, **given), only=names or CHECKS)
    assert not report.errors, report.errors
    return report


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("kind", ["gpt2", "llama", "bart", "t5"])
def test_silent_on_hugging_face(kind, attention):
    pairs = pairs_batch()
    translator = {"input_ids": pairs["src"], "decoder_input_ids": pairs["tgt"]}
    model = hugging_face(kind)
    model.set_attn_implementation(attention)
    report = asked(model, batch=translator if kind in ("bart", "t5") else None, pad_id=PAD, eos_id=EOS)
    assert not report.findings and not report.notes, report.text()
    assert set(report.passed) == set(CHECKS), report.text()
    assert model.config._attn_implementation == attention


@pytest.mark.filterwarnings("ignore:enable_nested_tensor", "ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("norm_first", [False, True])
def test_silent_on_torch_transformer(norm_first):
    torch.manual_seed(0)
    report = asked(TorchTransformer(norm_first=norm_first), batch=pairs_batch(), pad_id=PAD)
    assert sorted(report.passed) == sorted(CHECKS) and not report.notes, report.text()


class Small(nn.Module):
    """Causal attention by hand around a function that a test may break."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.table, self.qkv = nn.Embedding(60, 16), nn.Linear(16, 48)
        self.norm, self.head = nn.LayerNorm(16), nn.Linear(16, 60)

    def forward(self, input_ids):
        x = self.table(input_ids)
        return self.head(self.norm(x + self.attend(*self.qkv(x).chunk(3, -1))))

    def attend(self, q, k, v):
        return self.softmax(self.scores(q, k)) @ v

    def scores(self, q, k):
        blocked = torch.ones(q.size(1), k.size(1), dtype=torch.bool).triu(1)
        return (q @ k.transpose(1, 2) / 4).masked_fill(blocked, float("-inf"))

    def softmax(self, scores):
        return scores.softmax(-1)


class HalfSoftmax(Small):
    def softmax(self, scores):
        return scores.half().softmax(-1).to(scores.dtype)


class DtypeSoftmax(Small):
    def softmax(self, scores):
        return F.softmax(scores, dim=-1, dtype=torch.bfloat16).to(scores.dtype)


class Autocast(Small):
    def attend(self, q, k, v):
        with torch.autocast("cpu", torch.bfloat16):
            return super().attend(q.float(), k.float(), v.float()).to(q.dtype)


class Cancels(Small):
    """E[x^2] - E[x]^2 around a large mean: all digits are lost in float32."""

    def attend(self, q, k, v):
        v = v + 4096
        return (v.square().mean(-1, keepdim=True) - v.mean(-1, keepdim=True).square()).sqrt().nan_to_num() * q


class Overflows(Small):
    def scores(self, q, k):
        return super().scores(q, k) * 1e7


def test_a_healthy_one_passes():
    batch = {"input_ids": IDS}
    report = asked(Small(), batch=batch)
    assert not report.findings and set(report.passed) >= set(CHECKS) - {"backend-parity"}, report.text()
    assert "one way" in report.skipped["backend-parity"]


@pytest.mark.parametrize(("broken", "symbol"), [(HalfSoftmax, "softmax"), (DtypeSoftmax, "softmax")])
def test_a_softmax_in_low_precision(broken, symbol):
    (finding,) = asked(broken(), "precision-drift", batch={"input_ids": IDS}).findings
    assert finding.severity == "P3" and finding.where.symbol == f"{broken.__name__}.{symbol}"
    assert finding.evidence["change of a logit by all such casts"] > 0
    with open(finding.where.path) as file:
        assert ".half()" in (line := file.read().splitlines()[finding.evidence["at line"] - 1]) or "bfloat16" in line


def test_autocast_inside_forward_is_noted():
    report = asked(Autocast(), "precision-drift", batch={"input_ids": IDS})
    assert not report.findings and "bfloat16, by an autocast" in report.notes[0].message


def test_digits_lost_to_cancellation():
    (finding,) = asked(Cancels(), "precision-drift", batch={"input_ids": IDS}).findings
    assert "far more than rounding explains" in finding.message


def test_half_precision_is_no_finding_unless_it_overflows():
    batch = {"input_ids": IDS}
    assert asked(Small().to(torch.bfloat16), "precision-drift", batch=batch).passed
    assert asked(Small().half(), "precision-drift", batch=batch).passed
    (finding,) = asked(Overflows().half(), "precision-drift", batch=batch).findings
    assert finding.severity == "P2" and "overflows" in finding.message


class TwoPaths(Small):
    """As nanoGPT: a flag says whether there is a fused kernel."""

    def __init__(self, scale=0.25):
        super().__init__()
        self.flash, self.scale = True, scale

    def attend(self, q, k, v):
        if self.flash:
            return F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None], is_causal=True)[:, 0]
        return (self.scores(q, k) * 4 * self.scale).softmax(-1) @ v


def test_two_paths_that_agree_and_two_that_do_not():
    assert asked(TwoPaths(), "backend-parity", batch={"input_ids": IDS}).passed
    (finding,) = asked(TwoPaths(scale=1.0), "backend-parity", batch={"input_ids": IDS}).findings
    assert "flash=False" in finding.message and finding.severity == "P2"


def test_an_eager_path_without_its_mask():
    import transformers as hf
    from transformers.models.gpt2 import modeling_gpt2

    def unmasked(module, query, key, value, attention_mask, **how):
        return eager(module, query, key, value, None, **how)

    eager = modeling_gpt2.eager_attention_forward
    model = hugging_face("gpt2")
    model.set_attn_implementation("sdpa")
    modeling_gpt2.eager_attention_forward = unmasked
    try:
        report = asked(model, "backend-parity")
    finally:
        modeling_gpt2.eager_attention_forward = eager
    assert hf and report.findings and "attn_implementation='eager'" in report.findings[0].message
    assert report.findings[0].where.symbol.startswith("GPT2")
    assert model.config._attn_implementation == "sdpa"


class Noisy(NanoGPT):
    def forward(self, idx, targets=None):
        logits, loss = super().forward(idx, idx if targets is None else targets)
        return logits + 0.1 * self.noise(logits), loss

    def noise(self, logits):
        return torch.randn_like(logits)


class NumpyNoise(Noisy):
    def noise(self, logits):
        return torch.from_numpy(numpy.random.randn(*logits.shape)).to(logits)


class TrainNoise(Noisy):
    def noise(self, logits):
        return torch.randn_like(logits) if self.training else torch.zeros_like(logits)


class AlwaysDrops(Noisy):
    def noise(self, logits):
        return F.dropout(logits, 0.5)


def test_noise_names_the_line_that_draws_it():
    report = asked(Noisy(), "noise-at-inference", "random-in-eval", batch=(IDS, IDS))
    (finding,) = report.by_check("noise-at-inference")
    assert "randn_like" in finding.message and finding.where.symbol == "Noisy.noise" and finding.severity == "P1"
    assert all(other.follows == "noise-at-inference" for other in report.by_check("random-in-eval"))
    assert asked(NumpyNoise(), "noise-at-inference", batch=(IDS, IDS)).findings


@pytest.mark.parametrize("model", [TrainNoise, AlwaysDrops], ids=["in train mode alone", "dropout"])
def test_noise_that_is_none(model):
    assert asked(model(), "noise-at-inference", batch=(IDS, IDS)).passed


class Counts(Small):
    """Positions go on from where the last call ended."""

    def __init__(self):
        super().__init__()
        self.position, self.seen = nn.Embedding(400, 16), 0

    def forward(self, input_ids):
        x = self.table(input_ids) + self.position(torch.arange(self.seen, self.seen + input_ids.size(1)) % 400)
        self.seen += input_ids.size(1)
        return self.head(self.norm(x + self.attend(*self.qkv(x).chunk(3, -1))))


class RunningMean(Small):
    """A statistic that is updated in eval mode too."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(16))

    def attend(self, q, k, v):
        self.mean.mul_(0.9).add_(0.1 * v.detach().mean((0, 1)))
        return super().attend(q, k, v) - self.mean


class KeepsItsMask(Small):
    """The mask of the first batch is kept, and is too small for a longer one."""

    mask = None

    def scores(self, q, k):
        if self.mask is None:
            self.mask = torch.ones(q.size(1), k.size(1), dtype=torch.bool).triu(1)
        return (q @ k.transpose(1, 2) / 4).masked_fill(self.mask[: q.size(1), : k.size(1)], float("-inf"))


class KeepsItsPads(Small):
    """The padding of the first batch of a size is kept for all later ones of that size."""

    def __init__(self):
        super().__init__()
        self.masks = {}

    def forward(self, input_ids):
        self.pads = self.masks.setdefault(input_ids.shape, input_ids == PAD)
        return super().forward(input_ids)

    def scores(self, q, k):
        return super().scores(q, k).masked_fill(self.pads[:, None], -1e9)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (Counts, "the second time"),
        (RunningMean, "the second time"),
        (KeepsItsMask, "of other sizes fails after the first"),
        (KeepsItsPads, "which was padded"),
    ],
)
def test_what_is_kept_between_passes(model, words):
    (finding,) = asked(model(), "stale-state", batch={"input_ids": IDS}, pad_id=PAD).findings
    assert words in finding.message and finding.severity == "P1"


def test_what_a_pass_keeps_does_not_stay_on_the_users_model():
    model = Counts()
    lab.diagnose(Subject(model, {"input_ids": IDS}, pad_id=PAD))
    assert model.seen == 0 and "pads" not in vars(model)


class KeepsItsText(NanoGPT):
    """generate() goes on from where it ended the last time."""

    text = None

    def generate(self, idx, max_new_tokens):
        prompt = idx
        for _ in range(max_new_tokens):
            fed = idx if self.text is None else torch.cat([self.text[:1].expand(len(idx), -1), idx], 1)
            idx = torch.cat([idx, self(fed)[0][:, -1].argmax(-1, keepdim=True)], 1)
        self.text = idx[:, :2]
        return torch.cat([prompt, idx[:, prompt.size(1) :]], 1)


def test_what_generate_keeps():
    torch.manual_seed(0)
    report = asked(KeepsItsText(), "stale-state", batch=(IDS, IDS))
    assert "second time" in report.findings[0].message, report.text()
    torch.manual_seed(0)
    assert asked(NanoGPT(), "stale-state", batch=(IDS, IDS)).passed


def test_chance_is_not_taken_for_memory():
    assert asked(Noisy(), "stale-state", batch=(IDS, IDS)).passed


def test_a_model_that_raises_is_a_skip():
    class Raises(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(20, 8)

        def forward(self, input_ids):
            raise RuntimeError("in the middle")

    report = asked(Raises(), batch={"input_ids": IDS})
    assert sorted(report.skipped) == sorted(CHECKS) and not report.findings
