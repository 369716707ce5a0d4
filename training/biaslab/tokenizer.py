"""A CLIP tokenizer whose vocabulary is trimmed to given words: each is one token, the rest falls to bytes."""

from itertools import pairwise

from tokenizers import pre_tokenizers
from transformers import CLIPTokenizer

CONTEXT_LENGTH = 16


def make_tokenizer(words: list[str]) -> CLIPTokenizer:
    """Byte pairs are merged until each word is one token. The end token has the highest id, as CLIP's pooling needs."""
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    merges: list[tuple[str, str]] = []
    for word in words:
        letters = to_bytes.pre_tokenize_str(word)[0][0]
        symbols = _merge_all([*letters[:-1], f"{letters[-1]}</w>"], merges)
        while len(symbols) > 1:  # what is added comes after the merges of earlier words, and leaves them as they are
            merges.append((symbols[0], symbols[1]))
            symbols = _merge_all(symbols, merges)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*alphabet, *(f"{byte}</w>" for byte in alphabet), *("".join(pair) for pair in merges)]
    tokens = [*dict.fromkeys(tokens), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(
        vocab={token: index for index, token in enumerate(tokens)}, merges=merges, model_max_length=CONTEXT_LENGTH
    )


def _merge_all(symbols: list[str], merges: list[tuple[str, str]]) -> list[str]:
    """Byte-pair encoding: the earliest merge that some neighbours have is made first, until none have any."""
    while found := [pair for pair in pairwise(symbols) if pair in merges]:
        left, right = min(found, key=merges.index)
        at = next(i for i in range(len(symbols)) if symbols[i : i + 2] == [left, right])
        symbols = [*symbols[:at], left + right, *symbols[at + 2 :]]
    return symbols
