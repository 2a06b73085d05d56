"""The checks on models that nobody here wrote: silent on the healthy, loud on the broken, and never in the way."""

import copy
import random

import numpy
import pytest
import torch
from foreign import EOS, PAD, VOCAB, NanoGPT, TorchTransformer, hugging_face, pairs_batch
from torch import nn

import lab
from lab import checks
from lab.calling import Missing
from lab.subject import Subject


def found(report):
    assert not report.errors, report.errors
    return {(finding.check, finding.severity) for finding in report.findings}


def noted(report):
    return {finding.check for finding in report.notes}


def transformer(masked="source target memory", **options):
    torch.manual_seed(0)
    return TorchTransformer(masked, **options)


@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("side", ["left", "right"])
def test_silent_on_torch_transformer_with_every_mask(norm_first, side):
    report = lab.diagnose(Subject(transformer(norm_first=norm_first), pairs_batch(side), pad_id=PAD))
    # True of left padding: PyTorch's fast path in eval mode makes NaN of such rows, and the positions count the pads.
    assert found(report) == ({("backend-parity", "P2")} if side == "left" else set()), report.text()
    assert noted(report) <= {"padding-amount"}
    assert {"padding-crash", "attends-to-pads", "fully-masked-row"} <= set(report.passed)


@pytest.mark.parametrize(
    ("masked", "module"),
    [
        ("target memory", "transformer.encoder.layers.0.self_attn"),
        ("source target", "transformer.decoder.layers.0.multihead_attn"),
        ("source memory", "transformer.decoder.layers.0.self_attn"),
    ],
)
def test_names_the_attention_that_lacks_its_mask(masked, module):
    report = lab.diagnose(Subject(transformer(masked), pairs_batch("left"), pad_id=PAD), only=["attends-to-pads"])
    assert found(report) == {("attends-to-pads", "P2")}
    (finding,) = report.findings
    assert finding.evidence["module"] == module
    assert finding.where.path.endswith("foreign.py") and finding.where.symbol == "TorchTransformer.forward"


def test_right_padding_makes_the_missing_target_mask_a_note():
    subject = Subject(transformer("source memory"), pairs_batch("right"), pad_id=PAD)
    report = lab.diagnose(subject, skip=["padding-amount"])
    assert not report.findings
    assert noted(report) == {"attends-to-pads"} and "bites" in report.notes[0].message


LEFT = torch.tensor([[5, 6, 7, 8, 9], [PAD, PAD, 10, 11, 12]])
RIGHT = torch.tensor([[5, 6, 7, 8, 9], [10, 11, 12, PAD, PAD]])


def with_mask(ids):
    return {"input_ids": ids, "attention_mask": (ids != PAD).long()}


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("ids", [LEFT, RIGHT], ids=["left", "right"])
def test_silent_on_hugging_face_language_models(kind, ids):
    subject = Subject(
        hugging_face(kind),
        with_mask(ids),
        generate=lambda model, batch: model.generate(**batch, max_new_tokens=2, pad_token_id=PAD),
    )
    report = lab.diagnose(subject)
    # True: their generate() leaves the mode to its caller, and GPT-2's absolute positions count the pads.
    assert found(report) <= {("generates-with-dropout", "P3")}, report.text()
    assert noted(report) <= {"padding-amount"}
    assert {"sees-the-future", "attends-to-pads", "cache-equals-full", "its-own-teacher"} <= set(report.passed)
    plans = set(checks.family("sizing")) - {"feed-forward-ratio"}  # nobody said how they are to be trained
    assert plans <= set(report.skipped) and all("give " in report.skipped[name] for name in plans)


def test_a_language_model_that_is_given_no_mask_reads_its_left_pads():
    report = lab.diagnose(Subject(hugging_face("gpt2"), {"input_ids": LEFT}, pad_id=PAD), only=["attends-to-pads"])
    assert found(report) == {("attends-to-pads", "P2")}


@pytest.mark.parametrize("kind", ["bart", "t5"])
def test_no_finding_on_hugging_face_translators(kind):
    batch = pairs_batch()
    batch = {**with_mask(batch["src"]), "decoder_input_ids": batch["tgt"], "labels": batch["labels"]}
    report = lab.diagnose(hugging_face(kind), batch)
    assert found(report) <= {("generates-with-dropout", "P3")}, report.text()
    # True, and harmless: without decoder_attention_mask the decoder reads its pads; their masks are large negatives;
    # BART's positions count the pads; a mean over no label is 0 / 0.
    assert noted(report) <= {"attends-to-pads", "fully-masked-row", "padding-amount", "all-ignored-batch"}


def test_a_translator_whose_generate_is_given_no_mask_reads_the_pads_of_its_source():
    batch = pairs_batch()
    subject = Subject(
        hugging_face("bart"),
        {**with_mask(batch["src"]), "labels": batch["labels"]},
        generate=lambda model, batch: model.generate(batch["input_ids"], max_new_tokens=2),
    )
    assert found(lab.diagnose(subject, only=["batched-equals-alone"])) == {("batched-equals-alone", "P2")}


def test_a_batch_of_labels_alone_is_enough_for_an_encoder_decoder():
    batch = pairs_batch()
    report = lab.diagnose(hugging_face("bart"), {**with_mask(batch["src"]), "labels": batch["labels"]})
    assert found(report) <= {("generates-with-dropout", "P3")} and "attends-to-pads" in report.passed, report.text()


@pytest.mark.parametrize("as_tuple", [True, False])
def test_nanogpt_like_models_need_no_wiring(as_tuple):
    targets = torch.nn.functional.pad(RIGHT, (0, 1), value=PAD)[:, 1:]
    targets = targets.masked_fill(targets == PAD, -1)
    batch = (RIGHT, targets) if as_tuple else {"idx": RIGHT, "targets": targets}
    report = lab.diagnose(Subject(NanoGPT(), batch, pad_id=PAD))
    # Its own generate() is found and called, and ends in train().
    assert found(report) == {("half-repaired-mode", "P3"), ("stuck-in-eval", "P3")}
    assert {"padding-crash", "fully-masked-row"} <= set(report.passed)


def test_train_at_the_end_of_generate_is_a_half_repair():
    subject = Subject(NanoGPT(), (RIGHT, RIGHT), generate=lambda model, batch: model.generate(batch[0], 2))
    report = lab.diagnose(subject, only=["stuck-in-eval", "half-repaired-mode"])
    assert found(report) == {("stuck-in-eval", "P3"), ("half-repaired-mode", "P3")}
    assert "when it raises" in report.by_check("stuck-in-eval")[0].message
    assert {finding.where.symbol for finding in report.findings} == {"NanoGPT.generate"}


def test_the_reviews_loader_is_caught_in_somebody_elses_code():
    def collate(examples):
        batch = pairs_batch()
        labels = batch["labels"]
        start = torch.full((len(labels), 1), 0)
        return {"src": batch["src"], "tgt": torch.cat([start, labels[:, :-1]], dim=1), "labels": labels}

    subject = Subject(transformer(), collate=collate, examples=[0, 1], pad_id=PAD)
    report = lab.diagnose(subject, only=["padding-crash"])
    assert found(report) == {("padding-crash", "P2")}
    (finding,) = report.findings
    assert finding.where.symbol.endswith("collate") and "fails (IndexError)" in finding.message


class Wraps(nn.Module):
    """Reads its table by plain indexing, which takes -100 for the hundredth row from the end."""

    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.randn(200, 8))

    def forward(self, input_ids):
        return self.table[input_ids] @ self.table.T


def test_a_silent_wrap_is_caught_without_an_exception():
    report = lab.diagnose(Wraps(), {"input_ids": torch.tensor([[3, -100]])}, only=["padding-crash"])
    assert found(report) == {("padding-crash", "P2")}
    assert "silently reads another row" in report.findings[0].message
    assert report.findings[0].where.symbol == "Wraps.forward"


def test_ids_over_the_table_are_caught():
    report = lab.diagnose(NanoGPT(), (torch.tensor([[3, 99]]), torch.tensor([[99, 2]])), only=["padding-crash"])
    assert "no row" in report.findings[0].message and report.findings[0].evidence["highest"] == 99


class Stuck(nn.Module):
    """One dropout and three ways to leave it in eval."""

    def __init__(self):
        super().__init__()
        self.table, self.drop = nn.Embedding(20, 8), nn.Dropout(0.5)
        self.frozen = nn.Linear(8, 8)

    def forward(self, input_ids):
        return self.drop(self.frozen(self.table(input_ids))) @ self.table.weight.T

    def careful(self, ids):
        modes = [(module, module.training) for module in self.modules()]
        self.eval()
        try:
            return self(ids)
        finally:
            for module, training in modes:
                module.training = training

    def holds(self, ids):
        """A generator that holds eval across its yields and restores only at the end of its items."""
        modes = [(module, module.training) for module in self.modules()]
        self.eval()
        for _ in range(3):
            yield self(ids)
        for module, training in modes:
            module.training = training

    def root_only(self, ids):
        was = self.training
        self.eval()
        try:
            return self(ids)
        finally:
            self.train(was)

    def grad_off(self, ids):
        torch.set_grad_enabled(False)
        return self(ids)


def modes(function):
    subject = Subject(Stuck(), {"input_ids": torch.tensor([[3, 4]])}, generate=function)
    return lab.diagnose(subject, only=["stuck-in-eval", "half-repaired-mode"])


def test_a_careful_generate_passes():
    assert modes(lambda model, batch: model.careful(batch["input_ids"])).passed == [
        "stuck-in-eval",
        "half-repaired-mode",
    ]


def test_an_abandoned_generator_is_caught():
    report = modes(lambda model, batch: model.holds(batch["input_ids"]))
    assert "is abandoned" in report.by_check("stuck-in-eval")[0].evidence["when it"]


def test_restoring_the_root_alone_wakes_a_frozen_part():
    report = modes(lambda model, batch: model.root_only(batch["input_ids"]))
    assert found(report) == {("half-repaired-mode", "P3")}


def test_gradients_left_off_are_caught_and_put_back():
    report = modes(lambda model, batch: model.grad_off(batch["input_ids"]))
    assert report.findings[0].message == "generate() leaves gradients off"
    assert torch.is_grad_enabled()


def test_evidence_shows_the_dropout_before_and_its_loss_after():
    report = modes(lambda model, batch: (model.eval(), model(batch["input_ids"]))[1])
    evidence = report.by_check("stuck-in-eval")[0].evidence
    assert evidence["two train passes differ before by"] > 0
    assert evidence["and after by"] == 0


def test_a_function_that_fails_is_a_skip_not_a_pass():
    report = modes(lambda model, batch: 1 / 0)
    assert "ZeroDivisionError" in report.skipped["stuck-in-eval"]


class Raises(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(20, 8)

    def forward(self, input_ids):
        self.table(input_ids)
        raise RuntimeError("in the middle")


@pytest.mark.parametrize("check", checks.all(), ids=lambda check: check.id)
@pytest.mark.parametrize("make", [lambda: transformer(dropout=0.3), lambda: transformer("source"), Raises])
def test_everything_is_restored_bit_for_bit(check, make):
    torch.backends.mha.set_fastpath_enabled(True)
    model = make()
    list(model.children())[0].eval()  # a part in another mode than the rest
    model.register_buffer("running", torch.tensor([float("nan"), 1.0]), persistent=False)
    for number, parameter in enumerate(model.parameters()):
        if number % 2:
            parameter.grad = torch.randn_like(parameter)
        parameter.requires_grad_(number % 3 > 0)
    batch = pairs_batch("left") if isinstance(model, TorchTransformer) else {"input_ids": LEFT}
    subject = Subject(
        model,
        batch,
        pad_id=PAD,
        eos_id=EOS,
        generate=lambda model, batch: (model.eval(), subject.logits(model, batch), model.train()),
        evaluate=lambda model: (torch.rand(1), random.random(), numpy.random.rand(), model.eval()),
    )
    tensors = [t for p in model.parameters() for t in (p, p.grad) if t is not None] + list(model.buffers())
    kept = [tensor.clone() for tensor in tensors]
    before = state_of(model, batch)
    lab.diagnose(subject, only=[check.id])
    assert state_of(model, batch) == before
    now = [t for p in model.parameters() for t in (p, p.grad) if t is not None] + list(model.buffers())
    assert all(a is b for a, b in zip(now, tensors, strict=True))
    assert all(torch.equal(a.nan_to_num(7), b.nan_to_num(7)) for a, b in zip(tensors, kept, strict=True))


def state_of(model, batch):
    hooks = [len(getattr(m, name)) for m in model.modules() for name in ("_forward_hooks", "_forward_pre_hooks")]
    return (
        {name: module.training for name, module in model.named_modules()},
        [parameter.requires_grad for parameter in model.parameters()],
        hooks,
        len(torch.nn.modules.module._global_forward_pre_hooks),
        nn.Module.train.__qualname__,
        torch.is_grad_enabled(),
        torch.backends.mha.get_fastpath_enabled(),
        torch.get_rng_state().tolist(),
        random.getstate(),
        numpy.random.get_state()[1].tolist(),
        {key: value.tolist() for key, value in batch.items()},
    )


def test_skips_say_what_to_give():
    report = lab.diagnose(NanoGPT(), (RIGHT[:1], RIGHT[:1]))
    assert "pad_id=" in report.skipped["attends-to-pads"]
    assert "generate=lambda" in lab.diagnose(Wraps(), {"input_ids": RIGHT}).skipped["stuck-in-eval"]
    assert "unequal length" in report.skipped["padding-crash"]
    assert "rates=" in report.skipped["no-warmup"] and "lengths=" in report.skipped["context-too-short"]
    assert "train_tokens=" in report.skipped["too-little-data"]
    nothing = lab.diagnose(NanoGPT())
    assert "batch=" in nothing.skipped["padding-crash"] and not nothing.errors


def test_a_model_that_raises_is_a_skip():
    report = lab.diagnose(Subject(Raises(), {"input_ids": LEFT}, pad_id=PAD))
    assert "in the middle" in report.skipped["attends-to-pads"] and not report.errors


def test_a_check_that_breaks_is_an_error_and_hides_nothing(monkeypatch):
    def broken(probe):
        raise KeyError("ours")
        yield

    check = checks.get("attends-to-pads")
    monkeypatch.setitem(checks.base.REGISTRY, check.id, copy.copy(check).__class__(**{**vars(check), "run": broken}))
    report = lab.diagnose(Subject(transformer(), pairs_batch(), pad_id=PAD))
    assert report.errors == {"attends-to-pads": "KeyError: 'ours'"}
    assert "padding-crash" in report.passed


@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        ({"model": "gpt2"}, TypeError, "str; give a torch.nn.Module"),
        ({"batch": 3}, TypeError, "give a mapping or a tuple"),
        ({"streams": {"target": ("tokens", None)}}, ValueError, "'tokens', which the batch lacks"),
        ({"rates": []}, ValueError, r"rates has shape \(0,\)"),
        ({"rates": [0.0, 0.0]}, ValueError, "rates holds zeros alone"),
        ({"rates": [1e-3, float("nan")]}, ValueError, "rates holds nan; give numbers above 0"),
        ({"lengths": [5, -1]}, ValueError, "lengths holds -1"),
        ({"lengths": ["five"]}, ValueError, "give a list of numbers"),
        ({"train_tokens": 0}, ValueError, "train_tokens is 0; it must be at least 1"),
        ({"step_tokens": -4}, ValueError, "step_tokens is -4"),
        ({"max_seq_len": 0}, ValueError, "max_seq_len is 0"),
    ],
)
def test_a_subject_refuses_what_it_cannot_be(bad, error, message):
    with pytest.raises(error, match=message):
        Subject(**{"model": NanoGPT(), "batch": {"idx": RIGHT}, **bad})


def test_diagnose_refuses_unknown_checks():
    with pytest.raises(ValueError, match="unknown check"):
        lab.diagnose(NanoGPT(), (RIGHT, RIGHT), only=["everything"])


def test_missing_logits_are_asked_for():
    class Scalar(nn.Module):
        def forward(self, idx):
            return idx.float().sum()

    with pytest.raises(Missing, match="forward=lambda"):
        Subject(Scalar(), {"idx": RIGHT}).logits(Scalar(), {"idx": RIGHT})


def test_two_of_the_reviews_findings_do_not_hide_each_other():
    """Left-over labels crash the user's batch; the missing mask is told all the same, at its full severity."""
    batch = pairs_batch("left")
    batch["tgt"] = batch["tgt"].masked_fill(batch["tgt"] == PAD, -100)
    report = lab.diagnose(Subject(transformer("source memory"), batch, pad_id=PAD))
    assert found(report) == {("padding-crash", "P2"), ("attends-to-pads", "P2")}


def test_source_and_target_of_one_shape_are_told_apart():
    """Neither is masked; on this right-padded batch only the source's padding can matter."""
    batch = pairs_batch("right")
    assert batch["src"].shape == batch["tgt"].shape
    report = lab.diagnose(Subject(transformer("memory"), batch, pad_id=PAD), only=["attends-to-pads"])
    assert [finding.message.split()[1] for finding in report.findings] == ["source"]
    assert [note.message.split()[1] for note in report.notes] == ["target"]


def test_a_model_that_nothing_changes_is_skipped_and_not_passed():
    model = transformer()
    nn.init.zeros_(model.head.weight)
    report = lab.diagnose(Subject(model, pairs_batch(), pad_id=PAD), only=["attends-to-pads"])
    assert "no effect" in report.skipped["attends-to-pads"] and not report.passed


def test_a_forward_that_writes_into_its_batch_leaves_the_users_alone():
    def forward(model, batch):
        logits = model(batch["src"], batch["tgt"])
        batch["src"].fill_(PAD)
        batch["tgt"].fill_(PAD)
        return logits

    batch = pairs_batch("left")
    kept = {key: value.clone() for key, value in batch.items()}
    report = lab.diagnose(Subject(transformer("source memory"), batch, pad_id=PAD, forward=forward))
    assert found(report) == {("attends-to-pads", "P2")}
    assert all(torch.equal(batch[key], kept[key]) for key in batch)


def test_a_finding_is_kept_when_what_follows_must_be_skipped():
    subject = Subject(
        Stuck(),
        {"input_ids": torch.tensor([[3, 4]])},
        evaluate=lambda model: model.eval(),
        generate=lambda model, batch: 1 / 0,
    )
    report = lab.diagnose(subject, only=["stuck-in-eval"])
    assert [finding.message.split("()")[0] for finding in report.findings] == ["evaluate"]
    assert "ZeroDivisionError" in report.skipped["stuck-in-eval"] and not report.passed


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
def test_encoder_and_cross_attention_are_asked_apart(norm_first):
    subject = Subject(transformer("target", norm_first=norm_first), pairs_batch("right"), pad_id=PAD)
    report = lab.diagnose(subject, only=["attends-to-pads"])
    assert [finding.evidence["module"] for finding in report.findings] == [
        "transformer.encoder.layers.0.self_attn",
        "transformer.decoder.layers.0.multihead_attn",
    ]


@pytest.mark.parametrize(
    ("kind", "modules"),
    [
        ("bart", ["model.encoder.layers.0.self_attn", "model.decoder.layers.0.encoder_attn"]),
        ("t5", ["encoder.block.0.layer.0.SelfAttention", "decoder.block.0.layer.1.EncDecAttention"]),
    ],
)
def test_each_attention_of_a_hugging_face_translator_without_its_mask_is_named(kind, modules):
    batch = pairs_batch()
    report = lab.diagnose(hugging_face(kind), {"input_ids": batch["src"], "decoder_input_ids": batch["tgt"]})
    assert [finding.evidence["module"] for finding in report.by_check("attends-to-pads")] == modules


IDS = torch.tensor([[5, 6, 7, 8, 9], [10, 11, 12, 13, 14]])


@pytest.mark.parametrize("change", [nn.Module.bfloat16, lambda model: torch.compile(model, backend="eager")])
def test_neither_half_precision_nor_compilation_is_a_fault(change):
    report = lab.diagnose(change(hugging_face("llama")), with_mask(IDS) | {"labels": IDS})
    assert not found(report) and {"backend-parity", "sees-the-future", "stuck-in-eval"} <= set(report.passed)


class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.head = nn.Embedding(VOCAB, 8), nn.Linear(8, 2)

    def forward(self, input_ids):
        return self.head(self.table(input_ids).mean(1))


@pytest.mark.parametrize(
    ("model", "batch"),
    [
        (Classifier(), {"input_ids": IDS, "labels": torch.tensor([0, 1])}),
        (NanoGPT(), {"idx": IDS.tolist()}),
        (nn.Linear(3, 3), torch.randn(2, 3)),
    ],
    ids=["a classifier", "lists for tensors", "no transformer at all"],
)
def test_what_is_no_language_model_is_skipped(model, batch):
    report = lab.diagnose(model, batch, skip=["stuck-in-eval", "half-repaired-mode"])
    assert not found(report) and {"sees-the-future", "attends-to-pads"} <= set(report.skipped)


def test_a_model_without_weights_is_refused():
    with pytest.raises(ValueError, match="meta device"):
        lab.diagnose(NanoGPT().to("meta"), (IDS, IDS))
