"""Corpora, tokenizers, prepared text and batches of pairs: the public names."""

from .cache import cache_dir
from .corpora import find_text, iter_text, load_pairs, load_text, names
from .counting import english, german
from .packed import BlockSampler, Prepared
from .pairs import BucketBatchSampler, encode_pairs, pair_loader
from .prepare import prepare
from .splits import SPLITS, split_of
from .tokenizer import BOS_ID, EOS_ID, PAD_ID, gpt2_tokenizer, load_tokenizer, train_tokenizer
from .translation import SPECIAL_IDS, Translation, collate, translation

__all__ = [
    "BOS_ID",
    "EOS_ID",
    "PAD_ID",
    "SPECIAL_IDS",
    "SPLITS",
    "BlockSampler",
    "BucketBatchSampler",
    "Prepared",
    "Translation",
    "cache_dir",
    "collate",
    "encode_pairs",
    "english",
    "find_text",
    "german",
    "gpt2_tokenizer",
    "iter_text",
    "load_pairs",
    "load_text",
    "load_tokenizer",
    "names",
    "pair_loader",
    "prepare",
    "split_of",
    "train_tokenizer",
    "translation",
]
