"""Both models from outside: size, tying, gradients, dropout, evaluation, generation, errors."""

import copy
import itertools
import math
import random

import pytest
import torch
from safetensors.torch import load_model, save_model
from torch import nn

from lab import masks
from lab.attention import KVCache, MultiHeadAttention
from lab.blocks import Embedder
from lab.config import ModelConfig
from lab.labels import IGNORE_INDEX, collate_pairs, collate_texts, cross_entropy
from lab.language_model import LanguageModel
from lab.presets import preset
from lab.transformer import Transformer

PAD, BOS, EOS, VOCAB = 0, 1, 2, 12
KINDS = [LanguageModel, Transformer]
IDS = {"pad_id": PAD, "bos_id": BOS, "eos_id": EOS}
TEXTS = [[5, 6, 7, 8], [9], [10, 11, 4], [3, 3]]

both = pytest.mark.parametrize("kind", KINDS)


def make(kind, **changes):
    torch.manual_seed(0)
    config = ModelConfig(VOCAB, 8, 2, 2, 16, 16, **{"dropout": 0.1, **IDS, **changes})
    model = kind(config)
    for parameter in model.parameters():  # the small initial weights would answer every prompt alike
        if parameter.dim() == 2:
            nn.init.normal_(parameter, std=0.4)
    return model


def batch_of(model, texts=TEXTS):
    if isinstance(model, LanguageModel):
        return collate_texts(texts, **IDS)
    return collate_pairs([(text[::-1], text) for text in texts], **IDS)


def prompt_of(model):
    """Unequal rows, padded where the model wants it."""
    return torch.tensor([[PAD, 5, 6], [7, 8, 9]] if isinstance(model, LanguageModel) else [[5, 6, PAD], [7, 8, 9]])


# Size


@pytest.mark.parametrize(
    ("name", "tied", "untied"),
    [
        ("reported-16m", 15_040_256, 27_906_048),
        ("16m", 16_090_880, 28_956_672),
        ("50m", 44_909_056, 70_640_640),
        ("117m", 124_439_808, 163_037_184),
    ],
)
def test_parameter_counts(name, tied, untied):
    with torch.device("meta"):
        counts = [sum(p.numel() for p in LanguageModel(preset(name, tie_head=t)).parameters()) for t in (True, False)]
    assert counts == [tied, untied]


# Tying


def is_tied(model) -> bool:
    return model.head.weight is model.embedder.token.weight


def through_state_dict(model, path):
    other = make(type(model))
    other.load_state_dict(model.state_dict())
    return other


def through_safetensors(model, path):
    save_model(model, path / "model.safetensors")
    other = make(type(model))
    load_model(other, path / "model.safetensors")
    return other


@both
@pytest.mark.parametrize(
    "travel",
    [
        through_state_dict,
        through_safetensors,
        lambda model, path: copy.deepcopy(model),
        lambda model, path: model.to(torch.float64),
    ],
    ids=["state_dict", "safetensors", "deepcopy", "double"],
)
def test_tying_survives(kind, travel, tmp_path):
    model = make(kind)
    model.head.weight.data += 0.5
    before = model.head.weight.detach().float().clone()
    model = travel(model, tmp_path)
    assert is_tied(model)
    assert torch.equal(model.head.weight.float(), before)


@both
@pytest.mark.parametrize("tie", [True, False])
def test_a_training_step_keeps_the_head_as_it_is_tied_or_not(kind, tie):
    model = make(kind, tie_head=tie)
    before = model.head.weight.detach().clone()
    model(**batch_of(model)).loss.backward()
    torch.optim.AdamW(model.parameters()).step()
    assert is_tied(model) is tie
    assert not torch.equal(model.head.weight, before)


# Forward, backward


@both
@pytest.mark.parametrize("norm", ["pre", "post"])
@pytest.mark.parametrize("positions", ["learned", "sinusoidal"])
@pytest.mark.parametrize("activation", ["gelu", "relu"])
def test_every_parameter_learns(kind, norm, positions, activation):
    model = make(kind, norm=norm, positions=positions, activation=activation, tie_head=False)
    batch = batch_of(model)
    out = model(**batch)
    assert out.logits.shape == (*batch["labels"].shape, VOCAB)
    out.loss.backward()
    for name, parameter in model.named_parameters():
        gradient = parameter.grad
        assert gradient is not None and gradient.isfinite().all(), name
        if name.endswith("in_proj.bias"):  # a bias of all keys moves every score of a query alike: softmax forgets it
            query, key, value = gradient.chunk(3)
            assert query.any() and value.any() and key.abs().max() < 1e-6, name
        else:
            assert gradient.any(), name


@both
def test_initial_loss_is_that_of_a_guess(kind):
    torch.manual_seed(0)
    model = kind(ModelConfig(VOCAB, 8, 2, 2, 16, 16, dropout=0.0, **IDS))
    assert model(**batch_of(model)).loss.item() == pytest.approx(math.log(VOCAB), abs=0.1)


@both
def test_loss_is_that_of_the_logits(kind):
    model = make(kind, dropout=0.0)
    batch = batch_of(model)
    out = model(**batch)
    torch.testing.assert_close(out.loss, cross_entropy(out.logits, batch["labels"]))
    assert model(**{name: ids for name, ids in batch.items() if name != "labels"}).loss is None


@both
def test_attentions_come_on_request_and_change_no_bit(kind):
    model = make(kind).eval()
    batch = batch_of(model)
    plain, asked = model(**batch), model(**batch, need_weights=True)
    assert plain.attentions == {}
    assert torch.equal(plain.logits, asked.logits)
    target = batch["labels"].size(1)
    source = batch["input_ids"].size(1)
    shapes = {"decoder": (target, target)}
    if kind is Transformer:
        shapes |= {"encoder": (source, source), "cross": (target, source)}
    assert set(asked.attentions) == set(shapes)
    for name, weights in asked.attentions.items():
        assert [tuple(w.shape) for w in weights] == [(len(TEXTS), 2, *shapes[name])] * 2


@pytest.mark.parametrize(
    ("kind", "place"), [(LanguageModel, "input_ids"), (Transformer, "input_ids"), (Transformer, "decoder_input_ids")]
)
def test_what_stands_at_pads_changes_no_real_row(kind, place):
    """Any two embeddings of the pad token give the same, also with pads inside and at the left."""
    model = make(kind, tie_head=False).eval()
    batch = batch_of(model)
    batch[place] = torch.tensor([[PAD, PAD, 5, 6], [7, PAD, 8, 9], [3, 4, PAD, PAD], [5, 5, 5, 5]])
    if kind is LanguageModel or place == "decoder_input_ids":
        batch["labels"] = batch[place].masked_fill(batch[place] == PAD, IGNORE_INDEX)
    before, weight = model(**batch), model.embedder.token.weight
    weight.data[PAD] = 7.0
    after = model(**batch)
    assert torch.equal(before.loss, after.loss)
    after.loss.backward()
    assert not weight.grad[PAD].any()


PIECES = [[1] * 6, [3, 3], [1, 5], [2, 1, 3]]
PADDED = torch.tensor([[PAD, PAD, 5, 6, PAD, 7], [8, 9, 10, 11, 3, 4]])


@pytest.mark.parametrize("norm", ["pre", "post"])
@pytest.mark.parametrize("pieces", PIECES, ids=str)
def test_a_decoder_fed_in_pieces_gives_the_logits_of_the_whole(norm, pieces):
    model, cache = make(Transformer, norm=norm).eval(), KVCache(num_layers=2, max_len=16)
    source = torch.tensor([[5, 6, PAD], [7, 8, 9]])
    memory, mask = model.encode(source), masks.key_is_real(source, PAD)
    logits = [model.head(model.decode(piece, memory, mask, cache=cache)) for piece in PADDED.split(pieces, dim=1)]
    torch.testing.assert_close(torch.cat(logits, dim=1), model(source, PADDED).logits)


@pytest.mark.parametrize("pad_id", [None, PAD])
@pytest.mark.parametrize("pieces", PIECES, ids=str)
def test_a_cache_fed_in_pieces_gives_the_logits_of_the_whole(pad_id, pieces):
    model, cache = make(LanguageModel, pad_id=pad_id).eval(), KVCache(num_layers=2, max_len=16)
    logits = [model(piece, cache=cache).logits for piece in PADDED.split(pieces, dim=1)]
    torch.testing.assert_close(torch.cat(logits, dim=1), model(PADDED).logits)


@pytest.mark.parametrize("pad_id", [None, PAD])
def test_logits_of_the_last_position_alone(pad_id):
    model = make(LanguageModel, pad_id=pad_id).eval()
    torch.testing.assert_close(model(PADDED, last_only=True).logits, model(PADDED).logits[:, -1:])


# Dropout: alone in one place, it must matter in training and not in evaluation


def without_dropout(model):
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(module, MultiHeadAttention):
            module.dropout = 0.0
    return model


def embeddings(model):
    model.embedder.dropout.p = 0.5


def attention_in(layers, name):
    def switch(model):
        for block in getattr(model, layers):
            getattr(block, name).dropout = 0.5

    return switch


def residual_in(layers, name):
    """Dropout on what this sub-layer adds; the others add nothing, so that theirs cannot matter."""

    def switch(model):
        for module_name, module in model.named_modules():
            others = module_name.startswith(layers) and f".{name}." not in module_name
            if others and module_name.endswith(("out_proj", "down")):
                nn.init.zeros_(module.weight)
        for block in getattr(model, layers):
            block.dropout.p = 0.5

    return switch


PLACES = [(kind, embeddings, "embeddings") for kind in KINDS]
for kind, layers in [(LanguageModel, "blocks"), (Transformer, "encoder"), (Transformer, "decoder")]:
    sublayers = ["self_attention", "cross_attention"] if layers == "decoder" else ["self_attention"]
    PLACES += [(kind, attention_in(layers, name), f"{layers}, weights of {name}") for name in sublayers]
    PLACES += [(kind, residual_in(layers, name), f"{layers}, {name}") for name in [*sublayers, "feed_forward"]]


@pytest.mark.parametrize(("kind", "switch", "name"), PLACES, ids=[f"{k.__name__}: {n}" for k, _, n in PLACES])
def test_dropout_is_active_in_training_alone(kind, switch, name):
    model = without_dropout(make(kind))
    batch = batch_of(model)

    def varies():
        return not torch.equal(model(**batch).logits, model(**batch).logits)

    assert not varies(), "there is dropout elsewhere"
    switch(model)
    assert varies()
    model.eval()
    assert not varies()


# Evaluation


def mixed(model, seed=0):
    """Freeze some parts: every module in a mode of its own."""
    choose = random.Random(seed)
    for module in model.modules():
        module.training = choose.random() < 0.5
    modes = modes_of(model)
    assert len(set(modes)) == 2
    return modes


def modes_of(model):
    return [module.training for module in model.modules()]


@both
def test_evaluate_counts_every_token_once(kind):
    model = make(kind)
    parts = model.evaluate([batch_of(model, TEXTS[:1]), batch_of(model, TEXTS[1:])])
    whole = model.evaluate([batch_of(model)])
    assert parts.tokens == whole.tokens == sum(len(text) + 1 for text in TEXTS)
    assert parts.loss == pytest.approx(whole.loss, rel=1e-5)
    assert whole.perplexity == pytest.approx(math.exp(whole.loss))
    means = [model.evaluate([batch_of(model, texts)]).loss for texts in (TEXTS[:1], TEXTS[1:])]
    assert sum(means) / 2 != pytest.approx(whole.loss, rel=1e-3), "else a mean of means would pass too"


@both
def test_evaluate_leaves_everything_as_it_was(kind):
    model = make(kind)
    modes, state, batch = mixed(model), torch.get_rng_state(), batch_of(model)
    given_batch = copy.deepcopy(batch)
    first, second = model.evaluate([batch]), model.evaluate([batch])
    assert first == second, "dropout must be off"
    assert modes_of(model) == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.is_grad_enabled()
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(batch[name], given_batch[name]) for name in batch)


@both
def test_evaluate_that_fails_gives_the_modes_back(kind):
    def batches():
        yield batch_of(model)
        assert not any(modes_of(model)) and not torch.is_grad_enabled()
        raise OSError("the disk is gone")

    model = make(kind)
    modes = mixed(model)
    with pytest.raises(OSError, match="the disk is gone"):
        model.evaluate(batches())
    assert modes_of(model) == modes
    assert torch.is_grad_enabled()


@both
def test_evaluate_on_nothing_is_an_error(kind):
    model = make(kind)
    modes = mixed(model)
    with pytest.raises(ValueError, match="no batch to evaluate on"):
        model.evaluate([])
    batch = batch_of(model)
    batch["labels"].fill_(IGNORE_INDEX)
    with pytest.raises(ValueError, match="every label of this"):
        model.evaluate([batch])
    assert modes_of(model) == modes


# Generation


@both
@pytest.mark.parametrize("how", [{}, {"num_beams": 2}, {"use_cache": False}, {"temperature": 1.0}], ids=str)
def test_generate_gives_the_modes_back(kind, how):
    model = make(kind)
    modes = mixed(model)
    assert not model.generate(prompt_of(model), 3, **how).requires_grad
    assert modes_of(model) == modes
    assert torch.is_grad_enabled()


@both
def test_generate_is_deterministic_in_any_mode(kind):
    model = make(kind, dropout=0.5)
    expected = model.eval().generate(prompt_of(model), 6)
    state = torch.get_rng_state()
    assert torch.equal(model.train().generate(prompt_of(model), 6), expected)
    assert torch.equal(torch.get_rng_state(), state)


@both
@pytest.mark.parametrize("method", ["generate", "stream"])
def test_generation_that_fails_gives_the_modes_back(kind, method):
    model = make(kind)
    modes, calls = mixed(model), itertools.count()

    def fail(module, inputs):
        if next(calls) == 1:
            raise OSError("the accelerator is gone")

    model.head.register_forward_pre_hook(fail)
    with pytest.raises(OSError, match="the accelerator is gone"):
        list(getattr(model, method)(prompt_of(model), 3))
    assert modes_of(model) == modes
    assert torch.is_grad_enabled()


@both
def test_between_two_tokens_the_model_is_the_callers(kind):
    model = make(kind, dropout=0.5)
    modes = mixed(model)
    inside = []
    model.head.register_forward_pre_hook(lambda module, inputs: inside.append((any(modes_of(model)), module.training)))
    stream = model.stream(prompt_of(model), 4)
    assert modes_of(model) == modes and torch.is_grad_enabled(), "before the first token"
    for ids in stream:
        assert modes_of(model) == modes and torch.is_grad_enabled()
        assert ids.shape == (2,) and not ids.requires_grad
    assert inside and not any(any(seen) for seen in inside)
    assert modes_of(model) == modes and torch.is_grad_enabled(), "after the last"


@both
def test_a_caller_may_change_the_modes_between_two_tokens(kind):
    model = make(kind)
    for seed, _ in enumerate(model.stream(prompt_of(model), 4)):
        modes = mixed(model, seed)
    assert modes_of(model) == modes


@both
def test_an_abandoned_stream_leaves_nothing(kind):
    model = make(kind)
    modes = mixed(model)
    stream = model.stream(prompt_of(model), 4)
    next(stream)
    del stream
    assert modes_of(model) == modes and torch.is_grad_enabled()


@both
@pytest.mark.parametrize("how", [{}, {"temperature": 1.0}], ids=str)
def test_stream_gives_the_columns_of_generate(kind, how):
    def seeded():
        return {**how, "generator": torch.Generator().manual_seed(3)}

    model = make(kind, dropout=0.5)
    columns = torch.stack(list(model.stream(prompt_of(model), 5, **seeded())), dim=1)
    assert torch.equal(columns, model.generate(prompt_of(model), 5, **seeded())[:, -columns.size(1) :])


@both
def test_two_streams_do_not_disturb_each_other(kind):
    model = make(kind, dropout=0.5)
    modes = mixed(model)
    prompts = prompt_of(model), prompt_of(model).flip(0)
    alone = [[ids.tolist() for ids in model.stream(prompt, 5)] for prompt in prompts]
    together = [[], []]
    for pair in itertools.zip_longest(*(model.stream(prompt, 5) for prompt in prompts)):
        for column, ids in zip(together, pair, strict=True):
            column += [] if ids is None else [ids.tolist()]
    assert together == alone
    assert modes_of(model) == modes


@both
def test_a_training_step_between_two_tokens_has_dropout_and_gradients(kind):
    model = make(kind, dropout=0.5)
    batch = batch_of(model)
    for _ in model.stream(prompt_of(model), 2):
        assert not torch.equal(model(**batch).logits, model(**batch).logits)
        model(**batch).loss.backward()


# Errors name what was wrong, the value and the remedy


@both
@pytest.mark.parametrize(
    ("value", "message"),
    [
        (VOCAB, r"input_ids\[1, 0\] is 12, and 1 ids in all .*rows 0\.\.11\).*another tokenizer"),
        (-1, r"input_ids\[1, 0\] is -1"),
        (IGNORE_INDEX, r"input_ids\[1, 0\] is -100.*-100 is IGNORE_INDEX, a label for the loss: put pad_id"),
    ],
)
def test_an_id_without_an_embedding(kind, value, message):
    model = make(kind)
    name = "input_ids" if kind is LanguageModel else "decoder_input_ids"
    batch = batch_of(model)
    batch[name][1, 0] = value
    with pytest.raises(
        IndexError, match=f"index out of range: {message}" if name == "input_ids" else f"{name[:8]}{message}"
    ):
        model(**batch)


@both
def test_an_input_longer_than_the_context(kind):
    model = make(kind)
    batch = batch_of(model, [[5] * 16])
    with pytest.raises(ValueError, match="input_ids is 17 tokens long; the context is max_seq_len = 16. Cut the input"):
        model(**batch)


@both
@pytest.mark.parametrize("shape", [(3,), (1, 2, 3), (0, 3), (2, 0)], ids=str)
@pytest.mark.parametrize("method", ["__call__", "generate", "stream"])
def test_ids_of_another_shape(kind, shape, method):
    model, ids = make(kind), torch.full(shape, 5)
    arguments = (ids, ids) if kind is Transformer and method == "__call__" else (ids,)
    with pytest.raises(
        ValueError, match=r"input_ids has shape .*; it must be \(B, T\) with at least one row and token"
    ):
        getattr(model, method)(*arguments)


@pytest.mark.parametrize(("sources", "targets"), [(1, 3), (2, 3)])
def test_sources_and_targets_of_unequal_number(sources, targets):
    model = make(Transformer)
    with pytest.raises(ValueError, match=f"input_ids has {sources} rows and decoder_input_ids {targets}"):
        model(torch.full((sources, 4), 5), torch.full((targets, 4), 5))


@both
def test_labels_that_do_not_fit(kind):
    model = make(kind)
    batch = batch_of(model)
    batch["labels"] = batch["labels"][:, 1:]
    with pytest.raises(ValueError, match=r"logits \(4, 5, 12\) do not fit labels \(4, 4\)"):
        model(**batch)


@both
@pytest.mark.parametrize("method", ["generate", "stream"])
@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens is 0; it must be at least 1"),
        ({"max_new_tokens": 99}, "max_new_tokens = 99 exceed the context, max_seq_len = 16; ask for at most 1[35]"),
        ({"temperature": -1.0}, r"temperature is -1.0; it must be 0 \(greedy\) or more"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"temperature": 1.0, "top_k": 0}, "top_k is 0; it must be at least 1"),
        ({"temperature": 1.0, "top_p": 0.0}, r"top_p is 0.0; it is a probability in \(0, 1\]"),
        ({"temperature": 1.0, "top_p": 1.1}, "top_p is 1.1"),
        ({"top_k": 3}, "give a temperature above 0"),
    ],
    ids=str,
)
def test_generation_asked_for_the_impossible(kind, method, how, message):
    """At once: a stream does not wait for its first token to refuse."""
    model = make(kind)
    modes = mixed(model)
    with pytest.raises(ValueError, match=message):
        getattr(model, method)(prompt_of(model), **how)
    assert modes_of(model) == modes


@both
@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"num_beams": 0}, "num_beams is 0; it must be at least 1"),
        ({"num_beams": 2, "temperature": 1.0}, "beam search does not sample: temperature is 1.0"),
    ],
    ids=str,
)
def test_beams_asked_for_the_impossible(kind, how, message):
    model = make(kind)
    with pytest.raises(ValueError, match=message):
        model.generate(prompt_of(model), **how)


@pytest.mark.parametrize("method", ["generate", "stream"])
@pytest.mark.parametrize("prompt", [[[5, 6], [7, PAD]], [[5, 6], [PAD, PAD]]], ids=["padded right", "all padding"])
def test_prompts_must_end_in_a_token(method, prompt):
    with pytest.raises(ValueError, match="prompt 1 ends in padding .pad_id 0.*pad prompts at the left"):
        getattr(make(LanguageModel), method)(torch.tensor(prompt))


@pytest.mark.parametrize("method", ["generate", "stream"])
def test_a_prompt_that_fills_the_context(method):
    with pytest.raises(ValueError, match="the prompt has 16 tokens and the context holds max_seq_len = 16; shorten it"):
        getattr(make(LanguageModel), method)(torch.full((1, 16), 5))


def test_a_source_longer_than_the_context():
    with pytest.raises(ValueError, match="input_ids is 17 tokens long"):
        make(Transformer).generate(torch.full((1, 17), 5))


def test_a_transformer_needs_its_special_ids():
    with pytest.raises(ValueError, match="pad_id is None"):
        make(Transformer, pad_id=None)
    for missing in ({"bos_id": None}, {"eos_id": None}):
        with pytest.raises(ValueError, match="generate needs bos_id and eos_id in the config"):
            make(Transformer, **missing).generate(torch.tensor([[5]]))


@pytest.mark.parametrize("positions", ["learned", "sinusoidal"])
def test_left_padding_moves_no_position(positions):
    torch.manual_seed(0)
    embed = Embedder(ModelConfig(VOCAB, 8, 2, 2, 16, 16, positions=positions, **IDS)).eval()
    alone, padded = embed(torch.tensor([[5, 6, 7]])), embed(torch.tensor([[PAD, PAD, 5, 6, 7]]))
    assert torch.equal(alone, padded[:, 2:])
    assert not torch.equal(embed(torch.tensor([[5, 5]]))[0, 0], embed(torch.tensor([[5, 5]]))[0, 1])


def test_sinusoids_by_their_formula():
    table = Embedder(ModelConfig(VOCAB, 8, 2, 2, 16, 16, positions="sinusoidal")).table
    for position, column in itertools.product(range(16), range(8)):
        angle = position / 10000 ** (2 * (column // 2) / 8)
        expected = math.cos(angle) if column % 2 else math.sin(angle)
        assert table[position, column].item() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(("positions", "scale"), [("learned", 1.0), ("sinusoidal", math.sqrt(8))])
def test_an_embedding_is_token_plus_position(positions, scale):
    embed = Embedder(ModelConfig(VOCAB, 8, 2, 2, 16, 16, positions=positions)).eval()
    table = embed.position.weight if positions == "learned" else embed.table
    ids = torch.tensor([[5, 6, 7]])
    torch.testing.assert_close(embed(ids), scale * embed.token.weight[ids] + table[:3])
