"""Decoding: with and without a cache, alone and in a batch, against exhaustive search and Hugging Face."""

import itertools

import pytest
import torch
from torch import Tensor, nn

from lab import decoding
from lab.config import ModelConfig
from lab.decoding import Sampler, Step
from lab.labels import pad
from lab.language_model import LanguageModel
from lab.transformer import Transformer

PAD, BOS, EOS, VOCAB = 0, 1, 2, 12
PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 3], [4, 4]]

both = pytest.mark.parametrize("kind", [LanguageModel, Transformer])
norms = pytest.mark.parametrize("norm", ["pre", "post"])


def make(kind, seed=0, **changes):
    torch.manual_seed(seed)
    config = ModelConfig(VOCAB, 8, 2, 2, 16, 16, tie_head=False, pad_id=PAD, bos_id=BOS, eos_id=EOS)
    model = kind(config.replace(**changes))
    for parameter in model.parameters():  # the small initial weights would answer every prompt alike
        if parameter.dim() == 2:
            nn.init.normal_(parameter, std=0.7)
    return model


def prompts_of(kind) -> Tensor:
    return pad(PROMPTS, PAD, "left" if kind is LanguageModel else "right")


HOW = {
    "greedy": dict,
    "sampling": lambda: {"temperature": 1.0, "generator": torch.Generator().manual_seed(5)},
    "top-k, top-p": lambda: {
        "temperature": 1.5,
        "top_k": 6,
        "top_p": 0.9,
        "generator": torch.Generator().manual_seed(5),
    },
    "beam": lambda: {"num_beams": 3},
}


@both
@norms
@pytest.mark.parametrize("how", HOW.values(), ids=HOW)
@pytest.mark.parametrize("positions", ["learned", "sinusoidal"])
def test_the_cache_changes_no_token(kind, norm, how, positions):
    rows = []
    for seed in range(3):
        model = make(kind, seed, norm=norm, positions=positions)
        cached, uncached = (model.generate(prompts_of(kind), 8, use_cache=use, **how()) for use in (True, False))
        assert torch.equal(cached, uncached)
        rows += [tuple(row[-8:]) for row in cached.tolist()]
    assert len(set(rows)) > 3, "all rows alike would prove little"


@both
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("how", ["greedy", "beam"])
def test_a_row_in_a_batch_is_what_it_is_alone(kind, seed, how):
    model, how = make(kind, seed), HOW[how]()
    prompts = prompts_of(kind)
    together = model.generate(prompts, 8, **how)
    skip = prompts.size(1) if kind is LanguageModel else 1
    for row, prompt in zip(together, PROMPTS, strict=True):
        alone = model.generate(torch.tensor([prompt]), 8, **how)[0, len(prompt) if kind is LanguageModel else 1 :]
        new = row[skip:]
        assert torch.equal(new[: len(alone)], alone)
        assert (new[len(alone) :] == PAD).all()


@both
@pytest.mark.parametrize("num_beams", [1, 3])
def test_after_its_eos_a_row_is_padding(kind, num_beams):
    ended = set()
    for seed in range(6):
        for row in make(kind, seed).generate(prompts_of(kind), 10, num_beams=num_beams).tolist():
            new = row[len(PROMPTS[2]) :] if kind is LanguageModel else row[1:]
            ended.add(EOS in new)
            if EOS in new:
                assert set(new[new.index(EOS) + 1 :]) <= {PAD}
    assert ended == {True, False}


# A scripted model: row b says script[b], whatever it is fed


def scripted(script: list[list[int]]) -> Step:
    table = torch.tensor(script)

    def forward(ids: Tensor, cache: None) -> Tensor:
        said = table[:, ids.size(1) - 1]
        return nn.functional.one_hot(said, VOCAB)[:, None].float().expand(-1, ids.size(1), -1)

    return Step(forward)


START = torch.full((3, 1), BOS)


def test_each_row_stops_at_its_own_eos():
    step = scripted([[5, EOS, 7, 7, 7], [EOS, 6, 6, 6, 6], [8, 8, 8, EOS, 9]])
    out = decoding.generate(step, START, 5, choose=Sampler(), eos_id=EOS, pad_id=PAD)
    assert out[:, 1:].tolist() == [[5, EOS, 0, 0], [EOS, 0, 0, 0], [8, 8, 8, EOS]], "and all when the last has ended"


def test_without_an_eos_id_nothing_stops_early():
    step = scripted([[5, EOS, 7]] * 3)
    out = decoding.generate(step, START, 3, choose=Sampler(), eos_id=None, pad_id=PAD)
    assert out[:, 1:].tolist() == [[5, EOS, 7]] * 3


def test_the_limit_ends_rows_that_never_stop():
    out = decoding.generate(scripted([[5] * 9] * 3), START, 4, choose=Sampler(), eos_id=EOS, pad_id=PAD)
    assert out[:, 1:].tolist() == [[5] * 4] * 3


# Beam search


class Markov:
    """A fake model of 4 tokens: the next one depends on how many there are, and on the last two."""

    eos = 3

    def __init__(self, seed: int) -> None:
        self.table = 2 * torch.randn(8, 4, 4, 4, generator=torch.Generator().manual_seed(seed))

    def step(self) -> Step:
        return Step(lambda ids, cache: self.table[ids.size(1), ids[:, -2], ids[:, -1]][:, None])

    def score(self, prompt: list[int], new: tuple[int, ...]) -> float:
        ids, total = list(prompt), 0.0
        for token in new:
            total += self.table[len(ids), ids[-2], ids[-1]].log_softmax(-1)[token].item()
            ids.append(token)
        return total

    def hypotheses(self, limit: int):
        """All ways to end with EOS, or to go on until the limit."""
        for length in range(1, limit + 1):
            for new in itertools.product(range(4), repeat=length):
                if self.eos not in new[:-1] and (new[-1] == self.eos or length == limit):
                    yield new


PAIRS = torch.tensor([[0, 1], [2, 0]])


@pytest.mark.parametrize("length_penalty", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("seed", range(4))
def test_wide_beams_find_what_exhaustive_search_finds(seed, length_penalty):
    model, limit = Markov(seed), 4
    found = decoding.beam_search(model.step(), PAIRS, limit, 200, model.eos, pad_id=0, length_penalty=length_penalty)
    for prompt, row in zip(PAIRS.tolist(), found.tolist(), strict=True):
        best = max(model.hypotheses(limit), key=lambda new: model.score(prompt, new) / len(new) ** length_penalty)
        assert tuple(row[2 : 2 + len(best)]) == best
        assert set(row[2 + len(best) :]) <= {0}


@pytest.mark.parametrize("seed", range(4))
def test_one_beam_is_greedy(seed):
    model = Markov(seed)
    greedy = decoding.generate(model.step(), PAIRS, 5, choose=Sampler(), eos_id=model.eos, pad_id=0)
    assert torch.equal(decoding.beam_search(model.step(), PAIRS, 5, 1, model.eos, pad_id=0), greedy)


def test_beams_find_more_likely_sequences_than_greedy():
    def total(rows):
        return sum(model.score(row[:2], tuple(row[2:])) for row in rows.tolist())

    gains = []
    for seed in range(8):
        model = Markov(seed)
        greedy = decoding.generate(model.step(), PAIRS, 5, choose=Sampler(), eos_id=None, pad_id=0)
        gains.append(total(decoding.beam_search(model.step(), PAIRS, 5, 4, None, pad_id=0)) - total(greedy))
    assert min(gains) > -1e-5 and max(gains) > 0.1


def until(eos: int, ids: list[int]) -> list[int]:
    return ids[: ids.index(eos) + 1] if eos in ids else ids


@pytest.mark.parametrize("num_beams", [2, 3, 4])
def test_beam_search_equals_hugging_face(num_beams):
    from test_parity import gpt2

    def never_pad(module, inputs, logits):  # theirs would attend to a pad of its own making, ours not
        return logits.index_fill(-1, torch.tensor(PAD), -1e4)

    prompts, ended = pad(PROMPTS, PAD, "left"), []
    for seed in range(4):
        ours, theirs, _ = gpt2(seed)
        ours.head.register_forward_hook(never_pad)
        theirs.lm_head.register_forward_hook(never_pad)
        for eos in range(2, 20, 2):  # so that some rows end early, some late and some never
            expected = theirs.generate(
                input_ids=prompts,
                attention_mask=(prompts != PAD).long(),
                max_new_tokens=6,
                num_beams=num_beams,
                do_sample=False,
                early_stopping=False,
                length_penalty=1.0,
                eos_token_id=eos,
                pad_token_id=PAD,
                return_dict_in_generate=True,
                output_scores=True,
            )
            ours.config = ours.config.replace(eos_id=eos)
            found = ours.generate(prompts, 6, num_beams=num_beams)
            for prompt, row, other, score in zip(
                PROMPTS, found, expected.sequences, expected.sequences_scores, strict=True
            ):
                kept, other = (until(eos, ids[prompts.size(1) :].tolist()) for ids in (row, other))
                assert kept == other  # after EOS theirs has EOS where its pad id is 0
                ended.append(eos in kept)
                log_p = ours(torch.tensor([prompt + kept[:-1]])).logits[0, -len(kept) :].log_softmax(-1)
                mean = log_p[range(len(kept)), kept].mean()  # length_penalty 1: per generated token, EOS included
                torch.testing.assert_close(mean, score, atol=1e-5, rtol=0)
    assert set(ended) == {True, False}


# Sampling


def logits_of(rows: int = 50) -> Tensor:
    return 2 * torch.randn(rows, VOCAB, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("top_k", [None, 1, 3, VOCAB, VOCAB + 5])
@pytest.mark.parametrize("top_p", [None, 1e-6, 0.3, 0.9, 1.0])
def test_filter_equals_hugging_face(temperature, top_k, top_p):
    from transformers.generation.logits_process import (
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    expected = TemperatureLogitsWarper(temperature)(None, logits_of())
    if top_k is not None:
        expected = TopKLogitsWarper(top_k)(None, expected)
    if top_p is not None:
        expected = TopPLogitsWarper(top_p)(None, expected)
    torch.testing.assert_close(Sampler(temperature, top_k, top_p).filter(logits_of()), expected)


def test_temperature_zero_and_one_token_are_greedy():
    greedy = logits_of().argmax(-1)
    assert torch.equal(Sampler()(logits_of()), greedy)
    assert torch.equal(Sampler(temperature=3.0, top_k=1)(logits_of()), greedy)
    assert torch.equal(Sampler(temperature=3.0, top_p=1e-6)(logits_of()), greedy)


@pytest.mark.parametrize("how", [{}, {"top_k": 4}, {"top_p": 0.8}], ids=str)
def test_samples_are_as_frequent_as_probable(how):
    sampler = Sampler(temperature=0.7, generator=torch.Generator().manual_seed(1), **how)
    logits, draws = logits_of(1), 20_000
    probabilities = sampler.filter(logits).softmax(-1)[0]
    counts = sampler(logits.expand(draws, -1)).bincount(minlength=VOCAB)
    possible = probabilities > 0
    assert not counts[~possible].any()
    expected = draws * probabilities[possible]
    chi_square = ((counts[possible] - expected) ** 2 / expected).sum()
    assert chi_square < 40, "with at most 11 degrees of freedom, one run in 30,000 is above"


@both
def test_a_generator_makes_sampling_repeatable_and_leaves_the_global_state(kind):
    model, state = make(kind), torch.get_rng_state()

    def sample(seed):
        return model.generate(prompts_of(kind), 8, temperature=2.0, generator=torch.Generator().manual_seed(seed))

    assert torch.equal(sample(1), sample(1))
    assert sample(1).tolist() != sample(2).tolist()
    assert torch.equal(torch.get_rng_state(), state)


@both
def test_as_many_tokens_as_the_context_holds(kind):
    model = make(kind, eos_id=EOS)
    model.head = nn.Linear(8, VOCAB)  # never says EOS
    model.head.weight.data[EOS], model.head.bias.data[EOS] = 0.0, -1e4
    assert model.generate(prompts_of(kind)).shape == (4, 16)


def test_a_language_model_without_pad_or_eos_generates():
    model = make(LanguageModel, pad_id=None, eos_id=None, bos_id=None)
    prompt = torch.tensor([[PAD, EOS, 5]])  # plain tokens here
    cached, uncached = (model.generate(prompt, 6, use_cache=use) for use in (True, False))
    assert torch.equal(cached, uncached) and cached.shape == (1, 9)


def test_without_a_pad_id_a_row_that_has_ended_is_filled_with_eos():
    ended = set()
    for seed in range(8):
        for row in make(LanguageModel, seed, pad_id=None).generate(torch.tensor([[5, 6], [7, 8]]), 8)[:, 2:].tolist():
            ended.add(EOS in row)
            if EOS in row:
                assert set(row[row.index(EOS) :]) == {EOS}
    assert ended == {True, False}


# Where the weights lie in memory


def places(model) -> list:
    return [(p.data_ptr(), p.stride(), p._version) for p in model.parameters()]


def wide_inside(model, prompts: Tensor, new: int, **how) -> bool:
    """Generate; was the head column by column meanwhile?"""
    strides = []
    hook = model.head.register_forward_pre_hook(lambda head, inputs: strides.append(head.weight.stride()))
    model.generate(prompts, new, **how)
    hook.remove()
    assert len(set(strides)) == 1
    return strides[0] == (1, VOCAB)


@both
@pytest.mark.parametrize("tie", [True, False])
def test_long_generation_moves_wide_weights_and_puts_them_back(kind, tie):
    model = make(kind, max_seq_len=64, tie_head=tie)
    before, values = places(model), [p.clone() for p in model.parameters()]
    assert wide_inside(model, prompts_of(kind)[:3], 40)
    assert not wide_inside(model, prompts_of(kind)[:3], 8), "too few tokens to be worth it"
    assert not wide_inside(model, prompts_of(kind), 40), "four rows gain nothing"
    assert not wide_inside(model, prompts_of(kind)[:2], 40, num_beams=2)
    assert places(model) == before
    assert all(torch.equal(p, value) for p, value in zip(model.parameters(), values, strict=True))


@both
def test_a_failure_puts_the_weights_back(kind):
    model = make(kind, max_seq_len=64)
    before = places(model)

    def fail(module, inputs):
        raise OSError("the accelerator is gone")

    model.head.register_forward_pre_hook(fail)
    with pytest.raises(OSError, match="the accelerator is gone"):
        model.generate(prompts_of(kind)[:1], 40)
    assert places(model) == before


@both
def test_a_backward_pass_may_wait_until_after_generation(kind):
    model, ids = make(kind, max_seq_len=64, dropout=0.0), torch.tensor([[5, 6, 7, 8]])
    inputs = {"input_ids": ids, "labels": ids, **({"decoder_input_ids": ids} if kind is Transformer else {})}
    gradients = []
    for generate in (False, True):
        model.zero_grad()
        loss = model(**inputs).loss
        if generate:
            model.generate(ids, 40)
        loss.backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    assert all(torch.equal(*pair) for pair in zip(*gradients, strict=True))


@both
def test_a_caller_of_stream_finds_the_weights_where_they_were(kind):
    model = make(kind, max_seq_len=64)
    before = places(model)
    for _ in model.stream(prompts_of(kind)[:1], 40):
        assert places(model) == before


@both
@pytest.mark.parametrize("rows", [1, 3, 4])
def test_the_cache_changes_no_token_of_a_long_text(kind, rows):
    model = make(kind, max_seq_len=64, eos_id=None if kind is LanguageModel else EOS)
    cached, uncached = (model.generate(prompts_of(kind)[-rows:], 40, use_cache=use) for use in (True, False))
    assert torch.equal(cached, uncached)
