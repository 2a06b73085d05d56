"""Corpora, the tokenizer and batches of pairs: the public names."""

from .cache import cache_dir
from .corpora import SPLITS, load_pairs, load_text, names, split_of
from .counting import english, german
from .pairs import BucketBatchSampler, encode_pairs, pair_loader
from .tokenizer import BOS_ID, EOS_ID, PAD_ID, train_tokenizer
from .translation import SPECIAL_IDS, Translation, collate, translation

__all__ = [
    "BOS_ID",
    "EOS_ID",
    "PAD_ID",
    "SPECIAL_IDS",
    "SPLITS",
    "BucketBatchSampler",
    "Translation",
    "cache_dir",
    "collate",
    "encode_pairs",
    "english",
    "german",
    "load_pairs",
    "load_text",
    "names",
    "pair_loader",
    "split_of",
    "train_tokenizer",
    "translation",
]
