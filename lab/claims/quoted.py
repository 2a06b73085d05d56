"""Figures that are quoted, each with its source, and what was counted on WikiText; the claims are held against them."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..units import PER_TOKEN, PER_WORD, convert

COUNTED = "counted on Salesforce/wikitext with GPT-2's BPE"
# `lab prepare wikitext-2 --tokenizer gpt2`: words with one end of line a line, tokens with one EOS an article.
TRAIN_TOKENS, TRAIN_WORDS = 2_448_982, 2_088_628
VALIDATION_TOKENS, VALIDATION_WORDS = 258_719, 217_646
# The test text, which WikiText-2 and WikiText-103 share. Raw and without blank lines it has the fewest tokens, in
# words with <unk> the most; both are the same text, so a perplexity per token is a range per word.
TEST_WORDS, TEST_TOKENS_RAW, TEST_TOKENS, TEST_BYTES = 245_569, 277_853, 295_937, 1_256_449
# `lab claims --recount`: rows of WikiText-2's train that are not blank, each encoded alone.
ROWS, ROW_TOKENS, LONGEST_ROW, CUT_AT_256, CUT_AT_512 = 23_767, 2_377_402, 815, 97_616, 2_245
COUNTS = {
    "rows": ROWS, "tokens": ROW_TOKENS, "longest": LONGEST_ROW, "tokens cut off at 256": CUT_AT_256,
    "tokens cut off at 512": CUT_AT_512,
}  # fmt: skip
FIRST_OVER_1024 = 1063  # a row of WikiText-103: of the tokenizer's warnings the first, which is given once
WORDS_103 = 103_227_021  # Merity et al. 2016, table 1: WikiText-103's train
GPT2_CONTEXT = 1024  # GPT-2's tokenizer warns of a row that is longer
TRANSFORMER = (512, 2048)  # d_model, d_ff of the base model: Vaswani et al. 2017, 3.3


@dataclass(frozen=True)
class Published:
    """A perplexity on the test text of WikiText-103, or of WikiText-2 where the name says so.

    parameters: None where the source's count is not at hand. checked: False for a well-known figure whose source was
    not read again.
    """

    name: str
    parameters: float | None
    perplexity: float
    unit: str
    source: str
    checked: bool = True

    def per_word(self) -> tuple[float, float]:
        """The lowest and highest that the tokens per word allow; one value where it is given so."""
        return (self.perplexity,) * 2 if self.unit == PER_WORD else per_word(self.perplexity)

    def per_token(self) -> tuple[float, float]:
        return (self.perplexity,) * 2 if self.unit == PER_TOKEN else per_token(self.perplexity)


def per_word(perplexity: float) -> tuple[float, float]:
    """Perplexity per GPT-2 token -> per word of the WikiText test text, by its fewest and its most tokens."""
    ends = (TEST_TOKENS_RAW, TEST_TOKENS)
    low, high = (convert(perplexity, PER_TOKEN, PER_WORD, tokens=tokens, words=TEST_WORDS) for tokens in ends)
    return low, high


def per_token(perplexity: float) -> tuple[float, float]:
    """Perplexity per word -> per GPT-2 token, lowest first."""
    ends = (TEST_TOKENS, TEST_TOKENS_RAW)
    low, high = (convert(perplexity, PER_WORD, PER_TOKEN, tokens=tokens, words=TEST_WORDS) for tokens in ends)
    return low, high


def tokens_103() -> tuple[float, float]:
    """GPT-2 tokens of WikiText-103's train, by its words and the tokens per word of the test text."""
    return WORDS_103 * TEST_TOKENS_RAW / TEST_WORDS, WORDS_103 * TEST_TOKENS / TEST_WORDS


LOG = "public training log, BluebrainAI/gpt2-wikitext"
ZERO_SHOT = Published("GPT-2 small, zero-shot", 124_439_808, 37.50, PER_WORD, "Radford et al. 2019, table 3")
ZERO_SHOT_2 = Published(
    "GPT-2 small, zero-shot, WikiText-2", 124_439_808, 29.41, PER_WORD, "Radford et al. 2019, table 3"
)
FROM_SCRATCH = tuple(
    Published(f"124M from scratch, {epochs:g} epochs", 124_439_808, perplexity, PER_TOKEN, LOG)
    for epochs, perplexity in ((0.84, 67.9), (1.1, 48.6), (2.0, 32.9), (5.0, 23.7))
)
MANY_EPOCHS = Published(
    "125M transformer, many epochs", 125e6, 18.6, PER_TOKEN, "Poli et al. 2023 (Hyena), its baseline", False
)
PER_WORD_103 = (
    Published("gated CNN", None, 37.2, PER_WORD, "Dauphin et al. 2017"),
    Published("LSTM", None, 48.7, PER_WORD, "Grave et al. 2017"),
    Published("QRNN", 151e6, 33.0, PER_WORD, "Merity et al. 2018"),
    Published("Transformer-XL standard", 151e6, 24.0, PER_WORD, "Dai et al. 2019"),
    Published("adaptive inputs", 247e6, 18.7, PER_WORD, "Baevski & Auli 2018", False),
)
ON_WIKITEXT_2 = (
    Published("AWD-LSTM, WikiText-2", 33e6, 65.8, PER_WORD, "Merity et al. 2018, regularising LSTMs"),
    Published("mixture of softmaxes, WikiText-2", 35e6, 61.45, PER_WORD, "Yang et al. 2018"),
    Published("GPT-2 small from scratch, 3 epochs of WikiText-2", 124_439_808, 450, PER_TOKEN, "public model cards"),
)
ALL = (ZERO_SHOT, ZERO_SHOT_2, *FROM_SCRATCH, MANY_EPOCHS, *PER_WORD_103, *ON_WIKITEXT_2)


def bits_per_byte(perplexity: float) -> float:
    """Of the test text in words with <unk>, where it has the most tokens."""
    return math.log2(perplexity) * TEST_TOKENS / TEST_BYTES


def recount(data_dir: str | None = None) -> dict[str, int]:
    """Count the rows of WikiText-2's train again: rows, tokens, longest, cut at 256 and at 512.

    Raises FileNotFoundError, with all places that were asked, where WikiText-2 or the vocabulary of GPT-2 is in none.
    """
    from ..data import gpt2_tokenizer, iter_text

    rows = [line for text in iter_text("wikitext-2", "train", data_dir) for line in text.splitlines()]
    rows = [row.strip() for row in rows if row.strip()]
    encoded = gpt2_tokenizer(data_dir).encode_batch_fast(rows, add_special_tokens=False)
    lengths = [len(encoding.ids) for encoding in encoded]
    cut = {f"tokens cut off at {n}": sum(max(0, length - n) for length in lengths) for n in (256, 512)}
    return {"rows": len(lengths), "tokens": sum(lengths), "longest": max(lengths), **cut}
