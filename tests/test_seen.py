"""What `lab.seen` reads off models that nobody here wrote, against what they say themselves and against autograd."""

from __future__ import annotations

import random
import subprocess
import sys

import numpy
import pytest
import torch
import zoo
from foreign import BOS, EOS, PAD, VOCAB, NanoGPT, TorchTransformer, hugging_face, pairs_batch
from torch import Tensor, nn
from torch.nn import functional as F

from lab import faults, labels, masks
from lab.config import ModelConfig
from lab.language_model import LanguageModel
from lab.seen import influence, seen
from lab.streams import Streams
from lab.subject import Subject
from lab.transformer import Transformer

SPECIAL = {"pad_id": PAD, "bos_id": BOS, "eos_id": EOS}
CONFIG = ModelConfig(VOCAB, d_model=16, num_heads=2, num_layers=2, d_ff=32, max_seq_len=40, **SPECIAL)
TEXTS = [[5, 6, 7, 8, 9], [10, 11]]


def lively(model: nn.Module) -> nn.Module:
    """With weights so large that attention is far from uniform."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for parameter in model.parameters():
            if parameter.dim() == 2:
                nn.init.normal_(parameter, std=0.4)
    return model


def translator() -> Transformer:
    return lively(Transformer(CONFIG))


def language_model(**changes) -> LanguageModel:
    return lively(LanguageModel(CONFIG.replace(**changes)))


def texts(side: str = "left") -> dict[str, Tensor]:
    return labels.collate_texts(TEXTS, side=side, **SPECIAL)


def translations(side: str = "left") -> dict[str, Tensor]:
    pairs = [([5, 6, 7, 8, 9], [20, 21, 22, 23]), ([10, 11], [24, 25])]
    return labels.collate_pairs(pairs, side=side, **SPECIAL)


# The weights


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("name", ["gpt2", "llama", "bert", "bart", "t5"])
def test_weights_are_those_that_the_model_says_it_computed(name: str, attention: str, side: str) -> None:
    subject, eager = zoo.make(name, attention, side), zoo.make(name, "eager", side).model.eval()
    with torch.no_grad():
        out = eager(**subject.batch, output_attentions=True)
    if subject.kind == "seq2seq":
        theirs = {"encoder": out.encoder_attentions, "decoder": out.decoder_attentions, "cross": out.cross_attentions}
    else:
        theirs = {"encoder" if subject.kind == "encoder" else "decoder": out.attentions}
    found = seen(subject.model, subject.batch)
    assert {kind: sum(one.kind == kind for one in found) for kind in theirs} == dict.fromkeys(theirs, 2)
    assert len(found) == 2 * len(theirs)
    for one in found:
        expected = theirs[one.kind][one.layer]
        assert one.weights.shape == expected.shape  # a head for each query head, where keys are shared
        # A query that may attend nowhere gets equal weights from a large negative number, and zeros from the kernel.
        real = slice(None) if attention == "eager" else ~one.query_pads
        torch.testing.assert_close(one.weights.transpose(1, 2)[real], expected.transpose(1, 2)[real])
        assert not one.leaks and not one.on_padding


@pytest.mark.parametrize("side", ["left", "right"])
def test_weights_of_our_models(side: str) -> None:
    for model, batch in ((translator(), translations(side)), (language_model(), texts(side))):
        theirs = model.eval()(**batch, need_weights=True).attentions
        for one in seen(model, batch):
            torch.testing.assert_close(one.weights, theirs[one.kind][one.layer])


class OneAttention(nn.Module):
    """PyTorch's own attention, causal, which keeps the weights it gives for each head."""

    def __init__(self, need_weights: bool, batch_first: bool) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(VOCAB, 16), nn.Linear(16, VOCAB)
        self.attention = nn.MultiheadAttention(16, 4, batch_first=batch_first)
        self.need_weights, self.batch_first, self.theirs = need_weights, batch_first, []

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.embedding(input_ids if self.batch_first else input_ids.T)
        how = {"attn_mask": torch.ones(2 * (input_ids.size(1),), dtype=torch.bool).triu(1), "is_causal": True}
        x, weights = self.attention(
            x,
            x,
            x,
            need_weights=self.need_weights,
            average_attn_weights=False,
            key_padding_mask=input_ids == PAD,
            **how,
        )
        self.theirs.append(weights)
        return self.head(x if self.batch_first else x.transpose(0, 1))


@pytest.mark.parametrize("batch_first", [True, False])
def test_weights_of_multihead_attention_with_and_without_its_own(batch_first: bool) -> None:
    told, silent = OneAttention(True, batch_first), OneAttention(False, batch_first)
    silent.load_state_dict(told.state_dict())
    batch = {"input_ids": texts("right")["input_ids"]}
    theirs = told.eval()(**batch) is not None and told.theirs[0]
    for model in (told, silent):
        (one,) = seen(model, batch, pad_id=PAD, kind="causal_lm")
        assert one.name == "attention" and one.weights.shape == (2, 4, 6, 6)
        torch.testing.assert_close(one.weights, theirs)
        assert torch.equal(one.may, one.should[:, None].expand_as(one.may))


def test_a_model_in_the_manner_of_nanogpt_is_read_once() -> None:
    ids = torch.randint(5, VOCAB, (2, 9))
    for batch in ((ids[:, :-1], ids[:, 1:]), (ids[:, :-1],), ids[:, :-1]):
        found = seen(NanoGPT(), batch)
        assert [(one.kind, one.layer, one.weights.shape) for one in found] == [
            ("decoder", layer, (2, 2, 8, 8)) for layer in (0, 1)
        ]
        assert not any(one.leaks for one in found)


def same_lengths(**keys: str) -> dict[str, Tensor]:
    """Source and target hold the very same ids."""
    ids = torch.tensor([[5, 6, 7, 8], [9, 10, PAD, PAD]])
    return {key: ids.clone() for key in keys.values()}


HUGGING_FACE = {"source": "input_ids", "target": "decoder_input_ids"}


@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
@pytest.mark.parametrize(
    ("make", "keys", "names"),
    [
        (translator, HUGGING_FACE, ("encoder", "decoder.{}.self_attention", "cross_attention")),
        (lambda: hugging_face("bart"), HUGGING_FACE, ("model.encoder", "model.decoder.layers.{}.self", "encoder_attn")),
        (lambda: hugging_face("t5"), HUGGING_FACE, ("encoder", "decoder.block.{}.layer.0", "EncDecAttention")),
        (
            lambda: TorchTransformer(),
            {"source": "src", "target": "tgt"},
            ("transformer.encoder", "transformer.decoder.layers.{}.self_attn", "multihead_attn"),
        ),
    ],
    ids=["ours", "bart", "t5", "torch"],
)
def test_kinds_where_source_and_target_are_the_same(make, keys: dict, names: tuple[str, str, str]) -> None:
    found = seen(make(), same_lengths(**keys), pad_id=PAD, kind="seq2seq")
    layers = [("encoder", 0), ("encoder", 1), ("decoder", 0), ("cross", 0), ("decoder", 1), ("cross", 1)]
    assert [(one.kind, one.layer) for one in found] == layers
    for one in found:
        assert {"encoder": names[0], "decoder": names[1].format(one.layer), "cross": names[2]}[one.kind] in one.name


def test_streams_follow_what_is_written_into_a_tensor() -> None:
    batch = translations()
    with Streams(batch, Subject(translator(), batch)) as streams:
        made = torch.zeros(2, 5, dtype=torch.long)
        made[:, 1:] = batch["decoder_input_ids"][:, :-1]
        both = made.float() + batch["input_ids"][:, :5]
    assert streams.of(made) == {"target"} and streams.of(both) == {"source", "target"}
    assert streams.of(torch.zeros(2)) == set()


# Masks, leaks, tokens


def test_may_is_the_mask_that_was_used() -> None:
    model, batch = translator(), translations()
    found = seen(model, batch)
    source = masks.key_is_real(batch["input_ids"], PAD)
    used = {"encoder": source, "cross": source, "decoder": masks.decoder(batch["decoder_input_ids"], PAD)}
    for one in found:
        assert torch.equal(one.may, used[one.kind].expand_as(one.may))
        assert torch.equal(one.should[:, None].expand_as(one.may), one.may)
    with faults.get("attends-to-pads").inject():
        leaking = seen(model, batch)[2]
    assert torch.equal(leaking.may, masks.causal(5).expand_as(leaking.may)) and leaking.kind == "decoder"


def test_may_is_none_without_a_mask() -> None:
    found = seen(TorchTransformer("target"), pairs_batch("left"), pad_id=PAD)
    assert {one.kind: one.may is None for one in found} == {"encoder": True, "cross": True, "decoder": False}
    assert all(one.leaks and one.on_padding > 0.1 for one in found if one.may is None)


def test_the_missing_padding_mask_leaks_at_the_left_and_only_idly_at_the_right() -> None:
    model = translator()
    for side in ("left", "right"):
        with faults.get("attends-to-pads").inject():
            broken = seen(model, translations(side))
        for one, faulty in zip(seen(model, translations(side)), broken, strict=True):
            assert (one.leaks, one.idle_leaks, one.on_padding) == (0, 0, 0.0)
            wrong = one.kind == "decoder"
            assert (faulty.leaks > 0) == (faulty.on_padding > 0) == (wrong and side == "left")
            assert (faulty.idle_leaks > 0) == wrong


def test_the_numbers_are_what_one_counts_by_hand() -> None:
    with faults.get("attends-to-pads").inject():
        one = seen(translator(), translations())[2]
    assert one.queries[1] == one.keys[1] == [str(PAD), str(PAD), str(BOS), "24", "25"]
    assert one.query_pads.tolist() == [[False] * 5, [True] * 2 + [False] * 3]
    # Row 1: 3 real queries look at 2 pads, and pads at themselves and at the pads before them; in each of two heads.
    assert (one.leaks, one.idle_leaks) == (12, 6)
    real = torch.cat([one.weights[0].sum(-1) * 0, one.weights[1, :, 2:, :2].sum(-1)], 1)
    assert one.on_padding == pytest.approx(float(real.sum() / 16), rel=1e-6)
    part = one.of(1, 0)
    assert (part.leaks, part.idle_leaks, part.weights.shape) == (6, 3, (1, 1, 5, 5))
    assert part.on_padding == pytest.approx(float(one.weights[1, 0, 2:, :2].sum(-1).mean()), rel=1e-6)
    assert one.of(0).leaks == one.of(0).idle_leaks == 0


def test_future_keys_count_as_leaks() -> None:
    with faults.get("no-causal-mask").inject():
        found = seen(language_model(), texts())
    assert all(one.leaks == 2 * (15 + 3) and one.on_padding == 0 for one in found)


def test_weights_are_those_that_met_the_values() -> None:
    with faults.get("mask-after-softmax").inject():
        one = seen(language_model(), texts())[0]
    assert one.leaks == 0 and float(one.weights.sum(-1)[0, :, :-1].max()) < 0.999


def test_tokens_may_be_named_by_whatever_names_ids() -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    from lab.data import Translation, train_tokenizer

    model, batch = language_model(vocab_size=300), {"input_ids": torch.tensor([[7, 8, 9]])}
    words = Tokenizer(models.WordLevel({"seven": 7, "eight": 8, "[UNK]": 0}, unk_token="[UNK]"))
    ours = train_tokenizer(["ça va, ça va"], 300)
    spelled = {"input_ids": torch.tensor([[BOS, *ours.encode(" ça").ids]])}
    for tokens, given, expected in (
        (None, batch, ["7", "8", "9"]),
        (lambda index: f"<{index}>", batch, ["<7>", "<8>", "<9>"]),
        (words, batch, ["seven", "eight", "9"]),
        (PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]"), batch, ["seven", "eight", "9"]),
        (ours, spelled, ["<s>", "▁ça"]),
        (Translation("", ours, {}), spelled, ["<s>", "▁ça"]),
    ):
        assert seen(model, given, tokens=tokens)[0].queries == [expected], tokens
    with pytest.raises(TypeError, match="tokens is a int; give a function"):
        seen(model, batch, tokens=3)


# What is asked in vain, and what is left behind


class OwnSoftmax(nn.Module):
    """Causal attention whose softmax is written out."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(VOCAB, 16), nn.Linear(16, VOCAB)

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.embedding(input_ids)
        weights = (x @ x.transpose(1, 2) / 4).exp().tril()
        return self.head(weights / weights.sum(-1, keepdim=True) @ x)


def test_errors_name_what_was_wrong() -> None:
    batch = texts()
    with pytest.raises(
        ValueError, match=r"OwnSoftmax.*scaled_dot_product_attention.*draw\.influence needs no attention"
    ):
        seen(OwnSoftmax(), batch)
    with pytest.raises(TypeError, match="'padding' is no keyword here.*pad_id"):
        seen(language_model(), batch, padding=1)
    with pytest.raises(ValueError, match="batch is None"):
        seen(language_model(), None)
    with pytest.raises(ValueError, match="give streams="):
        seen(language_model(), {"words": batch["input_ids"]}, forward=lambda model, batch: model(batch["words"]).logits)
    one = seen(language_model(), batch)[0]
    for number in (2, -1, True):
        with pytest.raises(ValueError, match=rf"row is {number}, but the batch has 2 rows: give a number from 0 to 1"):
            one.of(number)
    with pytest.raises(ValueError, match="head is 2, but blocks.0.self_attention has 2 heads"):
        one.of(0, 2)
    with pytest.raises(ValueError, match="row is 7, but the batch has 2 rows"):
        influence(language_model(), batch, row=7)
    with pytest.raises(ValueError, match="no source ids"):
        influence(language_model(), batch, stream="source")


class Restless(nn.Module):
    """A forward that draws random numbers, writes to a buffer and keeps what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = language_model(dropout=0.1)
        self.register_buffer("steps", torch.zeros(()))

    def forward(self, input_ids: Tensor, labels: Tensor | None = None) -> Tensor:
        torch.rand(3), random.random(), numpy.random.rand()
        self.steps += 1
        self.last = input_ids
        input_ids += 0
        return self.inner(input_ids, labels).logits


def test_nothing_is_left_behind() -> None:
    model, batch = Restless().train(), texts()
    model.inner.blocks[1].eval()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    kept = {key: (value.clone(), value._version) for key, value in batch.items()}
    random_states = torch.get_rng_state(), random.getstate(), numpy.random.get_state()[1].tolist()
    fast = torch.backends.mha.get_fastpath_enabled()
    for ask in (seen, influence):
        ask(model, batch)
        assert [module.training for module in model.modules()] == modes
        assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
        assert all(torch.equal(value, kept[key][0]) and value._version == kept[key][1] for key, value in batch.items())
        assert torch.equal(torch.get_rng_state(), random_states[0]) and random.getstate() == random_states[1]
        assert numpy.random.get_state()[1].tolist() == random_states[2]
        assert not hasattr(model, "last") and not any(m._forward_hooks for m in model.modules())
        assert torch.is_grad_enabled() and torch.backends.mha.get_fastpath_enabled() == fast
        assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


def test_no_drawing_is_imported() -> None:
    code = "import lab.seen, sys; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# Influence


def jacobian(model: nn.Module, batch: dict[str, Tensor], row: int) -> Tensor:
    """By autograd: (S, T), whether the logits at t have a gradient for the embedding of token j."""
    model.eval()
    given = {key: value[row : row + 1] for key, value in batch.items() if key != "labels"}
    ids = given.pop("input_ids")

    def logits(vectors: Tensor) -> Tensor:
        return model(inputs_embeds=vectors, **given).logits[0].square().sum(-1)

    slopes = torch.autograd.functional.jacobian(logits, model.get_input_embeddings()(ids))  # (T, 1, S, D)
    return slopes[:, 0].abs().amax(-1).T > 0


@pytest.mark.parametrize("row", [0, 1])
@pytest.mark.parametrize("name", ["gpt2", "llama", "bert"])
def test_influence_is_where_autograd_finds_a_slope(name: str, row: int) -> None:
    subject = zoo.make(name, "eager", "left")
    found = influence(subject.model, subject.batch, row=row)
    assert torch.equal(
        found.there[:, ~found.query_pads], jacobian(subject.model, subject.batch, row)[:, ~found.query_pads]
    )
    assert torch.equal(found.there[:, ~found.query_pads], found.should[:, ~found.query_pads])
    assert found.leaks == 0 and found.pads.sum() == (0, 4)[row]


def test_influence_of_pads_where_the_mask_is_left_out() -> None:
    subject = zoo.make("gpt2", "sdpa", "left")
    batch = {"input_ids": subject.batch["input_ids"]}
    found = influence(subject.model, batch, row=1, pad_id=PAD)
    assert torch.equal(found.there, jacobian(subject.model, batch, 1))
    assert found.leaks == 4 * 6 and found.idle_leaks == 4 * 3 // 2


@pytest.mark.parametrize("name", ["bart", "t5"])
def test_influence_of_the_source(name: str) -> None:
    subject = zoo.make(name, "eager", "left")
    found = influence(subject.model, subject.batch, row=1, stream="source")
    assert found.by.shape == (12, 8) and found.pads.tolist() == [True] * 6 + [False] * 6
    assert torch.equal(found.there, found.should) and found.leaks == 0


def test_source_and_target_of_the_same_ids_are_told_apart() -> None:
    for model in (translator(), hugging_face("bart")):
        batch = same_lengths(**HUGGING_FACE)
        target = influence(model, batch, pad_id=PAD)
        assert torch.equal(target.there, torch.ones(4, 4, dtype=torch.bool).triu())
        assert influence(model, batch, stream="source", pad_id=PAD).there.all()


@pytest.mark.parametrize(
    ("fault", "side", "leaks"),
    [
        ("", "left", 0),
        ("", "right", 0),
        ("attends-to-pads", "left", 3 * 3),
        ("attends-to-pads", "right", 0),
        ("no-causal-mask", "left", 3),
        ("no-causal-mask", "right", 6),
        ("sees-one-ahead", "right", 3),
    ],
)
def test_influence_shows_what_a_fault_does(fault: str, side: str, leaks: int) -> None:
    model, batch = language_model(num_layers=1), texts(side)
    if not fault:
        found = influence(model, batch, row=1)
        assert torch.equal(found.there[:, ~found.pads], found.should[:, ~found.pads]) and found.idle_leaks == 0
    else:
        with faults.get(fault).inject():
            found = influence(model, batch, row=1)
    assert found.leaks == leaks


class Mixing(nn.Module):
    """A causal language model whose logits also take in a mean: of all positions, or of the rows of the batch."""

    def __init__(self, over: int) -> None:
        super().__init__()
        self.inner, self.over = language_model(), over

    def forward(self, input_ids: Tensor) -> Tensor:
        logits = self.inner(input_ids).logits
        return logits + 0.1 * logits.mean(self.over, keepdim=True).tanh()


def test_influence_tells_the_truth_where_weights_do_not() -> None:
    model, batch = Mixing(1), {"input_ids": texts("right")["input_ids"]}
    assert not any(one.leaks for one in seen(model, batch, pad_id=PAD))
    found = influence(model, batch, pad_id=PAD)
    assert found.there.all() and found.leaks == 15


def test_rows_that_depend_on_each_other_are_asked_one_by_one() -> None:
    batch = {"input_ids": texts("right")["input_ids"]}
    found, plain = influence(Mixing(0), batch, pad_id=PAD), influence(Mixing(0).inner, batch)
    assert found.leaks == 0 and torch.equal(found.there, plain.there)


def test_more_positions_than_fit_in_a_pass() -> None:
    ids = torch.randint(5, VOCAB, (3, 37))
    found = influence(language_model(), {"input_ids": ids}, row=2, tokens=str)
    assert torch.equal(found.there, torch.ones(37, 37, dtype=torch.bool).triu())
    assert found.tokens == found.queries == [str(i) for i in ids[2].tolist()]


class OneHot(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Parameter(torch.randn(VOCAB, 8)), nn.Linear(8, VOCAB)

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.head(F.one_hot(input_ids, VOCAB).to(self.table) @ self.table)


def test_an_embedding_that_is_not_looked_up_is_an_error() -> None:
    with pytest.raises(ValueError, match="the lookup of the target ids was not seen"):
        influence(OneHot(), texts())


def test_influence_needs_no_attention() -> None:
    found = influence(OwnSoftmax(), {"input_ids": texts()["input_ids"]})
    assert torch.equal(found.there, found.should)
