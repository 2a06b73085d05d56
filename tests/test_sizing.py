"""The plan of a training: the review's own is found wanting, sound ones are let be, others' shapes are read right."""

import csv
import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import lab
from lab import checks, presets
from lab.checks import sizing
from lab.checks.shapes import count_parameters, feed_forward_layers
from lab.language_model import LanguageModel
from lab.schedule import SCHEDULES
from lab.subject import Subject
from lab.trainer import planned_rates

POINTS = Path(__file__).parents[2] / "shared" / "data" / "scaling" / "hoffmann2022_figure4.csv"
M, B, T = 1e6, 1e9, 1e12
TINY = LanguageModel(presets.preset("tiny"))


def ask(model=TINY, *, only=None, **plan):
    report = lab.diagnose(Subject(model, **plan), only=only or checks.family("sizing"))
    assert not report.errors, report.errors
    return report


def ids(report):
    return [finding.check for finding in report.findings]


# The review's plan and its repair


@pytest.fixture(scope="module")
def reported():
    return LanguageModel(presets.preset("reported-16m"))


# As in WikiText-2 under GPT-2's tokenizer: 4 % of the rows are longer than 256.
ROWS = [0] * 350 + [20] * 300 + [150] * 306 + [320] * 43 + [814]


@pytest.mark.parametrize(("tokens", "epochs"), [(2_411_664, 10.2), (118_000_000, 0.208)], ids=["-2", "-103"])
def test_the_reviews_configuration_has_the_reviews_root_causes(reported, tokens, epochs):
    train = presets.get("reported-16m").train.replace(steps=12_000, batch_tokens=2048)
    report = ask(
        reported,
        rates=planned_rates(train),
        lengths=ROWS,
        packed=False,
        train_tokens=tokens,
        step_tokens=train.batch_tokens,
    )
    assert ids(report) == ["no-warmup", "feed-forward-ratio", "context-too-short", "too-little-data"], report.text()
    assert {finding.severity for finding in report.findings} == {"P3"}
    warmup, ratio, context, data = report.findings
    assert "highest rate of the run, 0.0003" in warmup.message
    assert ratio.message == "d_ff is 512, 2 × d_model 256 and not 4 ×, in 4 of 4 blocks"
    assert ratio.where.symbol == "FeedForward.forward" and "d_ff = 1024" in ratio.repair
    assert context.evidence["longest"] == 814 and 0.04 < context.evidence["share beyond the context"] < 0.06
    assert data.evidence["parameters"] == 15_040_256 and data.evidence["without embeddings"] == 2_108_928
    assert data.evidence["epochs"] == pytest.approx(epochs, rel=0.01)
    assert "15M parameters (2.11M without embeddings)" in data.message
    assert "outside" in data.evidence["range of the fits"]


def test_the_repaired_plan_on_adequate_data_is_silent():
    train = presets.get("16m").train.replace(steps=12_000, batch_tokens=32_768)
    report = ask(
        LanguageModel(presets.preset("16m")),
        rates=planned_rates(train),
        lengths=ROWS,
        packed=True,
        train_tokens=400_000_000,
        step_tokens=train.batch_tokens,
    )
    assert not report.findings and set(report.passed) == set(checks.family("sizing")), report.text()
    (note,) = report.notes
    assert note.check == "context-too-short" and "packed, they lose nothing" in note.message
    assert report.brief() == ""


def test_findings_in_brief_are_two_lines_each(reported):
    report = ask(reported, rates=[1.0, 1.0])
    lines = report.brief().splitlines()
    assert len(lines) == 4 and lines[0].startswith("[P3] ") and lines[1].startswith("     repair: ")


def test_the_plan_is_read_and_nothing_is_run():
    class Raises(nn.Module):
        def __init__(self):
            super().__init__()
            self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)

        def forward(self, x):
            raise RuntimeError("run")

    report = ask(Raises(), rates=[1.0, 1.0], lengths=[9], max_seq_len=4, packed=False)
    assert ids(report) == ["no-warmup", "feed-forward-ratio", "context-too-short"]


def test_every_number_of_the_evidence_goes_into_json(reported):
    report = ask(reported, rates=[1.0] * 9, lengths=ROWS, packed=False, train_tokens=9, step_tokens=9)
    for finding in json.loads(report.to_json())["findings"]:
        words = {"range of the fits"}
        assert all(isinstance(v, int | float) or k in words for k, v in finding["evidence"].items()), finding


# Warmup


def stepped(make, steps, rate=1.0):
    """The rates of one of PyTorch's schedulers, as it sets them."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=rate)
    scheduler, rates = make(optimizer), []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def hugging_face_schedule(name, warmup, steps):
    from transformers import get_scheduler

    return lambda optimizer: get_scheduler(name, optimizer, warmup, steps)


schedulers = torch.optim.lr_scheduler
SOUND = {
    "OneCycleLR": lambda o: schedulers.OneCycleLR(o, 1.0, total_steps=101),
    "LinearLR": lambda o: schedulers.LinearLR(o, total_iters=5),
    "transformers linear": hugging_face_schedule("linear", 10, 100),
    "transformers cosine": hugging_face_schedule("cosine", 3, 100),
    "transformers constant_with_warmup": hugging_face_schedule("constant_with_warmup", 1, 100),
    "the paper's, 4,000 of 100,000": lambda o: schedulers.LambdaLR(
        o, lambda s: min((s + 1) ** -0.5, (s + 1) * 4**-1.5)
    ),
}
WITHOUT = {
    "CosineAnnealingLR": lambda o: schedulers.CosineAnnealingLR(o, 100),
    "ConstantLR": lambda o: schedulers.ConstantLR(o, factor=1.0),
    "ExponentialLR": lambda o: schedulers.ExponentialLR(o, 0.99),
    "transformers cosine": hugging_face_schedule("cosine", 0, 100),
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", SOUND)
def test_warmups_that_others_make_are_let_be(name):
    assert ask(rates=stepped(SOUND[name], 100), only=["no-warmup"]).passed == ["no-warmup"]


@pytest.mark.parametrize("name", WITHOUT)
def test_schedules_that_start_at_their_peak_are_found(name):
    (finding,) = ask(rates=stepped(WITHOUT[name], 100), only=["no-warmup"]).findings
    assert "there is no warmup" in finding.message and finding.evidence["peak at step"] == 1


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(("warmup", "good"), [(0, False), (1, False), (2, True), (333, True), (334, False)])
def test_our_schedules_at_the_boundaries(schedule, warmup, good):
    rates = planned_rates(lab.TrainConfig(1000, schedule=schedule, warmup_steps=warmup))
    assert bool(ask(rates=rates, only=["no-warmup"]).passed) is good


@pytest.mark.parametrize(
    ("steps", "warmup", "words"),
    [
        (11_776, 2000, None),  # ten epochs of WikiText-2 at 2,048 tokens a step: a sixth of them
        (11_776, 4000, "warmup takes 34% of the run"),
        (5_888, 2000, "warmup takes 34% of the run"),
        (2000, 2000, "still rises at the last of 2,000 steps"),
        (500, 4000, "still rises at the last of 500 steps"),
    ],
)
def test_the_reviews_2000_to_4000_steps_are_too_many_for_a_short_run(steps, warmup, words):
    rates = planned_rates(lab.TrainConfig(steps, warmup_steps=warmup))
    found = ask(rates=rates, only=["no-warmup"]).findings
    assert [words] == [words for finding in found if words in finding.message] if words else not found


def test_one_step_is_no_run():
    assert "1 step" in ask(rates=[1.0]).skipped["no-warmup"]


# Feed-forward layers, by others' shapes. On the meta device, so at the sizes that were published.


def config(kind, **how):
    import transformers

    made = getattr(transformers, f"{kind}Config")
    return made(**how)


L = {"num_hidden_layers": 2}
PAIRED = {"encoder_layers": 2, "decoder_layers": 2}
FAMILIES = {  # kind, changes, (d_model, d_ff, gated)
    "gpt2": ("GPT2", {"n_layer": 2}, (768, 3072, False)),
    "gpt-neox": ("GPTNeoX", L, (6144, 24576, False)),
    "gptj": ("GPTJ", {"n_layer": 2}, (4096, 16384, False)),
    "opt": ("OPT", L, (768, 3072, False)),
    "opt-350m": (
        "OPT",
        {**L, "hidden_size": 1024, "ffn_dim": 4096, "word_embed_proj_dim": 512, "num_attention_heads": 16},
        (1024, 4096, False),
    ),
    "bloom": ("Bloom", {"n_layer": 2}, (64, 256, False)),
    "falcon": ("Falcon", L, (4544, 18176, False)),
    "mpt": ("Mpt", {"n_layers": 2}, (2048, 8192, False)),
    "phi": ("Phi", L, (2048, 8192, False)),
    "phi3, gate and up in one": ("Phi3", L, (3072, 8192, True)),
    "llama": ("Llama", L, (4096, 11008, True)),
    "mistral": ("Mistral", L, (4096, 14336, True)),
    "gemma, heads wider than d_model": ("Gemma", L, (3072, 24576, True)),
    "qwen3-0.6b": (
        "Qwen3",
        {**L, "hidden_size": 1024, "intermediate_size": 3072, "num_attention_heads": 16, "num_key_value_heads": 8},
        (1024, 3072, True),
    ),
    "starcoder2": ("Starcoder2", L, (3072, 12288, False)),
    "ctrl": ("CTRL", {"n_layer": 2}, (1280, 8192, False)),
    "xlnet": ("XLNet", {"n_layer": 2}, (1024, 4096, False)),
    "xlm": ("XLM", {"n_layers": 2}, (2048, 8192, False)),
    "rwkv": ("Rwkv", L, (4096, 16384, False)),
    "t5": ("T5", {"num_layers": 2}, (512, 2048, False)),
    "t5-3b, heads wider than d_model": (
        "T5",
        {"num_layers": 2, "d_model": 1024, "d_ff": 16384, "num_heads": 32, "d_kv": 128},
        (1024, 16384, False),
    ),
    "t5 v1.1": ("MT5", {"num_layers": 2}, (512, 1024, True)),
    "bart": ("Bart", PAIRED, (1024, 4096, False)),
    "marian": ("Marian", PAIRED, (1024, 4096, False)),
    "pegasus": ("Pegasus", PAIRED, (1024, 4096, False)),
    "whisper": ("Whisper", PAIRED, (384, 1536, False)),
    "bert": ("Bert", L, (768, 3072, False)),
    "albert, embeddings factorised": ("Albert", {}, (4096, 16384, False)),
    "electra": ("Electra", L, (256, 1024, False)),
    "deberta": ("DebertaV2", L, (1536, 6144, False)),
    "modernbert": ("ModernBert", L, (768, 1152, True)),
    "vit": ("ViT", L, (768, 3072, False)),
    "deepseek-v3, one dense layer": ("DeepseekV3", {**L, "first_k_dense_replace": 1}, (7168, 18432, True)),
}
MIXTURES = {"Mixtral": L, "Qwen3Moe": L, "GptOss": L, "DeepseekV3": {**L, "first_k_dense_replace": 0}}


def built(kind, **how):
    import transformers

    made = config(kind, **how)
    with torch.device("meta"):
        for auto in ("AutoModelForCausalLM", "AutoModel"):
            try:
                return getattr(transformers, auto).from_config(made)
            except ValueError:
                continue
    raise ValueError(kind)


@pytest.mark.parametrize("name", FAMILIES)
def test_no_false_alarm_on_published_shapes(name):
    kind, how, expected = FAMILIES[name]
    layers = feed_forward_layers(built(kind, **how))
    assert {(layer.d_model, layer.d_ff, layer.gated) for layer in layers} == {expected}
    assert all(layer.width > sizing.THIN for layer in layers)


@pytest.mark.parametrize("kind", MIXTURES)
def test_a_mixture_of_experts_has_no_one_width(kind):
    assert feed_forward_layers(built(kind, **MIXTURES[kind])) == []


@pytest.mark.parametrize(
    ("kind", "how", "gated"),
    [
        ("GPT2", {"n_layer": 3, "n_embd": 48, "n_head": 2, "n_inner": 96}, False),
        ("Llama", {"num_hidden_layers": 3, "hidden_size": 64, "intermediate_size": 80, "num_attention_heads": 4}, True),
        ("Bert", {"num_hidden_layers": 3, "hidden_size": 48, "intermediate_size": 96, "num_attention_heads": 4}, False),
        ("OPT", {"num_hidden_layers": 3, "hidden_size": 48, "ffn_dim": 24, "num_attention_heads": 4}, False),
    ],
)
def test_thin_layers_of_others_are_found_and_placed_in_their_code(kind, how, gated):
    import transformers

    model = transformers.AutoModel.from_config(config(kind, vocab_size=60, pad_token_id=0, **how))
    (finding,) = ask(model, only=["feed-forward-ratio"]).findings
    assert "in 3 of 3 blocks" in finding.message and ("8/3" in finding.repair) is gated
    assert f"modeling_{kind.lower()}" in finding.where.path


class Bag(nn.Module):
    """Modules by name, and no forward."""

    def __init__(self, **parts):
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)


class Sized(Bag):
    """A part that tells its sizes: a matrix where it holds no other, as quantised ones do."""

    def __init__(self, inward, outward, **parts):
        super().__init__(**parts)
        self.in_features, self.out_features = inward, outward


def linears(*sizes):
    return [nn.Linear(a, b) for a, b in sizes]


def flat(*sizes):
    return Bag(**{f"m{i}": linear for i, linear in enumerate(linears(*sizes))})


def stack(make, count=3):
    return Bag(
        embedding=nn.Embedding(90, 16), layers=nn.ModuleList(make() for _ in range(count)), head=nn.Linear(16, 90)
    )


ATTENTION = [(16, 16)] * 4
SHAPES = {  # one block -> (d_model, d_ff, gated, matrices)
    "flat": (lambda: flat(*ATTENTION, (16, 40), (40, 16)), (16, 40, False, 2)),
    "one matrix for query, key and value": (lambda: flat((16, 48), (16, 16), (16, 40), (40, 16)), (16, 40, False, 2)),
    "w1, w2, w3 as Llama orders them": (lambda: flat(*ATTENTION, (16, 40), (40, 16), (16, 40)), (16, 40, True, 3)),
    "gate and up in one": (lambda: flat(*ATTENTION, (16, 80), (40, 16)), (16, 40, True, 3)),
    "wide heads": (
        lambda: Bag(a=flat((16, 64), (16, 64), (16, 64), (64, 16)), f=flat((16, 40), (40, 16))),
        (16, 40, False, 2),
    ),
    "wide heads that share keys": (
        lambda: Bag(a=flat((16, 32), (16, 8), (16, 8), (32, 16)), f=flat((16, 64), (64, 16))),
        (16, 64, False, 2),
    ),
    "narrower than the model": (lambda: Bag(a=flat(*ATTENTION), f=flat((16, 8), (8, 16))), (16, 8, False, 2)),
    "Sequential": (
        lambda: Bag(a=flat(*ATTENTION), f=nn.Sequential(nn.Linear(16, 40), nn.GELU(), nn.Linear(40, 16))),
        (16, 40, False, 2),
    ),
    "convolutions of width 1": (
        lambda: Bag(a=flat(*ATTENTION), up=nn.Conv1d(16, 40, 1), mix=nn.Conv1d(40, 40, 3), down=nn.Conv1d(40, 16, 1)),
        (16, 40, False, 2),
    ),
    "PyTorch's": (lambda: nn.TransformerDecoderLayer(16, 2, 40), (16, 40, False, 2)),
    "experts as a list": (
        lambda: Bag(
            a=flat(*ATTENTION), router=nn.Linear(16, 4), e=nn.ModuleList(flat((16, 12), (12, 16)) for _ in range(4))
        ),
        (16, 12, False, 8),
    ),
    "quantised": (lambda: Bag(a=flat(*ATTENTION), up=Sized(16, 40), down=Sized(40, 16)), (16, 40, False, 2)),
    "a part that tells its sizes": (
        lambda: Bag(a=flat(*ATTENTION), f=Sized(16, 16, up=nn.Linear(16, 40), down=nn.Linear(40, 16))),
        (16, 40, False, 2),
    ),
    "two whole layers in one stage": (
        lambda: Bag(one=flat(*ATTENTION, (16, 40), (40, 16)), two=flat(*ATTENTION, (16, 40), (40, 16))),
        (16, 40, False, 2),
    ),
    "two half-steps": (
        lambda: Bag(one=flat((16, 32), (32, 16)), a=flat(*ATTENTION), two=flat((16, 32), (32, 16))),
        (16, 32, False, 4),
    ),
    "low-rank adapters": (
        lambda: Bag(
            q=Bag(base=nn.Linear(16, 16), a=nn.Linear(16, 4), b=nn.Linear(4, 16)),
            f=Bag(
                up=Bag(base=nn.Linear(16, 40), a=nn.Linear(16, 4), b=nn.Linear(4, 40)),
                down=Bag(base=nn.Linear(40, 16), a=nn.Linear(40, 4), b=nn.Linear(4, 16)),
            ),
        ),
        (16, 40, False, 2),
    ),
}


@pytest.mark.parametrize("name", SHAPES)
def test_the_feed_forward_layer_is_found_however_it_is_written(name):
    make, expected = SHAPES[name]
    layers = feed_forward_layers(stack(make))
    assert [(layer.d_model, layer.d_ff, layer.gated, layer.matrices) for layer in layers] == [expected] * 3


def test_layers_with_names_instead_of_numbers():
    block = SHAPES["Sequential"][0]
    model = Bag(embedding=nn.Embedding(90, 16), first=block(), second=block(), head=nn.Linear(16, 90))
    (layer,) = feed_forward_layers(model)
    assert (layer.d_model, layer.d_ff) == (16, 40)


def test_a_few_thin_layers_among_wide_ones_are_a_design():
    sizes = itertools.cycle([16, 64])
    model = stack(lambda: flat(*ATTENTION, (16, n := 2 * next(sizes)), (n, 16)), 4)
    assert ask(model, only=["feed-forward-ratio"]).passed


@pytest.mark.parametrize("model", [nn.Linear(4, 4), stack(lambda: flat(*ATTENTION, (16, 16), (16, 16)))])
def test_no_feed_forward_layer_is_a_skip(model):
    assert "by its shapes" in ask(model).skipped["feed-forward-ratio"]


# Context


@pytest.mark.parametrize(
    ("lengths", "packed", "outcome"),
    [
        ([64, 3, 0], False, "passed"),
        ([64, 74] + [64] * 20, False, "passed"),  # 10 of 1,418: 0.7 %
        ([64, 84] + [64] * 20, False, "findings"),  # 20 of 1,428: 1.4 %
        ([64, 84] + [64] * 20, None, "skipped"),
        ([64, 74] + [64] * 20, None, "passed"),
        ([64, 84] + [64] * 20, True, "notes"),
        (np.array([64, 3], dtype=np.uint16), False, "passed"),  # no wrap below zero
    ],
)
def test_context_against_the_lengths_of_rows(lengths, packed, outcome):
    report = ask(lengths=lengths, packed=packed, only=["context-too-short"])
    assert getattr(report, outcome), report.text()
    assert bool(report.findings) is (outcome == "findings")


def test_the_context_that_would_do():
    lengths = [100] * 99 + [1000]
    (finding,) = ask(lengths=lengths, packed=False, only=["context-too-short"]).findings
    assert "100.0% of the rows are longer than max_seq_len 64, the longest 1,000 tokens" in finding.message
    assert finding.evidence["share beyond the context"] == pytest.approx((99 * 36 + 936) / 10_900)
    needed = int(finding.repair.split("max_seq_len to ")[1].split()[0])
    lost = [sizing.lost_share(np.array(lengths), context) for context in (needed, needed - 64)]
    assert lost[0] < sizing.LOST <= lost[1]


@pytest.mark.parametrize(
    ("kind", "how", "expected"),
    [("GPT2", {"n_positions": 77}, 77), ("Llama", {"max_position_embeddings": 99}, 99), ("XLNet", {}, None)],
)
def test_the_context_is_read_from_the_models_config(kind, how, expected):
    model = nn.Linear(2, 2)
    model.config = config(kind, **how)
    assert Subject(model).max_seq_len == expected
    assert Subject(model, max_seq_len=5).max_seq_len == 5


# Size against data


@pytest.mark.parametrize(
    ("name", "parameters", "distinct", "seen", "expected"),
    [
        ("GPT-3", 175 * B, 300 * B, 300 * B, None),
        ("Gopher", 280 * B, 300 * B, 300 * B, None),
        ("Chinchilla", 70 * B, 1.4 * T, 1.4 * T, None),
        ("Llama 3 8B", 8 * B, 15 * T, 15 * T, None),
        ("SmolLM2 135M", 135 * M, 2 * T, 2 * T, None),
        ("Qwen3 0.6B", 0.6 * B, 36 * T, 36 * T, None),
        ("TinyLlama", 1.1 * B, 0.95 * T, 3 * T, None),
        ("stories15M on TinyStories, where the fits disagree", 15 * M, 1 * B, 100 * B, None),
        ("Pythia 70M", 70 * M, 207 * B, 300 * B, None),
        ("nanoGPT's GPT-2 on OpenWebText", 124 * M, 9 * B, 295 * B, None),
        ("Transformer-XL on WikiText-103", 257 * M, 103 * M, 15 * B, None),
        ("125M on WikiText-103, many epochs", 125 * M, 118 * M, 11.8 * B, None),
        ("the review's 16M, one epoch of WikiText-103", 15 * M, 118 * M, 118 * M, None),
        ("the review's 16M, ten", 15 * M, 118 * M, 1.18 * B, None),
        ("the review's 16M on WikiText-2, ten epochs", 15 * M, 2.4 * M, 24 * M, "data"),
        ("GPT-2 small on WikiText-2, ten epochs", 124 * M, 2.4 * M, 24 * M, "data"),
        ("GPT-2 small, 12,000 small steps", 124 * M, 118 * M, 24.6 * M, "data"),
        ("1M on 10B", 1 * M, 10 * B, 10 * B, "model"),
        ("Pythia 14M", 14 * M, 207 * B, 300 * B, "model"),
    ],
)
def test_what_was_published_is_let_be_and_the_far_ends_are_not(name, parameters, distinct, seen, expected):
    assert sizing.limit(parameters, sizing.worth(distinct, seen)) == expected


@pytest.mark.skipif(not POINTS.exists(), reason="needs ../shared/data/scaling")
def test_the_fits_give_back_the_losses_that_they_were_made_of():
    with open(POINTS) as file:
        rows = [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]
    points = [(row["parameters"], row["training_flop"] / (6 * row["parameters"]), row["loss"]) for row in rows]
    for fit, allowed in zip(sizing.FITS, (0.03, 0.005, 0.03), strict=True):
        errors = [abs(math.log((fit.e + sum(fit.terms(n, d))) / loss)) for n, d, loss in points]
        assert sorted(errors)[len(errors) // 2] < allowed
    for column, (low, high) in zip(zip(*points, strict=True), sizing.RANGE, strict=False):
        assert (min(column), max(column)) == pytest.approx((low, high), rel=0.01)


@pytest.mark.parametrize(("parameters", "loss"), [(14 * M, 4.30), (44 * M, 3.81)])
def test_repeated_epochs_are_worth_what_was_measured(parameters, loss):
    """100M tokens of C4, best over the number of epochs (Muennighoff et al. 2023)."""
    fit = sizing.FITS[2]
    assert fit.e + sum(fit.terms(parameters, sizing.worth(100 * M, 100 * 100 * M))) == pytest.approx(loss, rel=0.02)


@given(st.floats(0.01, 500))
def test_epochs_are_worth_less_and_less(epochs):
    value, more = (sizing.worth(1e6, n * 1e6) for n in (epochs, 2 * epochs))
    assert value <= epochs * 1e6 * (1 + 1e-9) and value <= more <= 1e6 * (1 + sizing.REPEATS)
    if epochs <= 1:
        assert value == pytest.approx(epochs * 1e6)
    back = sizing.Plan(1, 1, 10**6, round(epochs * 1e6), None).longer_run(value)
    assert back is None and epochs > 60 or back == pytest.approx(epochs, rel=1e-3)


@given(st.floats(5, 12), st.floats(5, 13), st.sampled_from(sizing.FITS))
def test_in_balance_neither_holds_back(parameters, tokens, fit):
    model, data = fit.terms(10**parameters, fit.balanced_tokens(10**parameters))
    assert model == pytest.approx(data)
    model, data = fit.terms(fit.balanced_parameters(10**tokens), 10**tokens)
    assert model == pytest.approx(data)


def test_the_repair_says_whether_a_longer_run_would_do(reported):
    def repair(distinct):
        report = ask(reported, rates=[0.1, *[1.0] * 11_999], step_tokens=2048, train_tokens=distinct)
        return report.by_check("too-little-data")[0].repair

    assert "a longer run, towards" in repair(118_000_000) and "epochs)" in repair(118_000_000)
    assert "more text, no less than 18M distinct tokens" in repair(2_400_000)


def test_the_expected_loss_is_told_only_where_the_fits_say_something(reported):
    def evidence(model, **plan):
        return ask(model, rates=[0.1, *[1.0] * 99], **plan).by_check("too-little-data")[0].evidence

    told = evidence(reported, train_tokens=10**9, step_tokens=245_760)
    assert told["expected on web text, nats per token, from"] == pytest.approx(6.66, abs=0.01)
    assert told["to"] == pytest.approx(7.48, abs=0.01)
    assert "to" not in evidence(TINY, train_tokens=10**4, step_tokens=100)


def test_an_encoder_decoder_is_not_judged_by_fits_of_language_models():
    from lab import matrix

    model = lab.Transformer(matrix.config())
    for subject in (
        Subject(model, **matrix.plan()),
        Subject(nn.Transformer(8, 2, 1, 1, 32, batch_first=True), train_tokens=9),
    ):
        report = lab.diagnose(subject, only=["too-little-data"])
        assert "this is seq2seq" in report.skipped["too-little-data"]


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        ({}, "train_tokens="),
        ({"train_tokens": 9}, "rates="),
        ({"train_tokens": 9, "rates": [1.0, 2.0]}, "step_tokens="),
    ],
)
def test_size_against_data_asks_for_what_it_lacks(plan, words):
    skipped = ask(**plan).skipped
    assert words in skipped["too-little-data"] and words in skipped["too-small-for-the-data"]


@pytest.mark.parametrize(
    ("name", "tied", "total"),
    [
        ("reported-16m", True, 15_040_256),
        ("reported-16m", False, 27_906_048),
        ("16m", True, 16_090_880),
        ("50m", False, 70_640_640),
        ("117m", True, 124_439_808),
    ],
)
def test_parameters_with_and_without_embeddings(name, tied, total):
    config = presets.preset(name, tie_head=tied)
    with torch.device("meta"):
        model = LanguageModel(config)
    model.head.weight = model.embedder.token.weight if tied else model.head.weight
    layer = 4 * config.d_model**2 + 2 * config.d_model * config.d_ff + 9 * config.d_model + config.d_ff
    assert count_parameters(model) == (total, config.num_layers * layer + 2 * config.d_model)


def test_parameters_are_counted_as_transformers_counts_them():
    model = built("GPT2", n_layer=3)
    assert count_parameters(model) == (model.num_parameters(), model.num_parameters(exclude_embeddings=True))
