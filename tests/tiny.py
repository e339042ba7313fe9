"""A tiny random model with a tokenizer, and data in its words: what tests of the trainer run on."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

WORDS = [
    "a",
    "b",
    "c",
    "d",
    "e",
    "f",
    "g",
    "h",
    "i",
    "j",
    "k",
    "l",
    "m",
    "n",
    "o",
    "p",
    "good",
    "bad",
    "fine",
    "poor",
    "very",
    "not",
    "so",
]
TEMPLATE = (
    "{% for m in messages %}{{ '<' + m['role'] + '> ' + m['content'] + ' </s> ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant> ' }}{% endif %}"
)


def tokenizer() -> PreTrainedTokenizerFast:
    special = ["<pad>", "<s>", "</s>", "<unk>", "<user>", "<assistant>", "<system>"]
    vocabulary = {word: index for index, word in enumerate([*special, *WORDS])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )


def model(seed: int = 0, dtype: torch.dtype = torch.float32) -> LlamaForCausalLM:
    """Two layers, hidden size 32, with weights wide enough that mistakes show."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=7 + len(WORDS),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.3,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config).to(dtype)


def save(folder: Path, seed: int = 0) -> Path:
    model(seed).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def words(generator: torch.Generator, low: int, high: int) -> str:
    length = int(torch.randint(low, high + 1, (), generator=generator))
    return " ".join(WORDS[int(i)] for i in torch.randint(0, len(WORDS), (length,), generator=generator))


def pairs(n: int, seed: int = 0) -> list[dict]:
    """Pairs of completions of 1 to 9 words, of very different lengths, with prompts that all differ."""
    generator = torch.Generator().manual_seed(seed)
    return [
        {
            "prompt": f"{words(generator, 2, 6)} {' '.join(WORDS[(i // 5**k) % 5] for k in range(4))} ",
            "chosen": words(generator, 1, 9),
            "rejected": words(generator, 1, 9),
            "score_chosen": 1.0 + i % 3,
            "score_rejected": 0.5 - i % 2,
        }
        for i in range(n)
    ]


def labelled(n: int, seed: int = 0) -> list[dict]:
    return [
        {"prompt": row["prompt"], "completion": row["chosen"], "label": i % 2 == 0}
        for i, row in enumerate(pairs(n, seed))
    ]


def ranked(n: int, seed: int = 0) -> list[dict]:
    """Groups of 2 to 4 scored completions, two of which are tied in every third group."""
    generator = torch.Generator().manual_seed(seed + 1)
    rows = []
    for i, row in enumerate(pairs(n, seed)):
        texts = list(dict.fromkeys([row["chosen"], row["rejected"], *(words(generator, 2, 9) for _ in range(i % 3))]))
        scores = [1.5 - 0.75 * k for k in range(len(texts))]
        if i % 3 == 2:
            scores[-1] = scores[-2]
        rows.append({"prompt": row["prompt"], "completions": texts, "scores": scores})
    return rows
