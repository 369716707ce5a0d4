"""A tokenizer of whole words, for tiny models of random weights."""

from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from lbgen_hf.rewards.quality.levels import ANSWER, QUESTION
from lbgen_hf.rewards.quality.scorer import LEVELS


def make_tokenizer(*special_tokens: str) -> PreTrainedTokenizerFast:
    """Knows the words of the prompt and the levels; puts a start token before a text, as Llama's did."""
    words = ["<unk>", "<s>", "</s>", "<pad>", *special_tokens, "\n", ":", "?", "USER", "ASSISTANT", *LEVELS]
    words += [*QUESTION.rstrip("?").split(), *ANSWER.split()]
    vocabulary = {word: place for place, word in enumerate(dict.fromkeys(words))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex("[ ]+"), "removed"),
            pre_tokenizers.Split(Regex("[\n:?]"), "isolated"),
        ]
    )
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", vocabulary["<s>"])])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        additional_special_tokens=list(special_tokens),
    )
