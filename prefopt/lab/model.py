"""The lab's model: a Llama of about one million parameters, which two CPU cores train in little more than a minute."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from prefopt.lab.tokenizer import CONTEXT


def build_config(tokenizer: PreTrainedTokenizerBase) -> LlamaConfig:
    """The model's shape, with the special tokens of its tokenizer."""
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=160,
        intermediate_size=440,
        num_hidden_layers=3,
        num_attention_heads=5,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        # Larger than usual: in a run of a few hundred steps the model then learns far sooner to look at the prompt.
        initializer_range=0.06,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def build_model(tokenizer: PreTrainedTokenizerBase, seed: int = 0) -> LlamaForCausalLM:
    """An untrained model in float32. The weights depend on the seed alone; PyTorch's global generator is untouched."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(build_config(tokenizer))
