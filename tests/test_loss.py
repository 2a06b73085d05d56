"""Head and cross entropy in chunks give the loss and the gradients of the plain path, in every precision."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import lab
import lab.loss
from lab import IGNORE_INDEX
from lab.loss import linear_cross_entropy

ROWS, LENGTH, WIDTH, VOCAB = 3, 11, 16, 101
CHUNKS = [2, 5, 11, 33, 1000]


def problem(dtype=torch.float32, ignored=True):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(ROWS, LENGTH, WIDTH, generator=generator, dtype=dtype).requires_grad_()
    head = nn.Linear(WIDTH, VOCAB, bias=False, dtype=dtype)
    head.weight.data = torch.randn(VOCAB, WIDTH, generator=generator).to(dtype)
    labels = torch.randint(VOCAB, (ROWS, LENGTH), generator=generator)
    if ignored:
        labels[0, 4:], labels[2] = IGNORE_INDEX, IGNORE_INDEX  # a part of a row, and chunks with nothing to learn
    return hidden, head, labels


def reference(labels, smoothing=0.0):
    """torch's own, in float64: loss and both gradients."""
    hidden, head, _ = problem()
    hidden, weight = hidden.detach().double().requires_grad_(), head.weight.detach().double().requires_grad_()
    logits = (hidden @ weight.T).flatten(0, 1)
    loss = F.cross_entropy(logits, labels.flatten(), ignore_index=IGNORE_INDEX, label_smoothing=smoothing)
    return loss.detach(), *torch.autograd.grad(loss, (hidden, weight))


@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("ignored", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-13)])
def test_loss_and_gradients_are_torchs_in_float64(chunk, smoothing, ignored, dtype, tolerance):
    hidden, head, labels = problem(dtype, ignored)
    if dtype == torch.float64:  # the float32 numbers, exactly
        hidden = problem()[0].detach().double().requires_grad_()
        head.weight.data = problem()[1].weight.data.double()
    loss = linear_cross_entropy(hidden, head, labels, chunk, smoothing)
    (3 * loss).backward()
    expected, d_hidden, d_weight = reference(labels, smoothing)
    torch.testing.assert_close(loss.double(), expected, rtol=tolerance, atol=0)
    for found, truth in ((hidden.grad, d_hidden), (head.weight.grad, d_weight)):
        assert (found.double() - 3 * truth).abs().max() < 10 * tolerance * truth.abs().max()


def test_no_label_that_counts_gives_zero_and_no_gradient():
    hidden, head, labels = problem()
    loss = linear_cross_entropy(hidden, head, torch.full_like(labels, IGNORE_INDEX), 4)
    loss.backward()
    assert loss == 0 and not hidden.grad.any() and not head.weight.grad.any()


@pytest.mark.parametrize("frozen", ["hidden", "head"])
def test_what_is_frozen_gets_no_gradient_and_the_other_the_same(frozen):
    hidden, head, labels = problem()
    (hidden if frozen == "hidden" else head.weight).requires_grad_(False)
    linear_cross_entropy(hidden, head, labels, 4).backward()
    _, d_hidden, d_weight = reference(labels)
    if frozen == "hidden":
        assert hidden.grad is None
        torch.testing.assert_close(head.weight.grad.double(), d_weight, rtol=1e-4, atol=1e-7)
    else:
        assert head.weight.grad is None
        torch.testing.assert_close(hidden.grad.double(), d_hidden, rtol=1e-4, atol=1e-7)


def test_without_gradients_the_loss_is_the_same():
    hidden, head, labels = problem()
    with torch.no_grad():
        alone = linear_cross_entropy(hidden, head, labels, 4)
    assert not alone.requires_grad and alone == linear_cross_entropy(hidden, head, labels, 4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_as_near_as_its_products_allow(dtype):
    hidden, head, labels = problem()
    with torch.autocast("cpu", dtype):
        loss = linear_cross_entropy(hidden, head, labels, 4)
    loss.backward()
    expected, d_hidden, d_weight = reference(labels)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected.item(), rel=1e-2)
    for found, truth in ((hidden.grad, d_hidden), (head.weight.grad, d_weight)):
        assert found.dtype == torch.float32
        assert (found.double() - truth).norm() < 2e-2 * truth.norm()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_products_in_half_precision_add_up_in_float32(dtype, smoothing, monkeypatch):
    """As on a machine that has instructions for it: one token a chunk, or all in one, are equally near."""
    monkeypatch.setattr(lab.loss, "fast_type", lambda device, dtype: dtype)
    hidden, head, labels = problem()
    expected, d_hidden, d_weight = reference(labels, smoothing)
    for chunk in (1, 4, 1000):
        hidden.grad = head.weight.grad = None
        with torch.autocast("cpu", dtype):
            loss = linear_cross_entropy(hidden, head, labels, chunk, smoothing)
        (loss * 65536).backward()
        assert loss.dtype == torch.float32
        assert loss.item() == pytest.approx(expected.item(), rel=1e-2)
        for found, truth in ((hidden.grad, d_hidden), (head.weight.grad, d_weight)):
            assert 0 < (found.double() / 65536 - truth).norm() < 2e-2 * truth.norm()


def test_fp16_keeps_the_gradients_of_unlikely_tokens(monkeypatch):
    """Probabilities of 1e-8 are zero in fp16, whose smallest number is 6e-8; by their sum these tokens learn."""
    monkeypatch.setattr(lab.loss, "fast_type", lambda device, dtype: dtype)
    hidden, head, labels = problem(ignored=False)
    with torch.no_grad():
        hidden[..., 0], head.weight[:, 1:] = 8.0, head.weight[:, 1:] * 0.1
        head.weight[:, 0] = torch.where(torch.arange(VOCAB) < 50, -1.0, 1.0)  # the first 50: some e^-16 as likely
    labels = labels.clamp(min=50)
    with torch.autocast("cpu", torch.float16):
        linear_cross_entropy(hidden, head, labels, 4).backward()
    logits = hidden.detach().double() @ head.weight.detach().double().T
    assert logits.softmax(-1)[..., :50].max() < 6e-8
    truth = (logits.softmax(-1)[..., :50].flatten(0, 1).T @ hidden.detach().double().flatten(0, 1)) / labels.numel()
    assert (head.weight.grad[:50].double() - truth).norm() < 3e-2 * truth.norm()


def test_fp16_holds_the_gradient_of_a_token_that_is_everywhere(monkeypatch):
    """Summed over the rows of a chunk it would pass 65,504, where fp16 ends."""
    monkeypatch.setattr(lab.loss, "fast_type", lambda device, dtype: dtype)
    hidden, head, labels = problem(ignored=False)
    hidden.data[..., 0], labels = 8.0, torch.full_like(labels, 60)
    with torch.autocast("cpu", torch.float16):
        linear_cross_entropy(hidden, head, labels, 1000).backward()
    alone = hidden.detach().requires_grad_(), head.weight.detach().requires_grad_()
    F.cross_entropy((alone[0] @ alone[1].T).flatten(0, 1), labels.flatten()).backward()
    for found, truth in ((hidden.grad, alone[0].grad), (head.weight.grad, alone[1].grad)):
        assert (found - truth).norm() < 2e-2 * truth.norm()


def test_a_loss_scale_is_passed_on():
    """GradScaler multiplies the loss by up to 65536; the gradients must be that much larger, to the last bit."""
    grads = []
    for scale in (1.0, 65536.0):
        hidden, head, labels = problem()
        (linear_cross_entropy(hidden, head, labels, 4) * scale).backward()
        grads.append((hidden.grad / scale, head.weight.grad / scale))
    assert all(torch.equal(one, two) for one, two in zip(*grads, strict=True))


def test_labels_that_do_not_fit_and_a_head_with_a_bias_are_refused():
    hidden, head, labels = problem()
    with pytest.raises(ValueError, match=r"hidden \(3, 11, 16\) do not fit labels \(3, 10\)"):
        linear_cross_entropy(hidden, head, labels[:, 1:], 4)
    with pytest.raises(ValueError, match="has a bias"):
        linear_cross_entropy(hidden, nn.Linear(WIDTH, VOCAB), labels, 4)


def models(kind, **changes):
    """The same model twice: at once, and in chunks; and a batch."""
    special = {"pad_id": 1, "bos_id": 0, "eos_id": 2}
    config = lab.preset("tiny", dropout=0.0, **special, **changes)
    made = []
    for chunk in (None, 7):
        torch.manual_seed(0)
        made.append((lab.LanguageModel if kind == "lm" else lab.Transformer)(config.replace(loss_chunk=chunk)))
    ids = torch.randint(3, 512, (2, 9), generator=torch.Generator().manual_seed(2))
    batch = {"input_ids": ids, "labels": ids.roll(-1, 1)}
    batch["labels"][0, 6:] = IGNORE_INDEX
    return made, batch if kind == "lm" else {**batch, "decoder_input_ids": ids}


@pytest.mark.parametrize("kind", ["lm", "pairs"])
@pytest.mark.parametrize("changes", [{}, {"tie_head": False}, {"label_smoothing": 0.1}])
def test_models_train_the_same_in_chunks(kind, changes):
    (plain, chunked), batch = models(kind, **changes)
    outputs = [model(**batch) for model in (plain, chunked)]
    assert outputs[1].logits is None and outputs[0].logits is not None
    torch.testing.assert_close(outputs[1].loss, outputs[0].loss, rtol=1e-6, atol=0)
    for output in outputs:
        output.loss.backward()
    for (name, one), two in zip(plain.named_parameters(), chunked.parameters(), strict=True):
        torch.testing.assert_close(two.grad, one.grad, rtol=1e-4, atol=1e-7, msg=lambda text, n=name: f"{n}: {text}")
    del batch["labels"]
    assert torch.equal(chunked(**batch).logits, plain(**batch).logits)


def test_smoothing_is_for_training_alone():
    (plain, chunked), batch = models("lm", label_smoothing=0.2)
    for model in (plain, chunked):
        with torch.no_grad():
            model.head.weight *= 20  # at first all tokens are as likely: there smoothing changes nothing
        smoothed = model(**batch).loss.item()
        logits = model(batch["input_ids"]).logits.flatten(0, 1)
        how = {"ignore_index": IGNORE_INDEX}
        theirs = F.cross_entropy(logits, batch["labels"].flatten(), label_smoothing=0.2, **how).item()
        assert smoothed == pytest.approx(theirs, rel=1e-5)
        exact = F.cross_entropy(logits, batch["labels"].flatten(), **how).item()
        assert model.evaluate([batch]).loss == pytest.approx(exact, rel=1e-5) != pytest.approx(smoothed, rel=1e-3)


@pytest.mark.slow
def test_compiled_it_is_the_same_and_breaks_no_graph():
    (plain, chunked), batch = models("lm")
    compiled = torch.compile(chunked, fullgraph=True)
    compiled(**batch).loss.backward()
    plain(**batch).loss.backward()
    for one, two in zip(plain.parameters(), chunked.parameters(), strict=True):
        torch.testing.assert_close(two.grad, one.grad, rtol=1e-4, atol=1e-6)
