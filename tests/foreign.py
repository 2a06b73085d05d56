"""Models that nobody here wrote, small and random, and wrappers of them as people write them."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

PAD, BOS, EOS, VOCAB = 1, 0, 2, 60


class TorchTransformer(nn.Module):
    """`torch.nn.Transformer` with embeddings and a head, pads masked or not at each of its three attentions."""

    def __init__(self, masked: str = "source target memory", norm_first: bool = False, dropout: float = 0.1) -> None:
        super().__init__()
        self.masked = masked.split()
        self.embedding = nn.Embedding(VOCAB, 16)
        self.position = nn.Embedding(40, 16)
        self.transformer = nn.Transformer(
            16, 2, 2, 2, 64, dropout=dropout, batch_first=True, norm_first=norm_first, activation="gelu"
        )
        self.head = nn.Linear(16, VOCAB)

    def forward(self, src: Tensor, tgt: Tensor) -> Tensor:
        causal = torch.ones(tgt.size(1), tgt.size(1), dtype=torch.bool).triu(1)
        out = self.transformer(
            self.embedding(src) * math.sqrt(16) + self.position(torch.arange(src.size(1))),
            self.embedding(tgt) * math.sqrt(16) + self.position(torch.arange(tgt.size(1))),
            tgt_mask=causal,
            src_key_padding_mask=src == PAD if "source" in self.masked else None,
            tgt_key_padding_mask=tgt == PAD if "target" in self.masked else None,
            memory_key_padding_mask=src == PAD if "memory" in self.masked else None,
        )
        return self.head(out)


class NanoGPT(nn.Module):
    """Returns (logits, loss), and logits of the last position alone where no targets are given, as nanoGPT does."""

    def __init__(self) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(VOCAB, 16), nn.Embedding(40, 16)
        layer = nn.TransformerEncoderLayer(16, 2, 64, dropout=0.1, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(16, VOCAB, bias=False)

    def forward(self, idx: Tensor, targets: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        mask = torch.ones(idx.size(1), idx.size(1), dtype=torch.bool).triu(1)
        x = self.layers(self.wte(idx) + self.wpe(torch.arange(idx.size(1))), mask=mask)
        if targets is None:
            return self.head(x[:, [-1]]), None
        logits = self.head(x)
        return logits, nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1)

    def generate(self, idx: Tensor, max_new_tokens: int) -> Tensor:
        self.eval()
        with torch.no_grad():
            for _ in range(max_new_tokens):
                idx = torch.cat([idx, self(idx)[0][:, -1].argmax(-1, keepdim=True)], 1)
        self.train()
        return idx


def pairs_batch(side: str = "right") -> dict[str, Tensor]:
    """src and tgt (B, T) with padding at that side, in the review's layout."""
    from lab import labels

    batch = labels.collate_pairs(
        [([5, 6, 7, 8], [9, 10, 11, 12]), ([13, 14], [15, 16])], pad_id=PAD, bos_id=BOS, eos_id=EOS, side=side
    )
    return {"src": batch["input_ids"], "tgt": batch["decoder_input_ids"], "labels": batch["labels"]}


def hugging_face(kind: str) -> nn.Module:
    """A tiny random model of that architecture."""
    import transformers as hf

    torch.manual_seed(0)
    special = {"pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": EOS, "decoder_start_token_id": BOS}
    if kind == "gpt2":
        return hf.GPT2LMHeadModel(
            hf.GPT2Config(
                vocab_size=VOCAB, n_positions=40, n_embd=16, n_layer=2, n_head=2, bos_token_id=BOS, eos_token_id=EOS
            )
        )
    if kind == "llama":
        config = hf.LlamaConfig(
            vocab_size=VOCAB,
            hidden_size=16,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=40,
            **special,
        )
        return hf.LlamaForCausalLM(config)
    if kind == "bart":
        layers = {"encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64}
        heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
        return hf.BartForConditionalGeneration(
            hf.BartConfig(
                vocab_size=VOCAB,
                max_position_embeddings=40,
                d_model=16,
                forced_eos_token_id=None,
                **layers,
                **heads,
                **special,
            )
        )
    if kind == "t5":
        return hf.T5ForConditionalGeneration(
            hf.T5Config(vocab_size=VOCAB, d_model=16, d_kv=8, d_ff=64, num_layers=2, num_heads=2, **special)
        )
    raise ValueError(kind)
