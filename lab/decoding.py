"""Greedy decoding, sampling and beam search over any step function: batched, each row stops at its EOS."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .attention import KVCache


@dataclass
class Step:
    """Feeds a decoder token by token.

    forward: (ids (B, t), cache) -> logits (B, t, V), or those of the last position alone, (B, 1, V). With a cache it is
    fed the new ids alone, without one all so far; the tokens that come out are the same.
    """

    forward: Callable[[Tensor, KVCache | None], Tensor]
    cache: KVCache | None = None
    ids: Tensor | None = None

    def __call__(self, new: Tensor) -> Tensor:
        """New ids (B, t) -> the logits of the next token (B, V)."""
        self.ids = new if self.ids is None else torch.cat([self.ids, new], dim=1)
        return self.forward(self.ids if self.cache is None else new, self.cache)[:, -1]

    def reorder(self, rows: Tensor) -> None:
        """Row b continues what row rows[b] was."""
        self.ids = self.ids[rows]
        if self.cache is not None:
            self.cache.reorder(rows)


@dataclass(frozen=True)
class Sampler:
    """How the next token is chosen from its logits.

    temperature 0 is greedy. top_k keeps the k most likely tokens; top_p the fewest that hold that much probability
    (Holtzman et al. 2020, 3.1). A generator leaves the global random state alone.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    generator: torch.Generator | None = None

    def __post_init__(self) -> None:
        if not self.temperature >= 0:
            raise ValueError(f"temperature is {self.temperature}; it must be 0 (greedy) or more.")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k is {self.top_k}; it must be at least 1.")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}; it is a probability in (0, 1].")
        if not self.temperature and (self.top_k or self.top_p):
            raise ValueError("top_k and top_p choose among samples; give a temperature above 0 with them.")

    def filter(self, logits: Tensor) -> Tensor:
        """Scaled logits (B, V), -inf where top_k or top_p leave a token out."""
        logits = logits.float() / self.temperature
        if self.top_k is not None and self.top_k < logits.size(-1):
            kth = logits.topk(self.top_k).values[:, -1:]
            logits = logits.masked_fill(logits < kth, -torch.inf)
        if self.top_p is not None and self.top_p < 1:
            ordered, order = logits.sort(dim=-1, descending=True)
            before = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)
            drop = (before >= self.top_p).scatter(-1, order, before >= self.top_p)
            logits = logits.masked_fill(drop, -torch.inf)
        return logits

    def __call__(self, logits: Tensor) -> Tensor:
        """logits (B, V) -> ids (B,)."""
        if not self.temperature:
            return logits.argmax(-1)
        return torch.multinomial(self.filter(logits).softmax(-1), 1, generator=self.generator)[:, 0]


@torch.no_grad()
def next_tokens(step: Step, new: Tensor, choose: Sampler, done: Tensor, eos_id: int | None, pad_id: int) -> Tensor:
    """One step for every row: ids (B,), `pad_id` in rows that are done. Marks in `done` (B,) those that now end."""
    ids = choose(step(new)).masked_fill(done, pad_id)
    if eos_id is not None:
        done |= ids == eos_id
    return ids


def stream(
    step: Step, prompt: Tensor, max_new_tokens: int, choose: Sampler, eos_id: int | None, pad_id: int
) -> Iterator[Tensor]:
    """Yield the next ids (B,) until every row has ended or `max_new_tokens` are out."""
    done = torch.zeros(len(prompt), dtype=torch.bool, device=prompt.device)
    new = prompt
    for _ in range(max_new_tokens):
        ids = next_tokens(step, new, choose, done, eos_id, pad_id)
        yield ids
        if done.all():
            return
        new = ids[:, None]


@torch.no_grad()
def beam_search(
    step: Step,
    prompt: Tensor,
    max_new_tokens: int,
    num_beams: int,
    eos_id: int | None,
    pad_id: int,
    length_penalty: float = 1.0,
) -> Tensor:
    """The most likely continuation that `num_beams` hypotheses a row find: prompt (B, T) -> (B, T + new).

    Hypotheses that end are ranked by log likelihood / length ** length_penalty (Wu et al. 2016, eq. 14, simplified as
    in Hugging Face), and a row is done when no live one can still beat the worst of `num_beams` ended ones.
    """
    batch, width, device = len(prompt), num_beams, prompt.device
    ids = prompt.repeat_interleave(width, dim=0)
    scores = torch.full((batch, width), -torch.inf, device=device)
    scores[:, 0] = 0.0  # the beams start out equal: let one live, or all would stay equal
    ended: list[list[tuple[float, Tensor]]] = [[] for _ in range(batch)]
    done = [False] * batch
    new = ids
    for length in range(1, max_new_tokens + 1):
        log_p = step(new).float().log_softmax(-1).view(batch, width, -1)
        vocab = log_p.size(-1)
        # Twice the width: at most `width` of them end here, so as many are left to go on.
        best, index = (scores[..., None] + log_p).view(batch, -1).topk(min(2 * width, width * vocab))
        rows = torch.zeros(batch, width, dtype=torch.long, device=device)
        tokens = torch.full((batch, width), pad_id, device=device)
        scores = torch.full((batch, width), -torch.inf, device=device)
        for b in range(batch):
            live = 0
            for rank, (score, flat) in enumerate(zip(best[b].tolist(), index[b].tolist(), strict=True)):
                row, token = b * width + flat // vocab, flat % vocab
                if token == eos_id:
                    if rank < width and not done[b] and score > -torch.inf:
                        ended[b].append(
                            (score / length**length_penalty, torch.cat([ids[row], ids.new_tensor([token])]))
                        )
                elif live < width:
                    rows[b, live], tokens[b, live], scores[b, live] = row, token, score
                    live += 1
            ended[b] = sorted(ended[b], key=lambda pair: -pair[0])[:width]
            attainable = float(scores[b].max()) / length**length_penalty
            done[b] = done[b] or (len(ended[b]) == width and attainable <= ended[b][-1][0])
        ids = torch.cat([ids[rows.flatten()], tokens.view(-1, 1)], dim=1)
        if all(done):
            break
        step.reorder(rows.flatten())
        new = tokens.view(-1, 1)
    results = []
    for b in range(batch):
        live = [(float(scores[b, w]) / length**length_penalty, ids[b * width + w]) for w in range(width)]
        results.append(max(ended[b] + ([] if done[b] else live), key=lambda pair: pair[0])[1])
    longest = max(map(len, results))
    return torch.stack([torch.cat([r, r.new_full((longest - len(r),), pad_id)]) for r in results])


def generate(
    step: Step,
    prompt: Tensor,
    max_new_tokens: int,
    *,
    choose: Sampler,
    num_beams: int = 1,
    eos_id: int | None,
    pad_id: int,
) -> Tensor:
    """Prompt (B, T) -> prompt and continuation (B, T + new); after a row's EOS nothing but `pad_id`."""
    if num_beams < 1:
        raise ValueError(f"num_beams is {num_beams}; it must be at least 1.")
    if num_beams > 1:
        if choose.temperature:
            raise ValueError(
                f"beam search does not sample: temperature is {choose.temperature}, give 0 or num_beams=1."
            )
        return beam_search(step, prompt, max_new_tokens, num_beams, eos_id, pad_id)
    columns = [ids[:, None] for ids in stream(step, prompt, max_new_tokens, choose, eos_id, pad_id)]
    return torch.cat([prompt, *columns], dim=1)


@contextmanager
def column_major(model: nn.Module, rows: int, steps: int) -> Iterator[None]:
    """Inside, wide matrices of a model on a CPU lie column by column in memory; their values stay.

    Generation reads every weight for every token, and products of one to three rows read such a matrix up to twice as
    fast. For more rows, or steps too few to be worth the copy, nothing is done. After, each weight has its memory back:
    what is written to one inside is lost, so none may be handed to a caller who could train in between.
    """
    wide = [m.weight for m in model.modules() if isinstance(m, nn.Linear) and m.out_features > m.in_features]
    if rows > 3 or steps < 32:
        wide = []
    plain = [w for w in wide if w.device.type == "cpu" and w.dtype == torch.float32 and type(w.data) is Tensor]
    kept = [(weight, weight.data) for weight in plain]
    try:
        for weight, data in kept:
            weight.data = data.T.contiguous().T
        yield
    finally:
        for weight, data in kept:
            weight.data = data


def each_within(items: Iterator[Tensor], context: Callable[[], AbstractContextManager]) -> Iterator[Tensor]:
    """Compute each item within a context of its own, which is left again before the item is yielded.

    Held across the `yield`, it would stay entered for as long as the caller keeps the generator.
    """
    end = object()
    while True:
        with context():
            item = next(items, end)
        if item is end:
            return
        yield item


def room(prompt: int, max_new_tokens: int | None, max_seq_len: int) -> int:
    """How many tokens may be generated after `prompt` ones. Raises ValueError where they do not fit the context."""
    if prompt >= max_seq_len:
        raise ValueError(
            f"the prompt has {prompt} tokens and the context holds max_seq_len = {max_seq_len}; shorten it."
        )
    new = max_seq_len - prompt if max_new_tokens is None else max_new_tokens
    if new < 1:
        raise ValueError(f"max_new_tokens is {new}; it must be at least 1.")
    if prompt + new > max_seq_len:
        raise ValueError(
            f"{prompt} prompt tokens and max_new_tokens = {new} exceed the context, max_seq_len = {max_seq_len}; "
            f"ask for at most {max_seq_len - prompt}."
        )
    return new
