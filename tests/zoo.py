"""Healthy models that nobody here wrote: tiny, random, each with a padded batch as its users have it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from foreign import BOS, EOS, PAD, NanoGPT, TorchTransformer
from foreign import VOCAB as FOREIGN_VOCAB
from torch import Tensor, nn
from torch.nn import functional as F

from lab.labels import IGNORE_INDEX
from lab.subject import Subject

VOCAB, MASK, CONTEXT = 80, 4, 48
SPECIAL = {"pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": EOS}
# Widths are pairwise distinct: 2 layers, 4 heads of 8, an MLP of 128, or of 96 where it is gated.
USUAL = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "max_position_embeddings": CONTEXT,
}
GATED = USUAL | {"intermediate_size": 96}
GROUPED = GATED | {"num_key_value_heads": 2}
OPENAI = {"vocab_size": VOCAB, "n_positions": CONTEXT, "n_embd": 32, "n_layer": 2, "n_head": 4}
ENCODER_DECODER = {
    "vocab_size": VOCAB,
    "d_model": 32,
    "max_position_embeddings": CONTEXT,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 128,
    "decoder_ffn_dim": 128,
    "decoder_start_token_id": BOS,
    "forced_eos_token_id": None,
}
T5 = {
    "vocab_size": VOCAB,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 128,
    "num_layers": 2,
    "num_heads": 4,
    "decoder_start_token_id": PAD,
}
EXPERTS = {"moe_intermediate_size": 48, "num_experts": 4, "num_experts_per_tok": 2}


@dataclass(frozen=True)
class Animal:
    """How one subject is made: by the names of a Hugging Face class and its config, or by a function of ours."""

    kind: str
    model: str = ""
    options: dict[str, Any] | None = None
    build: Callable[[str], Subject] | None = None


def causal(model: str, **options: Any) -> Animal:
    return Animal("causal_lm", model, SPECIAL | options)


def seq2seq(model: str, **options: Any) -> Animal:
    return Animal("seq2seq", model, SPECIAL | options)


def encoder(model: str, **options: Any) -> Animal:
    return Animal("encoder", model, SPECIAL | options)


ANIMALS: dict[str, Animal] = {
    "gpt2": causal("GPT2LMHeadModel", **OPENAI),
    "llama": causal("LlamaForCausalLM", **GROUPED),
    "mistral": causal("MistralForCausalLM", **GROUPED, sliding_window=5),
    "qwen2": causal("Qwen2ForCausalLM", **GROUPED),
    "qwen3": causal("Qwen3ForCausalLM", **GROUPED, head_dim=8),
    "gemma": causal("GemmaForCausalLM", **GROUPED, head_dim=8),
    "gemma2": causal("Gemma2ForCausalLM", **GROUPED, head_dim=8, sliding_window=5, query_pre_attn_scalar=8),
    "gemma3": causal(
        "Gemma3ForCausalLM", **GROUPED, config="Gemma3TextConfig", head_dim=8, sliding_window=5, query_pre_attn_scalar=8
    ),
    "opt": causal(
        "OPTForCausalLM", vocab_size=VOCAB, hidden_size=32, word_embed_proj_dim=32, num_hidden_layers=2,
        num_attention_heads=4, ffn_dim=128, max_position_embeddings=CONTEXT,
    ),
    "bloom": causal("BloomForCausalLM", vocab_size=VOCAB, hidden_size=32, n_layer=2, n_head=4),
    "gpt-neox": causal("GPTNeoXForCausalLM", **USUAL),
    "gptj": causal("GPTJForCausalLM", **OPENAI, rotary_dim=4),
    "gpt-neo": causal(
        "GPTNeoForCausalLM", vocab_size=VOCAB, hidden_size=32, num_layers=2, num_heads=4, window_size=5,
        attention_types=[[["global", "local"], 1]], max_position_embeddings=CONTEXT,
    ),
    "phi": causal("PhiForCausalLM", **USUAL),
    "phi3": causal("Phi3ForCausalLM", **GROUPED),
    "falcon": causal(
        "FalconForCausalLM", vocab_size=VOCAB, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=CONTEXT,
    ),
    "falcon-alibi": causal(
        "FalconForCausalLM", vocab_size=VOCAB, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=CONTEXT, alibi=True, multi_query=False, parallel_attn=False,
    ),
    "mpt": causal("MptForCausalLM", vocab_size=VOCAB, d_model=32, n_layers=2, n_heads=4, max_seq_len=CONTEXT),
    "stablelm": causal("StableLmForCausalLM", **GROUPED),
    "starcoder2": causal("Starcoder2ForCausalLM", **USUAL, num_key_value_heads=2, sliding_window=5),
    "olmo": causal("OlmoForCausalLM", **GROUPED),
    "olmo2": causal("Olmo2ForCausalLM", **GROUPED),
    "mixtral": causal("MixtralForCausalLM", **GROUPED, num_local_experts=4, num_experts_per_tok=2),
    "qwen2-moe": causal("Qwen2MoeForCausalLM", **GROUPED, **EXPERTS, shared_expert_intermediate_size=96),
    "qwen3-moe": causal("Qwen3MoeForCausalLM", **GROUPED, **EXPERTS, head_dim=8),
    "mamba": causal("MambaForCausalLM", vocab_size=VOCAB, hidden_size=32, state_size=8, num_hidden_layers=2),
    "cohere": causal("CohereForCausalLM", **GROUPED),
    "gpt-bigcode": causal("GPTBigCodeForCausalLM", **OPENAI),
    "codegen": causal("CodeGenForCausalLM", **OPENAI, rotary_dim=4),
    "granite": causal("GraniteForCausalLM", **GROUPED),
    "nemotron": causal("NemotronForCausalLM", **USUAL, num_key_value_heads=2),
    "biogpt": causal("BioGptForCausalLM", **USUAL),
    "xglm": causal(
        "XGLMForCausalLM", vocab_size=VOCAB, d_model=32, num_layers=2, attention_heads=4, ffn_dim=128,
        max_position_embeddings=CONTEXT,
    ),
    "ctrl": causal(
        "CTRLLMHeadModel", vocab_size=VOCAB, n_positions=CONTEXT, n_embd=32, n_layer=2, n_head=4, dff=128
    ),
    "bert-decoder": causal("BertLMHeadModel", **USUAL, is_decoder=True),
    "roformer": causal("RoFormerForCausalLM", **USUAL, is_decoder=True),
    "bart": seq2seq("BartForConditionalGeneration", **ENCODER_DECODER),
    "t5": seq2seq("T5ForConditionalGeneration", **T5),
    "mt5": seq2seq("MT5ForConditionalGeneration", **T5 | {"d_ff": 96}, feed_forward_proj="gated-gelu"),
    "marian": seq2seq("MarianMTModel", **ENCODER_DECODER),
    "pegasus": seq2seq("PegasusForConditionalGeneration", **ENCODER_DECODER),
    "mbart": seq2seq("MBartForConditionalGeneration", **ENCODER_DECODER),
    "m2m100": seq2seq("M2M100ForConditionalGeneration", **ENCODER_DECODER),
    "blenderbot": seq2seq("BlenderbotForConditionalGeneration", **ENCODER_DECODER),
    "led": seq2seq(
        "LEDForConditionalGeneration",
        **{k: v for k, v in ENCODER_DECODER.items() if k != "max_position_embeddings"},
        max_encoder_position_embeddings=CONTEXT,
        max_decoder_position_embeddings=CONTEXT,
        attention_window=4,
    ),
    "prophetnet": seq2seq(
        "ProphetNetForConditionalGeneration", vocab_size=VOCAB, hidden_size=32, max_position_embeddings=CONTEXT,
        num_encoder_layers=2, num_decoder_layers=2, num_encoder_attention_heads=4, num_decoder_attention_heads=4,
        encoder_ffn_dim=128, decoder_ffn_dim=128, decoder_start_token_id=BOS, ngram=2,
    ),
    "bert": encoder("BertForMaskedLM", **USUAL),
    "roberta": encoder("RobertaForMaskedLM", **USUAL),
    "distilbert": encoder(
        "DistilBertForMaskedLM", vocab_size=VOCAB, dim=32, n_layers=2, n_heads=4, hidden_dim=128,
        max_position_embeddings=CONTEXT,
    ),
}  # fmt: skip


# transformers has no attention by scaled_dot_product_attention for these.
EAGER_ONLY = {
    "gemma2", "bloom", "gptj", "gpt-neo", "mpt", "mamba", "codegen", "xglm", "roformer", "led", "prophetnet"
}  # fmt: skip


# Batches


def rows(lengths: tuple[int, ...], side: str) -> tuple[Tensor, Tensor]:
    """Rows of ordinary tokens that end in EOS, padded at that side: ids (B, T) and which of them are real (B, T)."""
    generator = torch.Generator().manual_seed(5)
    ids = torch.full((len(lengths), max(lengths)), PAD)
    real = torch.zeros_like(ids, dtype=torch.bool)
    for row, length in enumerate(lengths):
        tokens = torch.randint(5, VOCAB, (length,), generator=generator)
        tokens[-1] = EOS
        span = slice(ids.size(1) - length, None) if side == "left" else slice(length)
        ids[row, span], real[row, span] = tokens, True
    return ids, real


def causal_batch(side: str) -> dict[str, Tensor]:
    ids, real = rows((10, 6, 8), side)
    return {"input_ids": ids, "attention_mask": real.long(), "labels": ids.masked_fill(~real, IGNORE_INDEX)}


def seq2seq_batch(side: str) -> dict[str, Tensor]:
    """The source is padded at that side. The labels stand at the right of nothing: they are padded at the right."""
    ids, real = rows((12, 6, 9), side)
    targets, there = rows((6, 8, 5), "right")
    return {"input_ids": ids, "attention_mask": real.long(), "labels": targets.masked_fill(~there, IGNORE_INDEX)}


def masked_batch(side: str) -> dict[str, Tensor]:
    """Some tokens are hidden behind MASK, and are to be guessed."""
    ids, real = rows((10, 6, 8), side)
    hidden = real & (torch.rand(ids.shape, generator=torch.Generator().manual_seed(6)) < 0.3)
    return {
        "input_ids": ids.masked_fill(hidden, MASK),
        "attention_mask": real.long(),
        "labels": ids.masked_fill(~hidden, IGNORE_INDEX),
    }


def decoder_ids(labels: Tensor) -> Tensor:
    """The labels one step later, after BOS; padding where a label is ignored."""
    shifted = torch.cat([torch.full((len(labels), 1), BOS), labels[:, :-1]], 1)
    return shifted.masked_fill(shifted == IGNORE_INDEX, PAD)


# These have no method that makes them of the labels.
GIVEN_DECODER_IDS = ("m2m100", "blenderbot")
BATCHES = {"causal_lm": causal_batch, "seq2seq": seq2seq_batch, "encoder": masked_batch}


# Models


def hugging_face(animal: Animal, attention: str) -> nn.Module:
    import transformers as hf

    options = dict(animal.options or {})
    model = getattr(hf, animal.model)
    config = (getattr(hf, options.pop("config")) if "config" in options else model.config_class)(**options)
    config._attn_implementation = attention
    return model(config)


def torch_transformer(norm_first: bool) -> Callable[[str], Subject]:
    def build(side: str) -> Subject:
        # Its forward looks for pads among the ids, and so needs no mask.
        batch = seq2seq_batch(side)
        source, labels = batch["input_ids"] % FOREIGN_VOCAB, batch["labels"]
        labels = labels.where(labels < 0, labels % FOREIGN_VOCAB)
        batch = {"src": source, "tgt": decoder_ids(labels), "labels": labels}
        return Subject(TorchTransformer(norm_first=norm_first), batch, loss=cross_entropy, pad_id=PAD, eos_id=EOS)

    return build


def cross_entropy(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return F.cross_entropy(model(batch["src"], batch["tgt"]).flatten(0, 1), batch["labels"].flatten())


def nanogpt(side: str) -> Subject:
    """x and y as nanoGPT's loader cuts them out of a long text: no padding."""
    text = torch.randint(5, FOREIGN_VOCAB, (3, 11), generator=torch.Generator().manual_seed(5))
    return Subject(NanoGPT(), (text[:, :-1], text[:, 1:]))


def x_transformer(**options: Any) -> Callable[[str], Subject]:
    """A decoder of x-transformers, with the mask and the loss that its users give it."""

    def build(side: str) -> Subject:
        from loguru import logger
        from x_transformers import Decoder, TransformerWrapper

        logger.disable("x_transformers")  # it finds heads of 8 small
        how = {"dim": 32, "depth": 2, "heads": 4, "attn_dim_head": 8, **options}
        absolute = how.pop("absolute", False)
        model = TransformerWrapper(
            num_tokens=VOCAB, max_seq_len=CONTEXT, use_abs_pos_emb=absolute, attn_layers=Decoder(**how)
        )
        batch = causal_batch(side)
        batch["mask"] = batch.pop("attention_mask").bool()
        return Subject(
            model,
            batch,
            forward=x_logits,
            loss=lambda model, batch: F.cross_entropy(
                x_logits(model, batch)[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten()
            ),
            streams={"target": ("input_ids", "mask")},
            pad_id=PAD,
            eos_id=EOS,
            vocab_size=VOCAB,
            max_seq_len=CONTEXT,
        )

    return build


def x_logits(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return model(batch["input_ids"], mask=batch["mask"])


ANIMALS |= {
    "torch-post-norm": Animal("seq2seq", build=torch_transformer(False)),
    "torch-pre-norm": Animal("seq2seq", build=torch_transformer(True)),
    "nanogpt": Animal("causal_lm", build=nanogpt),
    "x-rotary": Animal("causal_lm", build=x_transformer(rotary_pos_emb=True)),
    "x-alibi": Animal("causal_lm", build=x_transformer(alibi_pos_bias=True)),
    "x-relative": Animal("causal_lm", build=x_transformer(rel_pos_bias=True)),
    "x-no-positions": Animal("causal_lm", build=x_transformer()),
    "x-absolute": Animal("causal_lm", build=x_transformer(absolute=True)),
    "x-grouped": Animal("causal_lm", build=x_transformer(rotary_pos_emb=True, attn_kv_heads=2, ff_glu=True)),
}


def subjects() -> list[tuple[str, str, str]]:
    """(name, attention, side) of all there are, as `make` takes them."""
    return [
        (name, attention, side)
        for name, animal in ANIMALS.items()
        for attention in (("eager", "sdpa") if animal.model and name not in EAGER_ONLY else ("eager",))
        for side in (("right", "left") if name != "nanogpt" else ("right",))
    ]


def make(name: str, attention: str = "eager", side: str = "right") -> Subject:
    """The subject of that name, the same weights each time, in train mode. Raises KeyError for an unknown name."""
    animal = ANIMALS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if animal.build is not None:
            subject = animal.build(side)
        else:
            model, batch = hugging_face(animal, attention), BATCHES[animal.kind](side)
            if name in GIVEN_DECODER_IDS:
                batch["decoder_input_ids"] = decoder_ids(batch["labels"])
            subject = Subject(model, batch)
    subject.model.train()
    subject.name = f"{name} ({attention}, {side}-padded)"
    return subject
