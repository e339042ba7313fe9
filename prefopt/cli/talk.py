"""`prefopt generate` and `prefopt chat`."""

import sys
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from prefopt.core.errors import UsageError
from prefopt.data import DataSettings, Encoder
from prefopt.models import ModelSettings, load_policy, load_tokenizer
from prefopt.models.precision import compute_dtype
from prefopt.rollouts import GenerationSettings, TransformersGenerator


class Talker:
    """A model that answers prompts.

    Args:
        model: path or hub id of a model or adapter.
        settings: fields of `GenerationSettings`.
    """

    def __init__(self, model: str, seed: int, **settings: Any) -> None:
        self.settings = GenerationSettings.of(settings)
        self.tokenizer: PreTrainedTokenizerBase = load_tokenizer(model)
        self.model = load_policy(model, ModelSettings(dtype=compute_dtype()))
        if torch.cuda.is_available():
            self.model.to("cuda")
        torch.manual_seed(seed)

    def answers(self, prompts: list[str | list[dict]]) -> list[list[str]]:
        """For each prompt (plain text, or messages put through the chat template) the sampled completions."""
        encoder = Encoder(self.tokenizer, DataSettings())
        generator = TransformersGenerator(self.tokenizer, encoder.stop_ids())
        samples = generator.generate(self.model, [encoder.prompt(prompt) for prompt in prompts], self.settings)
        return [[sample.text for sample in group] for group in samples]


def run_generate(model: str, prompts: list[str] | None, raw: bool, seed: int, **settings: Any) -> None:
    """Print completions to standard output, prompts before them when there are several."""
    prompts = prompts or [line.rstrip("\n") for line in sys.stdin if line.strip()]
    if not prompts:
        raise UsageError("no prompt: give --prompt TEXT, or lines on standard input.")
    talker = Talker(model, seed, **settings)
    templated = not raw and talker.tokenizer.chat_template is not None
    asked = [[{"role": "user", "content": prompt}] if templated else prompt for prompt in prompts]
    for prompt, group in zip(prompts, talker.answers(asked), strict=True):
        for completion in group:
            if len(prompts) > 1:
                print(f">>> {prompt}")
            print(completion.strip())


def run_chat(model: str, system: str | None, seed: int, **settings: Any) -> None:
    """Read turns from standard input and answer each, with the whole conversation as prompt."""
    talker = Talker(model, seed, n=1, **settings)
    start = [{"role": "system", "content": system}] if system else []
    messages = list(start)
    while True:
        try:
            line = input("you> " if sys.stdin.isatty() else "").strip()
        except EOFError:
            return
        if not line:
            return
        if line == "/new":
            messages = list(start)
            continue
        messages.append({"role": "user", "content": line})
        answer = talker.answers([messages])[0][0].strip()
        messages.append({"role": "assistant", "content": answer})
        print(answer)
