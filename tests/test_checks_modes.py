"""Chance and dropout on models that nobody here wrote: off in eval mode, on in train mode, off while generating."""

import numpy
import pytest
import torch
import torch.nn.functional as F
from foreign import PAD, VOCAB, NanoGPT, TorchTransformer, hugging_face, pairs_batch
from torch import nn

import lab
from lab.checks.randomness import Dropouts, seed_all
from lab.subject import Subject

IDS = torch.tensor([[5, 6, 7, 8, 9], [10, 11, 12, 13, 14]])


class Toy(nn.Module):
    """A causal model of one mixing layer, with a place for what is wrong with it."""

    def __init__(self, rate=0.1, extra=None):
        super().__init__()
        self.table, self.mix, self.out = nn.Embedding(VOCAB, 16), nn.Linear(16, 16), nn.Linear(16, VOCAB)
        self.dropout, self.extra = nn.Dropout(rate), extra

    def forward(self, input_ids):
        x = self.table(input_ids)
        x = self.dropout(x + self.mix(x.cumsum(1)))
        x = x if self.extra is None else self.extra(self, x)
        return self.out(x)


def asked(check, model, batch=None, **how):
    batch = {"input_ids": IDS} if batch is None else batch
    report = lab.diagnose(Subject(model, batch, **how), only=[check])
    assert not report.errors, report.errors
    return report


# random-in-eval


def drops(self, x):
    return F.dropout(x, 0.1)


def attends(self, x):
    return x + F.scaled_dot_product_attention(x[:, None], x[:, None], x[:, None], dropout_p=0.2, is_causal=True)[:, 0]


def noisy(self, x):
    return x + 0.01 * torch.randn_like(x)


def noisy_by_numpy(self, x):
    return x * float(numpy.random.rand())


def rebuilds(self, x):
    return nn.Linear(16, 16, dtype=x.dtype)(x)


@pytest.mark.parametrize(
    ("extra", "message", "symbol"),
    [
        (drops, "dropout is on in eval mode: it is applied whatever the mode", "drops"),
        (attends, "dropout is on in eval mode", "attends"),
        (noisy, "something random is at work", "Toy.forward"),
        (noisy_by_numpy, "something random is at work", "Toy.forward"),
        (rebuilds, "new layers in each pass (Linear)", "rebuilds"),
    ],
)
def test_chance_in_eval_mode_is_found_and_placed(extra, message, symbol):
    (finding,) = asked("random-in-eval", Toy(extra=extra)).findings
    assert finding.severity == "P1" and message in finding.message
    assert finding.where.symbol == symbol and finding.evidence["two eval passes differ by"] > 0


def test_the_line_of_the_dropout_is_told():
    (finding,) = asked("random-in-eval", Toy(extra=drops)).findings
    with open(finding.where.path) as file:
        assert "F.dropout(x, 0.1)" in file.read().splitlines()[finding.evidence["at line"] - 1]


def test_dropout_that_eval_does_not_reach_is_told_from_dropout_without_a_switch():
    class Hidden(Toy):
        def __init__(self):
            super().__init__()
            self.parts = [nn.Dropout(0.5)]

        def forward(self, input_ids):
            return self.parts[0](super().forward(input_ids))

    (finding,) = asked("random-in-eval", Hidden()).findings
    assert "eval() does not reach" in finding.message and "register" in finding.repair


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
def test_silent_where_eval_mode_is_deterministic(norm_first):
    for model, batch in (
        (TorchTransformer(norm_first=norm_first), pairs_batch()),
        (NanoGPT(), (IDS, IDS)),
        (Toy(), None),
        (hugging_face("gpt2"), None),
    ):
        report = asked("random-in-eval", model, batch)
        assert report.passed == ["random-in-eval"] and not report.notes, report.text()


def test_a_model_that_keeps_something_is_not_called_random():
    def counts(self, x):
        self.calls = getattr(self, "calls", 0) + 1
        return x + 0.01 * self.calls

    assert asked("random-in-eval", Toy(extra=counts)).passed == ["random-in-eval"]


def test_a_slice_of_a_module_list_makes_no_layers():
    class Slices(Toy):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(16, 16) for _ in range(3))

        def forward(self, input_ids):
            x = self.table(input_ids)
            for layer in self.layers[:2]:
                x = layer(x)
            return self.out(x)

    report = asked("random-in-eval", Slices())
    assert report.passed and not report.notes


def test_a_layer_made_anew_without_chance_is_a_note():
    def normalises(self, x):
        return nn.LayerNorm(16, dtype=x.dtype)(x)

    report = asked("random-in-eval", Toy(extra=normalises))
    assert report.passed == ["random-in-eval"] and "never learn" in report.notes[0].message


def test_what_compares_two_passes_is_not_asked_where_they_differ_by_chance():
    report = lab.diagnose(Subject(Toy(extra=noisy), {"input_ids": IDS}, pad_id=PAD), only=None)
    assert "random-in-eval" in report.skipped["attends-to-pads"]


# dropout-dead


def switched_off(self, x):
    return F.dropout(x, 0.3, training=False)


def test_dropout_switched_off_by_hand_is_found():
    (finding,) = asked("dropout-dead", Toy(extra=switched_off)).findings
    assert finding.severity == "P3" and finding.where.symbol == "switched_off"
    assert "rate 0.3 is switched off" in finding.message


def test_a_rate_that_only_the_config_knows_is_found():
    model = Toy(rate=0.0)
    model.config = type("Config", (), {})()
    model.config.hidden_dropout = 0.1
    (finding,) = asked("dropout-dead", model).findings
    assert "identical" in finding.message and finding.evidence["the first, in"] == "config.hidden_dropout"


def test_a_train_that_does_not_switch_is_found():
    class Stays(Toy):
        def train(self, mode=True):
            return super().train(False)

    (finding,) = asked("dropout-dead", Stays()).findings
    assert "train() does not switch" in finding.message and finding.where.symbol.endswith("Stays.train")


def test_a_part_kept_in_eval_on_purpose_is_left_alone():
    class Frozen(Toy):
        def __init__(self):
            super().__init__()
            self.backbone = nn.Sequential(nn.Linear(16, 16), nn.Dropout(0.5))

        def train(self, mode=True):
            super().train(mode)
            self.backbone.eval()
            return self

        def forward(self, input_ids):
            return self.out(self.dropout(self.backbone(self.table(input_ids))))

    assert asked("dropout-dead", Frozen()).passed == ["dropout-dead"]


@pytest.mark.parametrize("make", [Toy, NanoGPT, TorchTransformer, lambda: hugging_face("t5")])
@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
def test_silent_where_dropout_is_alive(make):
    model = make()
    batch = pairs_batch() if isinstance(model, TorchTransformer) else None
    if hasattr(model, "get_encoder"):
        batch = {"input_ids": IDS, "decoder_input_ids": IDS}
    assert asked("dropout-dead", model, {"idx": IDS} if make is NanoGPT else batch).passed == ["dropout-dead"]


def test_a_model_without_dropout_is_skipped():
    report = asked("dropout-dead", Toy(rate=0.0))
    assert "no dropout" in report.skipped["dropout-dead"] and not report.passed
    assert "no dropout" in asked("dropout-dead", hugging_face("llama")).skipped["dropout-dead"]


def test_the_rate_of_a_head_that_the_model_lacks_says_nothing():
    model = Toy(rate=0.0)
    model.config = type("Config", (), {})()
    model.config.classifier_dropout = model.config.summary_first_dropout = 0.1
    assert "no dropout" in asked("dropout-dead", model).skipped["dropout-dead"]


# generates-with-dropout


def test_hugging_faces_generate_leaves_dropout_on_and_is_told_so():
    model = hugging_face("gpt2")
    (finding,) = asked("generates-with-dropout", model.train()).findings
    assert finding.severity == "P3" and finding.evidence["uses of dropout in a call"] > 0
    assert finding.where.symbol.endswith("generate")
    report = asked("generates-with-dropout", model.eval())
    assert not report.findings and "would wake this" in report.notes[0].message
    assert not model.training


def test_a_generate_in_eval_mode_passes():
    report = asked("generates-with-dropout", NanoGPT(), (IDS, IDS))
    assert report.passed == ["generates-with-dropout"]


def test_a_generate_of_functional_dropout_is_found_too():
    class Generates(Toy):
        def forward(self, input_ids):
            x = F.dropout(self.table(input_ids), 0.5, self.training)
            return self.out(x + self.mix(x.cumsum(1)))

        def generate(self, input_ids, max_new_tokens):
            for _ in range(max_new_tokens):
                input_ids = torch.cat([input_ids, self(input_ids)[:, -1:].argmax(-1)], 1)
            return input_ids

    (finding,) = asked("generates-with-dropout", Generates()).findings
    assert finding.evidence["of two calls other tokens in"] > 0 and finding.evidence["rate"] == 0.5


@pytest.mark.parametrize(
    ("model", "generate", "reason"),
    [
        (Toy(), None, "needs generate="),
        (Toy(rate=0.0), lambda model, batch: model(batch["input_ids"]).argmax(-1), "no dropout is on"),
        (Toy(), lambda model, batch: torch.randint(9, (2, 3)), "give a generate= that is greedy"),
        (Toy(), lambda model, batch: 1 / 0, "ZeroDivisionError"),
    ],
)
def test_a_skip_of_generates_with_dropout_says_why(model, generate, reason):
    report = asked("generates-with-dropout", model, generate=generate)
    assert reason in report.skipped["generates-with-dropout"] and not report.passed


def test_a_model_that_raises_is_skipped():
    def raises(self, x):
        raise RuntimeError("in the middle")

    def raises_in_training(self, x):
        return raises(self, x) if self.training else x

    assert "in the middle" in asked("random-in-eval", Toy(extra=raises)).skipped["random-in-eval"]
    assert "in the middle" in asked("dropout-dead", Toy(extra=raises_in_training)).skipped["dropout-dead"]


# The instrument


@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
def test_without_dropout_two_passes_in_train_mode_are_equal():
    """In modules, in functions, in PyTorch's own attention and in Hugging Face's."""
    for model, batch in (
        (TorchTransformer(dropout=0.3), pairs_batch()),
        (hugging_face("gpt2"), {"input_ids": IDS}),
        (Toy(extra=lambda self, x: F.dropout(x, p=0.5)), {"input_ids": IDS}),
    ):
        subject = Subject(model.train(), batch)
        passes = []
        for seed in (1, 2):
            seed_all(seed)
            with Dropouts(off=True), torch.no_grad():
                passes.append(subject.logits(model, subject.batch))
        assert torch.equal(*passes)
        with Dropouts() as dropouts, torch.no_grad():
            assert not torch.equal(passes[0], subject.logits(model, subject.batch))
        assert dropouts.active()
