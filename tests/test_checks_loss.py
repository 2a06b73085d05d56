"""What the loss trains, on models that nobody here wrote: caught where it is wrong, silent where it is unusual."""

import copy

import pytest
import torch
import torch.nn.functional as F
from foreign import EOS, PAD, VOCAB, NanoGPT, TorchTransformer, hugging_face, pairs_batch
from torch import nn

import lab
from lab import checks
from lab.subject import Subject

TEXT = 5 + torch.randperm(VOCAB - 5, generator=torch.Generator().manual_seed(3))[:30].view(3, 10)
# Rows that end in EOS, padded at the right.
ROWS = torch.tensor([[5, 6, 7, 8, 9, EOS], [10, 11, 12, EOS, PAD, PAD], [13, 14, 15, 16, EOS, PAD]])
REAL = ROWS != PAD


def asked(check, *subject, **known):
    subject = subject[0] if len(subject) == 1 and not known else Subject(*subject, **known)
    report = lab.diagnose(subject, only=[check])
    assert not report.errors, report.errors
    return report


def one(report, severity):
    (finding,) = report.findings + report.notes
    assert finding.severity == severity, report.text()
    return finding


def silent(report):
    assert not report.findings and not report.notes and report.passed, report.text()


def nanogpt():
    torch.manual_seed(0)
    return NanoGPT()


def transformer():
    torch.manual_seed(0)
    return TorchTransformer()


def gpt2_batch(labels=None):
    labels = ROWS.masked_fill(~REAL, -100) if labels is None else labels
    return {"input_ids": ROWS, "attention_mask": REAL.long(), "labels": labels}


def pairs_loss(model, batch, **how):
    return F.cross_entropy(model(batch["src"], batch["tgt"]).flatten(0, 1), batch["labels"].flatten(), **how)


def text_loss(function):
    """A loss of NanoGPT's flat logits and targets."""
    return lambda model, batch: function(model(batch[0], batch[1])[0].flatten(0, 1), batch[1].flatten())


# target-alignment


@pytest.mark.parametrize(
    ("targets", "ahead", "words"),
    [(TEXT, 0, "its own input"), (TEXT.roll(1, 1), -1, "the token before"), (TEXT.roll(-2, 1), 2, "after the next")],
)
def test_a_wrong_shift_of_the_labels_is_read_off_the_gradient(targets, ahead, words):
    finding = one(asked("target-alignment", nanogpt(), (TEXT, targets)), "P1")
    assert words in finding.message
    assert finding.evidence["labels are ahead of the input by"] == ahead
    assert finding.evidence["the loss shifts by"] == 0


def test_labels_that_are_ahead_are_shifted_again_by_hugging_face():
    labels = F.pad(ROWS, (0, 1), value=PAD)[:, 1:]
    batch = gpt2_batch(labels.masked_fill(labels == PAD, -100))
    finding = one(asked("target-alignment", hugging_face("gpt2"), batch, pad_id=PAD), "P1")
    assert finding.evidence["labels are ahead of the input by"] == finding.evidence["the loss shifts by"] == 1
    assert finding.where.symbol == "GPT2LMHeadModel.forward" and "Hugging Face" in finding.repair


def test_a_decoder_that_is_fed_its_labels_is_caught_at_the_collate_function():
    def collate(examples):
        batch = pairs_batch()
        batch["tgt"] = batch["labels"].masked_fill(batch["labels"] == -100, PAD)
        return batch

    subject = Subject(transformer(), collate=collate, examples=[0, 1], loss=pairs_loss, pad_id=PAD, eos_id=EOS)
    finding = one(asked("target-alignment", subject), "P1")
    assert finding.message.startswith("the decoder is trained to predict its own input")
    assert finding.where.symbol.endswith("collate")


def flat_shift(batch_labels):
    """logits and labels flattened, then shifted: the last of a row is trained on the first of the next."""

    def loss(model, batch):
        logits = model(batch[0], batch[1])[0].flatten(0, 1)
        return F.cross_entropy(logits[:-1], batch_labels(batch).flatten()[1:])

    return loss


def test_a_flattened_shift_crosses_rows():
    subject = Subject(nanogpt(), (TEXT, TEXT), loss=flat_shift(lambda batch: batch[0]))
    finding = one(asked("target-alignment", subject), "P3")
    assert "first token of the next row" in finding.message and finding.evidence["rows"] == 2
    assert finding.where.symbol.endswith("loss")


def test_a_flattened_double_shift_is_a_double_shift():
    targets = torch.cat([TEXT[:, 1:], torch.tensor([[5], [6], [7]])], 1)
    finding = one(asked("target-alignment", nanogpt(), (TEXT, targets), loss=flat_shift(lambda batch: batch[1])), "P1")
    assert "shifted twice" in finding.message


def test_a_shift_by_three_is_told_too():
    assert "+3" in one(asked("target-alignment", nanogpt(), (TEXT, TEXT.roll(-3, 1))), "P1").message


STREAM = torch.randint(5, VOCAB, (31,), generator=torch.Generator().manual_seed(4))


@pytest.mark.parametrize(
    ("ids", "targets"),
    [
        (TEXT[:, :-1], TEXT[:, 1:]),
        (STREAM[:-1].view(3, 10), STREAM[1:].view(3, 10)),  # rows of one stream: the next row does follow
        (torch.full((2, 8), 7), torch.full((2, 8), 7)),  # every offset agrees
        (torch.tensor([[5, 6] * 5]), torch.tensor([[6, 5] * 5])),  # offsets 1, -1 and 3 agree
    ],
)
def test_a_right_shift_passes(ids, targets):
    silent(asked("target-alignment", nanogpt(), (ids, targets)))


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_hugging_faces_own_shift_passes(kind):
    silent(asked("target-alignment", hugging_face(kind), gpt2_batch(), pad_id=PAD))


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_translators_shift_passes(side):
    silent(asked("target-alignment", transformer(), pairs_batch(side), loss=pairs_loss, pad_id=PAD))


def test_labels_of_the_answer_alone_are_enough():
    labels = TEXT.clone()
    labels[:, :5] = -100
    silent(asked("target-alignment", hugging_face("gpt2"), {"input_ids": TEXT, "labels": labels}))


def test_short_rows_are_not_taken_for_wrong_ones():
    """Most rows have their EOS, which is none of the inputs, right after their first token."""
    ids = torch.tensor([[0, 5, PAD, PAD], [0, 6, 7, 8], [0, 9, PAD, PAD], [0, 10, PAD, PAD]])
    labels = torch.tensor([[5, EOS, -1, -1], [6, 7, 8, EOS], [9, EOS, -1, -1], [10, EOS, -1, -1]])
    silent(asked("target-alignment", nanogpt(), (ids, labels), pad_id=PAD))


def test_a_long_batch_is_cut_to_what_is_needed():
    long = torch.randint(5, VOCAB, (6, 40), generator=torch.Generator().manual_seed(5))
    silent(asked("target-alignment", nanogpt(), (long, torch.cat([long[:, 1:], long[:, :1]], 1))))
    one(asked("target-alignment", nanogpt(), (long, long)), "P1")


class BothWays(NanoGPT):
    """Sees the whole row."""

    def forward(self, idx, targets=None):
        logits = self.head(self.layers(self.wte(idx) + self.wpe(torch.arange(idx.size(1)))))
        return logits, None if targets is None else F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def test_what_is_no_next_token_task_is_skipped():
    report = asked("target-alignment", BothWays(), (TEXT, TEXT))
    assert "fills in tokens" in report.skipped["target-alignment"]
    other = torch.randint(5, VOCAB, (3, 10), generator=torch.Generator().manual_seed(9))
    assert "neither the next tokens" in asked("target-alignment", nanogpt(), (TEXT, other)).skipped["target-alignment"]
    assert (
        "an encoder" in asked("target-alignment", nanogpt(), (TEXT, TEXT), kind="encoder").skipped["target-alignment"]
    )


def test_without_a_loss_it_is_asked_for():
    assert "loss=" in asked("target-alignment", hugging_face("gpt2"), {"input_ids": TEXT}).skipped["target-alignment"]


def test_a_loss_that_fails_is_a_skip():
    report = asked("target-alignment", nanogpt(), (TEXT, TEXT), loss=lambda model, batch: batch["none"])
    assert "TypeError" in report.skipped["target-alignment"]
    report = asked("target-alignment", nanogpt(), (TEXT, TEXT), loss=lambda model, batch: 3.0)
    assert "no scalar with a gradient" in report.skipped["target-alignment"]


# eos-never-a-target

# As Hugging Face's tokenizer and collator make it where pad is EOS.
EOS_PADDED = ROWS.masked_fill(~REAL, EOS)


def eos_batch(labels):
    return {"input_ids": EOS_PADDED, "attention_mask": REAL.long(), "labels": labels}


def test_pad_is_eos_and_pads_are_ignored():
    batch = eos_batch(EOS_PADDED.masked_fill(EOS_PADDED == EOS, -100))
    finding = one(asked("eos-never-a-target", hugging_face("gpt2"), batch, pad_id=EOS), "P1")
    assert "pad_id is the same id" in finding.message
    assert finding.evidence["rows with EOS"] == 3


def test_pad_is_eos_without_a_mask_is_caught_too():
    batch = {"input_ids": EOS_PADDED, "labels": EOS_PADDED.masked_fill(EOS_PADDED == EOS, -100)}
    one(asked("eos-never-a-target", hugging_face("gpt2"), batch, pad_id=EOS), "P1")


def test_eos_is_a_target_where_the_mask_says_what_is_padding():
    silent(
        asked("eos-never-a-target", hugging_face("gpt2"), eos_batch(EOS_PADDED.masked_fill(~REAL, -100)), pad_id=EOS)
    )


def test_one_row_that_trains_eos_is_enough():
    labels = EOS_PADDED.masked_fill(EOS_PADDED == EOS, -100)
    labels[2, 4] = EOS
    silent(asked("eos-never-a-target", hugging_face("gpt2"), eos_batch(labels), pad_id=EOS))


def test_eos_as_the_first_token_ends_nothing():
    ids = torch.cat([torch.full((3, 1), EOS), TEXT], 1)
    report = asked("eos-never-a-target", hugging_face("gpt2"), {"input_ids": ids, "labels": ids})
    assert "no row of the batch ends in EOS" in report.skipped["eos-never-a-target"]


def test_eos_far_into_a_long_row_is_found():
    ids = torch.randint(5, VOCAB, (4, 38), generator=torch.Generator().manual_seed(6))
    ids[2, 35] = EOS
    silent(asked("eos-never-a-target", hugging_face("gpt2"), {"input_ids": ids, "labels": ids}))
    labels = ids.masked_fill(ids == EOS, -100)
    one(asked("eos-never-a-target", hugging_face("gpt2"), {"input_ids": ids, "labels": labels}), "P1")


# loss-counts-pads


def test_hugging_face_counts_pads_that_are_not_ignored():
    finding = one(asked("loss-counts-pads", hugging_face("gpt2"), gpt2_batch(ROWS), pad_id=PAD), "P2")
    assert finding.evidence["positions trained on padding"] == 3


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_translator_that_counts_pads(side):
    batch = pairs_batch(side)
    batch["labels"] = batch["labels"].masked_fill(batch["labels"] == -100, PAD)
    finding = one(asked("loss-counts-pads", transformer(), batch, loss=pairs_loss, pad_id=PAD), "P2")
    assert finding.evidence["positions trained on padding"] == int((batch["labels"] == PAD).sum())
    ignoring = asked(
        "loss-counts-pads", transformer(), batch, loss=lambda m, b: pairs_loss(m, b, ignore_index=PAD), pad_id=PAD
    )
    silent(ignoring)


def test_the_first_pad_may_be_the_rows_eos():
    labels = EOS_PADDED.clone()
    one(asked("loss-counts-pads", hugging_face("gpt2"), eos_batch(labels), pad_id=EOS), "P2")
    plain = ROWS.masked_fill(~REAL | (ROWS == EOS), EOS)
    mask = (plain != EOS).long()
    labels = plain.masked_fill((plain == EOS) & (F.pad(plain, (1, 0))[:, :-1] == EOS), -100)
    batch = {"input_ids": plain, "attention_mask": mask, "labels": labels}
    silent(asked("loss-counts-pads", hugging_face("gpt2"), batch, pad_id=EOS))


def masked_mean(model, batch, over):
    logits = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
    labels, counts = batch["labels"][:, 1:], batch["labels"][:, 1:] != -100
    each = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view(labels.shape)
    return over(each, counts)


@pytest.mark.parametrize(
    ("over", "wrong"),
    [
        (lambda each, counts: each.mean(), True),
        (lambda each, counts: (each.sum(1) / each.size(1)).mean(), True),
        (lambda each, counts: each.sum() / counts.sum(), False),
        (lambda each, counts: (each.sum(1) / counts.sum(1)).mean(), False),
        (lambda each, counts: each.sum(), False),
    ],
    ids=["mean", "mean of rows", "masked mean", "masked mean of rows", "sum"],
)
def test_a_masked_loss_divided_by_all_positions(over, wrong):
    batch = gpt2_batch()
    for key, value in (("input_ids", PAD), ("attention_mask", 0), ("labels", -100)):
        batch[key] = F.pad(batch[key], (0, 3), value=value)
    loss = lambda model, batch: masked_mean(model, batch, over)  # noqa: E731
    report = asked("loss-counts-pads", hugging_face("gpt2"), batch, loss=loss, pad_id=PAD)
    if wrong:
        assert "depends on its padding" in one(report, "P3").message
    else:
        silent(report)


def test_the_pad_id_within_a_text_is_no_padding():
    ids = ROWS.clone()
    ids[0, 3] = PAD
    labels = ids.masked_fill(~REAL, -100)
    silent(asked("loss-counts-pads", hugging_face("gpt2"), gpt2_batch(labels) | {"input_ids": ids}, pad_id=PAD))


def test_a_batch_without_padding_is_skipped():
    assert "unequal rows" in asked("loss-counts-pads", nanogpt(), (TEXT, TEXT)).skipped["loss-counts-pads"]


# all-ignored-batch


def test_the_mean_over_no_label_is_a_note_until_a_row_has_none():
    finding = one(asked("all-ignored-batch", hugging_face("gpt2"), gpt2_batch()), "note")
    assert finding.evidence["loss"] == "nan"
    batch = gpt2_batch()
    batch["labels"][1] = -100
    assert "1 of 3 rows" in one(asked("all-ignored-batch", hugging_face("gpt2"), batch), "P3").message


def test_a_loss_that_divides_by_at_least_one_passes():
    loss = lambda model, batch: masked_mean(model, batch, lambda e, c: e.sum() / c.sum().clamp(min=1))  # noqa: E731
    silent(asked("all-ignored-batch", hugging_face("gpt2"), gpt2_batch(), loss=loss))


def test_a_loss_that_refuses_such_a_batch_is_a_skip():
    def loss(model, batch):
        if not bool((batch["labels"] != -100).any()):
            raise ValueError("nothing to learn")
        return model(**batch).loss

    report = asked("all-ignored-batch", hugging_face("gpt2"), gpt2_batch(), loss=loss)
    assert "refuses" in report.skipped["all-ignored-batch"]
    report = asked("all-ignored-batch", nanogpt(), (TEXT[:, :-1], TEXT[:, 1:]))
    assert "ignore_index=" in report.skipped["all-ignored-batch"]


# loss-is-cross-entropy


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (lambda z, y: F.cross_entropy(z.softmax(-1), y), "softmax"),
        (lambda z, y: F.cross_entropy(torch.sigmoid(z), y), "sigmoid"),
        (lambda z, y: F.cross_entropy(F.relu(z), y), "relu"),
        (lambda z, y: F.cross_entropy(torch.tanh(z), y, label_smoothing=0.1), "tanh"),
        (lambda z, y: F.cross_entropy(F.gelu(z), y), "gelu"),
        (lambda z, y: F.nll_loss(z.softmax(-1), y), "probability"),
        (lambda z, y: F.nll_loss(z, y), "without a softmax"),
        (lambda z, y: F.nll_loss(z.softmax(-1).log_softmax(-1), y), "softmax"),
    ],
)
def test_an_activation_between_logits_and_loss_is_named(function, name):
    report = asked("loss-is-cross-entropy", nanogpt(), (TEXT[:, :-1], TEXT[:, 1:]), loss=text_loss(function))
    finding = one(report, "P1")
    assert name in finding.message
    assert finding.where.path.endswith("test_checks_loss.py")


def focal(z, y):
    p = z.softmax(-1).gather(-1, y[:, None])
    return (-((1 - p) ** 2) * p.log()).mean()


def z_loss(z, y):
    return F.cross_entropy(z, y) + 1e-2 * z.logsumexp(-1).square().mean()


@pytest.mark.parametrize(
    "function",
    [
        F.cross_entropy,
        lambda z, y: F.cross_entropy(z, y, label_smoothing=0.2),
        lambda z, y: F.cross_entropy(z, y, reduction="sum"),
        lambda z, y: F.cross_entropy(z, y, weight=torch.linspace(0.5, 2, VOCAB, dtype=z.dtype)),
        lambda z, y: F.nll_loss(z.log_softmax(-1), y),
        lambda z, y: F.cross_entropy(z.log_softmax(-1), y),
        lambda z, y: F.nll_loss(z.softmax(-1).log(), y),
        lambda z, y: F.cross_entropy(z.bfloat16().float(), y),
        focal,
        z_loss,
    ],
    ids=["plain", "smoothed", "sum", "weighted", "nll", "twice", "log", "half", "focal", "z-loss"],
)
def test_what_is_a_cross_entropy_passes(function):
    silent(asked("loss-is-cross-entropy", nanogpt(), (TEXT[:, :-1], TEXT[:, 1:]), loss=text_loss(function)))


def test_another_loss_is_a_skip():
    def squares(z, y):
        return (z - F.one_hot(y, VOCAB)).square().mean()

    report = asked("loss-is-cross-entropy", nanogpt(), (TEXT[:, :-1], TEXT[:, 1:]), loss=text_loss(squares))
    assert "neither a cross entropy" in report.skipped["loss-is-cross-entropy"]


def test_a_head_of_zeros_is_a_skip():
    model = nanogpt()
    nn.init.zeros_(model.head.weight)
    report = asked("loss-is-cross-entropy", model, (TEXT[:, :-1], TEXT[:, 1:]))
    assert "alike" in report.skipped["loss-is-cross-entropy"]
    assert "zero" in asked("logits-are-logits", model, (TEXT[:, :-1], TEXT[:, 1:])).skipped["logits-are-logits"]


# logits-are-logits


class Ends(NanoGPT):
    """NanoGPT with something after its head; its loss takes that, or the logits, or its logarithm."""

    def __init__(self, function, taken="given"):
        super().__init__()
        self.function, self.taken = function, taken

    def forward(self, idx, targets=None):
        mask = torch.ones(idx.size(1), idx.size(1), dtype=torch.bool).triu(1)
        logits = self.head(self.layers(self.wte(idx) + self.wpe(torch.arange(idx.size(1))), mask=mask))
        given = self.function(logits)
        if targets is None:
            return given, None
        if self.taken == "log":
            return given, F.nll_loss(given.log().flatten(0, 1), targets.flatten())
        used = logits if self.taken == "logits" else given
        return given, F.cross_entropy(used.flatten(0, 1), targets.flatten())


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda z: z.softmax(-1), "each row sums to 1"),
        (F.relu, "clipped at 0"),
        (torch.sigmoid, "through a sigmoid"),
    ],
)
def test_an_activation_after_the_head_is_caught(function, words):
    torch.manual_seed(0)
    model = Ends(function)
    finding = one(asked("logits-are-logits", model, (TEXT[:, :-1], TEXT[:, 1:])), "P1")
    assert words in finding.message and finding.where.path.endswith("test_checks_loss.py")
    one(asked("logits-are-logits", model, (TEXT,)), "P2")  # without a loss
    model.taken = "logits"
    one(asked("logits-are-logits", model, (TEXT[:, :-1], TEXT[:, 1:])), "note")


@pytest.mark.parametrize(
    ("function", "taken"),
    [(lambda z: z, "given"), (lambda z: z.log_softmax(-1), "given"), (lambda z: z.softmax(-1), "log")],
    ids=["logits", "log-probabilities", "probabilities for their logarithm"],
)
def test_logits_and_their_logarithms_pass(function, taken):
    torch.manual_seed(0)
    silent(asked("logits-are-logits", Ends(function, taken), (TEXT[:, :-1], TEXT[:, 1:])))


def test_probabilities_are_one_finding_and_not_two():
    torch.manual_seed(0)
    report = lab.diagnose(
        Subject(Ends(lambda z: z.softmax(-1)), (TEXT[:, :-1], TEXT[:, 1:])),
        only=["logits-are-logits", "loss-is-cross-entropy"],
    )
    assert [finding.check for finding in report.findings] == ["logits-are-logits"]


# initial-loss


def tied(model, deviation):
    nn.init.normal_(model.wte.weight, std=deviation)
    model.head.weight = model.wte.weight
    return model


def test_a_wide_embedding_that_the_head_shares_is_caught():
    batch = (TEXT[:, :-1], TEXT[:, 1:])
    finding = one(asked("initial-loss", tied(nanogpt(), 3.0), batch), "P3")
    assert finding.evidence["loss"] > 2 * finding.evidence["ln V"]
    silent(asked("initial-loss", tied(nanogpt(), 0.02), batch))


def test_a_loss_that_is_summed_is_not_taken_for_a_high_one():
    batch = (TEXT[:, :-1], TEXT[:, 1:])
    summed = text_loss(lambda z, y: F.cross_entropy(z, y, reduction="sum"))
    silent(asked("initial-loss", tied(nanogpt(), 0.02), batch, loss=summed))


def test_a_trained_model_is_not_asked_but_a_fresh_one_is():
    """Confident and wrong, as a trained model is on tokens that nobody wrote."""
    model, batch = tied(nanogpt(), 3.0), (TEXT[:, :-1], TEXT[:, 1:])
    with torch.no_grad():
        model.layers.layers[0].norm1.weight += torch.randn(16) * 1e-3
    assert "build=" in asked("initial-loss", model, batch).skipped["initial-loss"]
    silent(asked("initial-loss", model, batch, build=lambda: (tied(nanogpt(), 0.02), None, None)))
    one(asked("initial-loss", model, batch, build=lambda: (tied(nanogpt(), 3.0), None, None)), "P3")
    assert "build() fails" in asked("initial-loss", model, batch, build=lambda: 1 / 0).skipped["initial-loss"]


@pytest.mark.parametrize("kind", ["gpt2", "llama", "bart", "t5"])
def test_hugging_faces_initialisation_passes(kind):
    if kind in ("gpt2", "llama"):
        batch = gpt2_batch()
    else:
        pairs = pairs_batch()
        batch = {"input_ids": pairs["src"], "labels": pairs["labels"]}
    silent(asked("initial-loss", hugging_face(kind), batch))


# All of them


ALL = [check.id for check in checks.all() if check.family == "loss"]


@pytest.mark.parametrize("kind", ["gpt2", "bart", "torch"])
def test_a_frozen_model_is_asked_all_the_same_and_left_as_it_was(kind):
    pairs = pairs_batch()
    if kind == "torch":
        model, batch, loss = transformer(), pairs, pairs_loss
    else:
        model, loss = hugging_face(kind), None
        batch = gpt2_batch() if kind == "gpt2" else {"input_ids": pairs["src"], "labels": pairs["labels"]}
    model.requires_grad_(False)
    kept = copy.deepcopy(batch)
    report = lab.diagnose(Subject(model, batch, loss=loss, pad_id=PAD, eos_id=EOS), only=ALL)
    assert not report.findings and not report.errors and not report.skipped, report.text()
    assert not any(p.requires_grad or p.grad is not None for p in model.parameters())
    assert all(torch.equal(batch[key], kept[key]) for key in batch)
