"""The encoder–decoder Transformer (Vaswani et al. 2017)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn

from . import decoding, masks
from .attention import KVCache
from .blocks import Embedder, ModelOutput, initialise, make_layers, tie
from .config import ModelConfig
from .evaluation import Evaluation, mean_loss
from .loss import head_and_loss
from .mode import evaluating


class Transformer(nn.Module):
    """Source ids in, logits of the target out. Source, target and (with tie_head) the output share one embedding.

    The config needs pad_id, and bos_id and eos_id for `generate`.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        if config.pad_id is None:
            raise ValueError("pad_id is None; a Transformer pads its pairs, so the config must name the padding id.")
        self.config = config
        self.embedder = Embedder(config)
        self.encoder = make_layers(config)
        self.encoder_norm = nn.LayerNorm(config.d_model)
        self.decoder = make_layers(config, cross=True)
        self.decoder_norm = nn.LayerNorm(config.d_model)
        self.head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        initialise(self, config)
        tie(self.head, self.embedder.token, config)

    def forward(
        self, input_ids: Tensor, decoder_input_ids: Tensor, labels: Tensor | None = None, *, need_weights: bool = False
    ) -> ModelOutput:
        """input_ids (B, S), decoder_input_ids (B, T) -> logits (B, T, V), but none with labels and a loss_chunk.

        labels (B, T): the token that position t should predict, IGNORE_INDEX where none is asked for.
        need_weights: attentions["encoder"], ["decoder"] and ["cross"], one (B, H, T or S, T or S) a layer.
        """
        if len(input_ids) != len(decoder_input_ids):
            raise ValueError(
                f"input_ids has {len(input_ids)} rows and decoder_input_ids {len(decoder_input_ids)}; "
                f"each source needs its target."
            )
        attentions = {"encoder": [], "decoder": [], "cross": []} if need_weights else None
        memory = self.encode(input_ids, attentions)
        hidden = self.decode(decoder_input_ids, memory, masks.key_is_real(input_ids, self.config.pad_id), attentions)
        logits, loss = head_and_loss(self.head, hidden, labels, self.config, self.training)
        return ModelOutput(logits, loss, attentions or {})

    def encode(self, input_ids: Tensor, attentions: dict[str, list[Tensor]] | None = None) -> Tensor:
        """input_ids (B, S) -> memory (B, S, D)."""
        x = self.embedder(input_ids)
        mask = masks.key_is_real(input_ids, self.config.pad_id)
        for block in self.encoder:
            x, weights = block(x, mask, need_weights=attentions is not None)
            if attentions is not None:
                attentions["encoder"].append(weights[0])
        return self.encoder_norm(x)

    def decode(
        self,
        decoder_input_ids: Tensor,
        memory: Tensor,
        memory_mask: Tensor,
        attentions: dict[str, list[Tensor]] | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """decoder_input_ids (B, T), memory (B, S, D), memory_mask (B, 1, 1, S) -> (B, T, D), for the head.

        With a cache, decoder_input_ids are only the new ones.
        """
        past = decoder_input_ids if cache is None else cache.extend(decoder_input_ids)
        x = self.embedder(decoder_input_ids, past, "decoder_input_ids")
        mask = masks.decoder(past, self.config.pad_id, decoder_input_ids.size(1))
        for i, block in enumerate(self.decoder):
            layer_cache = None if cache is None else cache.layers[i]
            x, weights = block(x, mask, memory, memory_mask, cache=layer_cache, need_weights=attentions is not None)
            if attentions is not None:
                attentions["decoder"].append(weights[0])
                attentions["cross"].append(weights[1])
        return self.decoder_norm(x)

    def evaluate(self, batches: Iterable[Mapping[str, Tensor]]) -> Evaluation:
        """Mean loss per target token over the batches, without dropout."""
        with evaluating(self):
            return mean_loss(self, batches)

    def generate(self, input_ids: Tensor, max_new_tokens: int | None = None, **how) -> Tensor:
        """input_ids (B, S) -> decoder ids (B, 1 + new): bos_id, the translation, eos_id, then pad_id.

        max_new_tokens: by default what the context holds. how: num_beams above 1 searches; else temperature, top_k,
        top_p and generator as in decoding.Sampler (greedy by default). use_cache=False gives the same tokens, slowly.
        """
        with evaluating(self):
            return self.continuation(input_ids, max_new_tokens, **how)

    def continuation(
        self, input_ids: Tensor, max_new_tokens: int | None, num_beams: int = 1, use_cache: bool = True, **how
    ) -> Tensor:
        """What generate does, in whatever mode the model is in."""
        step, start = self.start(input_ids, num_beams, use_cache)
        room, choose = self.room(max_new_tokens), decoding.Sampler(**how)
        ends = {"eos_id": self.config.eos_id, "pad_id": self.config.pad_id}
        with decoding.column_major(self, len(input_ids) * num_beams, room):
            return decoding.generate(step, start, room, choose=choose, num_beams=num_beams, **ends)

    def stream(self, input_ids: Tensor, max_new_tokens: int | None = None, **how) -> Iterator[Tensor]:
        """Like generate, but yields the ids (B,) of each step as they are decided."""
        with evaluating(self):
            step, start = self.start(input_ids)
        choose, config = decoding.Sampler(**how), self.config
        ids = decoding.stream(step, start, self.room(max_new_tokens), choose, config.eos_id, config.pad_id)
        return decoding.each_within(ids, lambda: evaluating(self))

    @torch.no_grad()
    def start(self, input_ids: Tensor, num_beams: int = 1, use_cache: bool = True) -> tuple[decoding.Step, Tensor]:
        """Encode the source; return the step function of its decoder and the first decoder ids (B, 1)."""
        if self.config.bos_id is None or self.config.eos_id is None:
            raise ValueError("generate needs bos_id and eos_id in the config: where a translation starts and ends.")
        memory = self.encode(input_ids).repeat_interleave(num_beams, dim=0)
        memory_mask = masks.key_is_real(input_ids, self.config.pad_id).repeat_interleave(num_beams, dim=0)
        cache = KVCache(self.config.num_layers, self.config.max_seq_len) if use_cache else None

        def forward(ids: Tensor, cache: KVCache | None) -> Tensor:
            return self.head(self.decode(ids, memory, memory_mask, None, cache)[:, -1:])

        return decoding.Step(forward, cache), input_ids.new_full((len(input_ids), 1), self.config.bos_id)

    def room(self, max_new_tokens: int | None) -> int:
        """max_new_tokens, checked against the context that the start token shares with them."""
        return decoding.room(1, max_new_tokens, self.config.max_seq_len)
