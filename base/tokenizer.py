"""A tiny CLIP tokenizer: it holds all bytes, so that any text has ids, and merges for the captions' words."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

from base.captions import vocabulary

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

CONTEXT: Final = 24
START, END = "<|startoftext|>", "<|endoftext|>"


def _byte_alphabet() -> list[str]:
    """The printable characters that stand for the 256 bytes, as in GPT-2 and CLIP."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + i) for i in range(len(others))]


def _merges(words: list[str]) -> list[tuple[str, str]]:
    """The merges that join each word from left to right; words share the merges of a common prefix."""
    merges: dict[tuple[str, str], None] = {}
    for word in words:
        parts = [*word[:-1], word[-1] + "</w>"]
        while len(parts) > 1:
            # The tokenizer applies the earliest merge first, so this word must replay earlier words' merges in order.
            ranked = [pair for pair in pairwise(parts) if pair in merges]
            pair = min(ranked, key=list(merges).index) if ranked else (parts[0], parts[1])
            merges.setdefault(pair)
            at = next(i for i in range(len(parts) - 1) if (parts[i], parts[i + 1]) == pair)
            parts[at : at + 2] = [pair[0] + pair[1]]
    return list(merges)


def make_tokenizer() -> CLIPTokenizer:
    """The tokenizer of both text towers; the end token has the highest id and also pads."""
    from transformers import CLIPTokenizer

    alphabet = _byte_alphabet()
    merges = _merges([word for word in vocabulary() if len(word) > 1])
    tokens = [*alphabet, *(letter + "</w>" for letter in alphabet), *(a + b for a, b in merges), START, END]
    vocab = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    pairs: Any = merges  # annotated as strings upstream, read as pairs
    return CLIPTokenizer(vocab=vocab, merges=pairs, model_max_length=CONTEXT)
