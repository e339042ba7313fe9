"""Small tokenizers with the seams of the real ones: byte-level and SentencePiece-like, and several chat templates."""

import functools
import os
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

CORPUS = [
    "Once upon a time there was a little dog. The dog said hello to the cat.",
    "The sky is blue. The night is black. What colour is the sky? Hi there, how are you?",
] * 4

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Marks what the assistant writes; the end-of-turn token is left outside, as some published templates do.
GENERATION = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}{% else %}{{ m.content }}"
    "{% endif %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA2 = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% if m.role == 'user' %}{{ bos_token + '[INST] ' + m.content + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content + ' ' + eos_token }}{% endif %}{% endfor %}"
)
# Thinking is shown in the last turn and stripped from earlier ones.
QWEN3 = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.last %}{{ '<think>\n' + (m.reasoning_content or '') + '\n</think>\n\n' }}"
    "{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}"
)


def byte_level(template=None, bos=None, eos="<|endoftext|>"):
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<s>", "</s>"]
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    core.train_from_iterator(CORPUS, trainer)
    if bos:
        number = core.token_to_id(bos)
        core.post_processor = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, number)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token=eos, bos_token=bos, pad_token="<|endoftext|>")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = template
    return tokenizer


def sentencepiece_like():
    """Puts a space before everything, has tokens that reach across words, and sets BOS."""
    core = Tokenizer(models.BPE(unk_token="<unk>"))
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    core.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    alphabet = [chr(code) for code in range(33, 127)] + ["▁", "\n"]
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<unk>", "<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    core.train_from_iterator(CORPUS, trainer)
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


@functools.cache
def byte_level_with(template):
    """The byte-level tokenizer with a template of a test's own."""
    return byte_level(template)


@pytest.fixture(scope="session")
def make():
    """A tokenizer by name."""
    made = {
        "plain": byte_level(),
        "bos": byte_level(bos="<s>", eos="</s>"),
        "chatml": byte_level(CHATML),
        "generation": byte_level(GENERATION),
        "llama2": byte_level(LLAMA2, bos="<s>", eos="</s>"),
        "qwen3": byte_level(QWEN3),
        "sentencepiece": sentencepiece_like(),
        "own": byte_level_with,
    }
    return made.__getitem__


@pytest.fixture(scope="session")
def shared():
    folder = Path(os.environ.get("PREFOPT_SHARED", "../shared"))
    if not (folder / "data").is_dir():
        pytest.skip(f"the shared folder with real data is not there ({folder}); set PREFOPT_SHARED")
    return folder


@pytest.fixture(scope="session")
def stories(shared):
    return AutoTokenizer.from_pretrained(shared / "models" / "tinystories-656k")
