"""The checks on generation, on models that nobody here wrote: silent on the healthy, loud on each broken one."""

import pytest
import torch
from foreign import EOS, PAD, NanoGPT, hugging_face, pairs_batch
from torch import nn

import lab
from lab.subject import Subject

LEFT = torch.tensor([[5, 6, 7, 8, 9], [PAD, PAD, 10, 11, 12]])
RIGHT = torch.tensor([[5, 6, 7, 8, 9], [10, 11, 12, PAD, PAD]])
CHECKS = ["cache-equals-full", "its-own-teacher", "batched-equals-alone", "stops-at-eos", "past-the-context"]


def masked(ids):
    return {"input_ids": ids, "attention_mask": (ids != PAD).long()}


def asked(subject, *names):
    report = lab.diagnose(subject, only=names)
    assert not report.errors, report.errors
    return report


def nanogpt(model=NanoGPT, **given):
    torch.manual_seed(0)
    return Subject(model(), (RIGHT[:1], RIGHT[:1]), vocab_size=60, **given)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("ids", [LEFT, RIGHT], ids=["left", "right"])
def test_silent_on_language_models_of_hugging_face(kind, ids):
    report = asked(Subject(hugging_face(kind), masked(ids), eos_id=EOS, pad_id=PAD), *CHECKS)
    assert sorted(report.passed) == sorted(CHECKS), report.text()
    assert not report.findings and not report.notes


@pytest.mark.parametrize("kind", ["bart", "t5"])
def test_silent_on_translators_of_hugging_face(kind):
    batch = pairs_batch()
    subject = Subject(hugging_face(kind), {**masked(batch["src"]), "labels": batch["labels"]})
    report = asked(subject, *CHECKS)
    assert set(report.passed) >= set(CHECKS[:4]) and not report.findings and not report.notes, report.text()
    assert "context" in report.skipped["past-the-context"]


def test_its_own_generation_config_hides_nothing():
    """Sampling, beams, a shortest length and forbidden tokens are the user's; the checks ask for plain greedy."""
    model = hugging_face("gpt2")
    model.generation_config.update(do_sample=True, temperature=5.0, min_length=30, repetition_penalty=3.0, num_beams=2)
    kept = model.generation_config
    report = asked(Subject(model, masked(LEFT), eos_id=EOS, pad_id=PAD), *CHECKS[1:4])
    assert not report.findings and len(report.passed) == 3, report.text()
    assert model.generation_config is kept and kept.do_sample


def restarting():
    """Llama that counts positions in the tokens it is fed, as wrappers that pass position_ids do."""
    import transformers as hf

    class Restarts(hf.LlamaForCausalLM):
        def forward(self, input_ids=None, position_ids=None, **how):
            return super().forward(input_ids=input_ids, position_ids=torch.arange(input_ids.size(1))[None], **how)

    torch.manual_seed(0)
    return Restarts(hugging_face("llama").config)


def test_a_cache_whose_positions_restart():
    report = asked(Subject(restarting(), masked(RIGHT)), "cache-equals-full", "its-own-teacher")
    (cache,) = report.by_check("cache-equals-full")
    assert cache.severity == "P1" and "from position 2 on" in cache.message  # the prompt of two is right
    assert all(finding.follows == "cache-equals-full" for finding in report.by_check("its-own-teacher"))


def test_a_cache_that_forgets_the_pads():
    """The user's own incremental decoding leaves the mask out: without padding nobody sees it."""

    def incremental(model, batch):
        past, steps = None, []
        for t in range(batch["input_ids"].size(1)):
            out = model(batch["input_ids"][:, t : t + 1], past_key_values=past, use_cache=True)
            past = out.past_key_values
            steps.append(out.logits)
        return torch.cat(steps, 1)

    model = hugging_face("llama")
    for ids, severity in ((LEFT, "P1"), (RIGHT, "P2")):
        report = asked(Subject(model, masked(ids), incremental=incremental), "cache-equals-full")
        assert [finding.severity for finding in report.findings] == [severity]
        assert "padded at the left" in report.findings[0].message


class OneBefore(NanoGPT):
    def generate(self, idx, max_new_tokens):
        for _ in range(max_new_tokens):
            logits = self(idx[:, :-1])[0] if idx.size(1) > 1 else self(idx)[0]
            idx = torch.cat([idx, logits[:, -1].argmax(-1, keepdim=True)], 1)
        return idx


class FeedsTwice(NanoGPT):
    def generate(self, idx, max_new_tokens):
        fed = idx
        for _ in range(max_new_tokens):
            token = self(fed)[0][:, -1].argmax(-1, keepdim=True)
            idx, fed = torch.cat([idx, token], 1), torch.cat([fed, token, token], 1)
        return idx


class Samples(NanoGPT):
    def generate(self, idx, max_new_tokens):
        for _ in range(max_new_tokens):
            idx = torch.cat([idx, torch.multinomial(self(idx)[0][:, -1].softmax(-1), 1)], 1)
        return idx


def test_a_healthy_generate_is_its_own_teacher():
    assert asked(nanogpt(), "its-own-teacher").passed == ["its-own-teacher"]


def test_logits_of_the_position_before():
    (finding,) = asked(nanogpt(OneBefore), "its-own-teacher").findings
    assert "one position earlier" in finding.message and finding.where.symbol == "OneBefore.generate"


def test_a_token_that_is_fed_twice():
    (finding,) = asked(nanogpt(FeedsTwice), "its-own-teacher").findings
    assert "from the second on" in finding.message


def test_sampling_is_not_taken_for_a_bug():
    given = {"generate": lambda model, batch: model.generate(batch[0], 6)}
    report = asked(nanogpt(Samples, **given), "its-own-teacher")
    assert "greedy" in report.skipped["its-own-teacher"]
    assert "may sample" in asked(nanogpt(Samples), "its-own-teacher").skipped["its-own-teacher"]


def test_ties_are_no_difference():
    """Two tokens with one row in the head: which of them is taken, is chance."""

    class Later(NanoGPT):
        def generate(self, idx, max_new_tokens):
            for _ in range(max_new_tokens):
                logits = self(idx)[0][:, -1]
                best = logits == logits.amax(-1, keepdim=True)
                idx = torch.cat([idx, best.long().cumsum(-1).argmax(-1, keepdim=True)], 1)
            return idx

    subject = nanogpt(Later)
    with torch.no_grad():
        subject.model.head.weight[30:] = subject.model.head.weight[:30]
    assert asked(subject, "its-own-teacher").passed


def test_generate_without_the_mask_of_its_prompts():
    def unmasked(model, batch):
        ids = batch["input_ids"]
        how = {"attention_mask": torch.ones_like(ids), "pad_token_id": PAD, "max_new_tokens": 6}
        return model.generate(ids, do_sample=False, **how)

    model = hugging_face("llama")
    for ids, severity in ((LEFT, "P2"), (RIGHT, "P3")):
        report = asked(Subject(model, masked(ids), generate=unmasked, pad_id=PAD), "batched-equals-alone")
        assert [finding.severity for finding in report.findings] == [severity]


def test_a_model_without_any_mask_gets_a_note():
    subject = nanogpt(pad_id=PAD)
    report = asked(subject, "batched-equals-alone")
    assert not report.findings and "not made for such padding" in report.notes[0].message


class Stops(NanoGPT):
    """Fills up rows that are done, and stops when all are; broken in the way that is named."""

    broken = ""

    def generate(self, idx, max_new_tokens):
        done = torch.zeros(len(idx), dtype=torch.bool)
        for _ in range(max_new_tokens):
            token = self(idx)[0][:, -1].argmax(-1).masked_fill(done & (self.broken != "goes on"), PAD)
            if self.broken == "fills all" and done.any():
                token = torch.full_like(token, PAD)
            idx = torch.cat([idx, token[:, None]], 1)
            done |= token == EOS
            if done.any() if self.broken == "ends all" else done.all():
                break
        return idx


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ("", None),
        ("goes on", "goes on after EOS"),
        ("ends all", "ends all rows"),
        ("fills all", "changes what the other rows"),
    ],
)
def test_stopping(broken, message):
    model = type("Stops", (Stops,), {"broken": broken})
    report = asked(nanogpt(model, pad_id=PAD, eos_id=EOS), "stops-at-eos")
    assert [message in finding.message for finding in report.findings] == ([] if message is None else [True])
    assert bool(report.passed) is (message is None), report.text()


def test_stopping_is_asked_only_where_the_end_is_known():
    assert "eos_id=" in asked(nanogpt(), "stops-at-eos").skipped["stops-at-eos"]


class Window(NanoGPT):
    """A context of 40, as the table of positions has; what generate() feeds beyond it is named."""

    feeds = "last"

    def generate(self, idx, max_new_tokens):
        for _ in range(max_new_tokens):
            if self.feeds == "none" and idx.size(1) > 40:
                raise ValueError("the text is longer than the context")
            fed = {"last": idx[:, -40:], "first": idx[:, :40]}.get(self.feeds, idx)
            idx = torch.cat([idx, self(fed)[0][:, -1].argmax(-1, keepdim=True)], 1)
        return idx


@pytest.mark.parametrize(
    ("feeds", "message"),
    [("last", None), ("none", None), ("first", "silently writes tokens"), ("all", "names no length")],
)
def test_beyond_the_context(feeds, message):
    model = type("Window", (Window,), {"feeds": feeds})
    report = asked(nanogpt(model, max_seq_len=40), "past-the-context")
    assert [message in finding.message for finding in report.findings] == ([] if message is None else [True])
    assert bool(report.passed) is (message is None), report.text()


def test_positions_that_wrap_round():
    class Wraps(NanoGPT):
        def forward(self, idx, targets=None):
            positions = torch.arange(idx.size(1)) % 40
            mask = torch.ones(idx.size(1), idx.size(1), dtype=torch.bool).triu(1)
            x = self.layers(self.wte(idx) + self.wpe(positions), mask=mask)
            return (self.head(x) if targets is not None else self.head(x[:, [-1]])), None

    (finding,) = asked(nanogpt(Wraps, max_seq_len=40), "past-the-context").findings
    assert "used twice" in finding.message and finding.where.symbol.endswith("Wraps.forward")


def test_skips_say_what_to_give():
    report = asked(nanogpt(), *CHECKS)
    assert "incremental=lambda" in report.skipped["cache-equals-full"]
    assert "max_seq_len=" in report.skipped["past-the-context"]
    assert "pad_id=" in report.skipped["batched-equals-alone"]

    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(20, 20)

        def forward(self, input_ids):
            return self.table(input_ids)

    report = asked(Subject(Plain(), {"input_ids": RIGHT}), *CHECKS)
    assert not report.passed and all("generate=" in report.skipped[name] for name in CHECKS[1:3])


def test_a_generate_that_raises_is_a_skip():
    report = asked(nanogpt(generate=lambda model, batch: 1 / 0, pad_id=PAD, eos_id=EOS, max_seq_len=40), *CHECKS[1:])
    assert all("ZeroDivisionError" in report.skipped[name] for name in CHECKS[1:4]) and not report.findings
