"""The decoder-only language model (GPT-2: Radford et al. 2019)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from torch import Tensor, nn

from . import decoding, masks
from .attention import KVCache
from .blocks import Embedder, ModelOutput, check_shape, initialise, make_layers, tie
from .config import ModelConfig
from .evaluation import Evaluation, mean_loss
from .loss import head_and_loss
from .mode import evaluating


class LanguageModel(nn.Module):
    """Ids in, logits of the next ones out."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embedder = Embedder(config)
        self.blocks = make_layers(config)
        self.norm = nn.LayerNorm(config.d_model)
        self.head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        initialise(self, config)
        tie(self.head, self.embedder.token, config)

    def forward(
        self,
        input_ids: Tensor,
        labels: Tensor | None = None,
        *,
        cache: KVCache | None = None,
        need_weights: bool = False,
        last_only: bool = False,
    ) -> ModelOutput:
        """input_ids (B, T) -> logits (B, T, V); with labels the loss, and no logits where the config has a loss_chunk.

        labels (B, T): the token that position t should predict (already one ahead of input_ids), IGNORE_INDEX where
        none is asked for. cache: input_ids are only the new ones. need_weights: attentions["decoder"], one
        (B, H, T, T) a layer. last_only: logits of the last position, (B, 1, V), which is all that generation needs.
        """
        past = input_ids if cache is None else cache.extend(input_ids)
        x = self.embedder(input_ids, past)
        mask = self.mask(past, input_ids.size(1))
        attentions = []
        for i, block in enumerate(self.blocks):
            x, weights = block(x, mask, cache=None if cache is None else cache.layers[i], need_weights=need_weights)
            attentions.append(weights[0])
        x = self.norm(x[:, -1:] if last_only else x)
        logits, loss = head_and_loss(self.head, x, labels, self.config, self.training)
        return ModelOutput(logits, loss, {"decoder": attentions} if need_weights else {})

    def mask(self, ids: Tensor, last: int) -> Tensor | None:
        """The attend mask of the last positions of ids; None, plain causal in a faster kernel, without padding."""
        if self.config.pad_id is not None:
            return masks.decoder(ids, self.config.pad_id, last)
        return None if last in (1, ids.size(1)) else masks.causal(ids.size(1), last, device=ids.device)

    def evaluate(self, batches: Iterable[Mapping[str, Tensor]]) -> Evaluation:
        """Mean loss per target token over the batches, without dropout."""
        with evaluating(self):
            return mean_loss(self, batches)

    def generate(self, input_ids: Tensor, max_new_tokens: int | None = None, **how) -> Tensor:
        """Prompts (B, T), padded at the left where unequal -> prompts and continuations (B, T + new).

        A row that reaches eos_id is filled up with pad_id. max_new_tokens: by default what the context holds. how:
        num_beams above 1 searches; else temperature, top_k, top_p and generator as in decoding.Sampler (greedy by
        default). use_cache=False gives the same tokens, slowly.
        """
        with evaluating(self):
            return self.continuation(input_ids, max_new_tokens, **how)

    def continuation(
        self, input_ids: Tensor, max_new_tokens: int | None, num_beams: int = 1, use_cache: bool = True, **how
    ) -> Tensor:
        """What generate does, in whatever mode the model is in."""
        step, choose = self.step(input_ids, use_cache), decoding.Sampler(**how)
        room = decoding.room(input_ids.size(1), max_new_tokens, self.config.max_seq_len)
        ends = {"eos_id": self.config.eos_id, "pad_id": self.fill_id}
        with decoding.column_major(self, len(input_ids) * num_beams, room):
            return decoding.generate(step, input_ids, room, choose=choose, num_beams=num_beams, **ends)

    def stream(self, input_ids: Tensor, max_new_tokens: int | None = None, **how) -> Iterator[Tensor]:
        """Like generate, but yields the ids (B,) of each step as they are decided."""
        step, choose = self.step(input_ids), decoding.Sampler(**how)
        room = decoding.room(input_ids.size(1), max_new_tokens, self.config.max_seq_len)
        ids = decoding.stream(step, input_ids, room, choose, self.config.eos_id, self.fill_id)
        return decoding.each_within(ids, lambda: evaluating(self))

    @property
    def fill_id(self) -> int:
        """What follows a row's end in a batch where others go on."""
        return next((i for i in (self.config.pad_id, self.config.eos_id) if i is not None), 0)

    def step(self, input_ids: Tensor, use_cache: bool = True) -> decoding.Step:
        """The step function of these prompts. Raises ValueError where one is not padded at the left, or all padding."""
        check_shape(input_ids)
        if self.config.pad_id is not None and (input_ids[:, -1] == self.config.pad_id).any():
            row = int((input_ids[:, -1] == self.config.pad_id).nonzero()[0])
            raise ValueError(
                f"prompt {row} ends in padding (pad_id {self.config.pad_id}), so its continuation would follow a pad; "
                f"pad prompts at the left (labels.pad(rows, pad_id, 'left')) and give each at least one token."
            )
        cache = KVCache(self.config.num_layers, self.config.max_seq_len) if use_cache else None
        return decoding.Step(lambda ids, cache: self(ids, cache=cache, last_only=True).logits, cache)
