"""Graders of lesson 08: a Subject for a model that nothing can be inferred of, and a relation written by hand."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..diagnosis import diagnose
from ..subject import Subject
from . import grader

PAD, VOCAB = 0, 40


class Storyteller(nn.Module):
    """A causal model with names of its own: what it is fed, what it gives, and which of its masks means what."""

    def __init__(self, diagonal: int = 1, blocked: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.diagonal, self.blocked = diagonal, blocked
        self.words, self.places = nn.Embedding(VOCAB, 16), nn.Embedding(32, 16)
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.1, batch_first=True)
        self.scores = nn.Linear(16, VOCAB)

    def forward(self, story: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """story (B, T) of ids, hidden (B, T) True at padding -> features (B, T, 16), scores (B, T, 40)."""
        future = torch.ones(story.size(1), story.size(1), dtype=torch.bool).triu(self.diagonal)
        x = self.words(story) + self.places(torch.arange(story.size(1)))
        features = self.layer(x, src_mask=future, src_key_padding_mask=hidden if self.blocked else None)
        return features, self.scores(features)


STORIES = {"story": torch.tensor([[5, 6, 7, 8, 9], [PAD, PAD, 10, 11, 12]])}
STORIES["hidden"] = STORIES["story"] == PAD


@grader("08a", title="the checks can be put to the model, and find what is wrong with its broken twins")
def wiring(make: Callable[[nn.Module, dict[str, Tensor]], Subject]) -> None:
    """The learner's Subject, of the healthy model and of two broken ones."""
    subject = make(Storyteller(), STORIES)
    kind = type(subject).__name__
    assert isinstance(subject, Subject), f"your function returned a {kind}; return lab.Subject(model, batch, ...)"
    logits = subject.logits(subject.model, STORIES)
    assert logits.size(-1) == VOCAB, (
        f"your logits have {logits.size(-1)} columns for {VOCAB} words: which of the two outputs are they?"
    )
    asked = ["attends-to-pads", "sees-the-future"]
    report = diagnose(subject, only=asked)
    for name in asked:
        assert name not in report.skipped, f"{name} is skipped: {report.skipped[name]}"
        assert not report.by_check(name), f"{name} fires on the healthy model: does your wiring tell it the truth?"
    for name, broken in zip(asked, (Storyteller(blocked=False), Storyteller(diagonal=2)), strict=True):
        found = diagnose(make(broken, STORIES), only=asked).by_check(name)
        assert found, f"{name} does not fire on a model that has this fault: use the model that you are given"


def answers(model: nn.Module, ids: Tensor) -> Tensor:
    return model(ids, torch.zeros_like(ids, dtype=torch.bool))[1]


class Peeking(nn.Module):
    """Healthy, but for one position that is told a little of the last token."""

    def __init__(self, position: int) -> None:
        super().__init__()
        self.inner, self.position = Storyteller(), position

    def forward(self, story: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        features, scores = self.inner(story, hidden)
        at = torch.zeros_like(scores)
        at[:, self.position] = 1e-3 * self.inner.words(story[:, -1]).sum(-1, keepdim=True)
        return features, scores + at


@grader("08b", title="your relation passes on the healthy model and fails on each that sees the future")
def relation(sees_the_future: Callable[[nn.Module, Tensor], bool]) -> None:
    """The learner's check, on models that see everything, one token, and one position only; in train and in eval."""
    ids = torch.tensor([[5, 6, 7, 8, 9, 10], [11, 12, 13, 14, 15, 16]])
    told = sees_the_future(Storyteller().eval(), ids.clone())
    assert told in (True, False), f"your check returned {told!r}; return True or False"
    assert not told, "your check fires on the healthy model: positions before the changed token must stay as they are"
    assert not sees_the_future(Storyteller(), ids.clone()), (
        "in train mode your check fires on the healthy model: two passes differ by dropout. Put it in eval first"
    )
    model = Storyteller()
    sees_the_future(model, ids)
    assert model.training, "your check leaves the model in eval: lesson 03. Give the mode back (lab.evaluating)"
    assert sees_the_future(Storyteller(diagonal=9).eval(), ids.clone()), (
        "a model without any causal mask passes your check"
    )
    assert sees_the_future(Storyteller(diagonal=2).eval(), ids.clone()), (
        "a mask that is one late passes your check: change each token in turn, and look at the position before it"
    )
    for position in (0, 4):
        assert sees_the_future(Peeking(position).eval(), ids.clone()), (
            f"position {position} is told of the last token, by a thousandth of a word, and your check passes: compare "
            f"every earlier position, with a small tolerance"
        )
