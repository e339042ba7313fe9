"""The lab's tokenizer: one token per word or punctuation mark of the grammar, so lengths count words."""

import re

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from prefopt.lab import lexicon as lex
from prefopt.lab.grammar import WORDS
from prefopt.lab.writer import EXAMPLE

PAD, BOS, EOS, UNKNOWN = "<pad>", "<s>", "</s>", "<unk>"
MARKS = ",.:!?()"
CONTEXT = 128  # tokens; the longest prompt and review need fewer


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Make the tokenizer. It is the same every time: the vocabulary is that of the grammar and the prompts.

    White space only separates tokens. So a completion has the same tokens with or without a space before it, and a
    prompt and a completion can be encoded apart or as one text: no token ever spans the two. Encoding puts ``<s>``
    first unless ``add_special_tokens=False``; ``</s>`` is left to whoever ends a text.
    """
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(_vocabulary())}, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), *(pre_tokenizers.Split(mark, "isolated") for mark in MARKS)]
    )
    attach = [decoders.Replace(" " + mark, mark) for mark in MARKS if mark != "("]
    tokenizer.decoder = decoders.Sequence(
        [decoders.WordPiece(prefix="##", cleanup=False), *attach, decoders.Fuse(), decoders.Replace("( ", "(")]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNKNOWN,
        padding_side="left",
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


def _vocabulary() -> list[str]:
    """Special tokens, punctuation, and every word as it is and with a capital, which a mistake can give to any."""
    prompt = re.findall(r"[\w']+", EXAMPLE.prompt)
    words = {word for word in (*WORDS, *prompt, *lex.ASPECTS) if word[0].isalpha()}
    words |= {word for cuisine in lex.CUISINES for word in cuisine.split()}
    return [PAD, BOS, EOS, UNKNOWN, *MARKS, *sorted(words | {word[0].upper() + word[1:] for word in words})]
