"""A CLIP tokenizer whose vocabulary is trimmed to given words: each is one token, the rest falls to bytes."""

import json
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPTokenizer

CONTEXT_LENGTH = 16


def load_tokenizer(folder: Path, words: list[str]) -> CLIPTokenizer:
    """The tokenizer in a folder, made and saved there the first time.

    Learning breaks ties at random: a tokenizer made again has other ids, and a resumed training needs its own.
    """
    if not (folder / "tokenizer_config.json").exists():
        make_tokenizer(words).save_pretrained(folder)
    return CLIPTokenizer.from_pretrained(folder)


def make_tokenizer(words: list[str]) -> CLIPTokenizer:
    """Byte-pair merges learned on the words alone. The end token has the highest id, as CLIP's pooling needs."""
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=4096, end_of_word_suffix="</w>", initial_alphabet=alphabet, show_progress=False
    )
    learner.train_from_iterator(words, trainer)

    merges = [tuple(pair) for pair in _merges(learner)]
    tokens = [*alphabet, *(f"{byte}</w>" for byte in alphabet), *("".join(pair) for pair in merges)]
    tokens = [*dict.fromkeys(tokens), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(
        vocab={token: index for index, token in enumerate(tokens)}, merges=merges, model_max_length=CONTEXT_LENGTH
    )


def _merges(learner: Tokenizer) -> list[list[str]]:
    pairs = json.loads(learner.to_str())["model"]["merges"]
    return [pair.split(" ") if isinstance(pair, str) else pair for pair in pairs]
