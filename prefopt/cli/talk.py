"""`prefopt generate` and `prefopt chat`."""

import sys
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from prefopt.core.errors import DataError, UsageError
from prefopt.data import DataSettings, Encoder
from prefopt.data.reasons import SkipRow
from prefopt.models import SavedModel, load_tokenizer, load_trained
from prefopt.rollouts import GenerationSettings, TransformersGenerator


class Talker:
    """A model that answers prompts, encoded as the run that saved the model encoded its data.

    Args:
        model: path or hub id of a model or adapter.
        seed: of the sampling.
        prerendered: whether plain prompts hold the tokens of the chat template already.
        settings: fields of `GenerationSettings`.
    """

    def __init__(self, model: str, seed: int, *, prerendered: bool = False, **settings: Any) -> None:
        self.settings = GenerationSettings.of(settings)
        self.tokenizer: PreTrainedTokenizerBase = load_tokenizer(model)
        recorded = SavedModel.of(model).encoding
        self.encoder = Encoder(self.tokenizer, DataSettings.of({**recorded, "prerendered": prerendered}))
        self.model = load_trained(model)
        torch.manual_seed(seed)

    def answers(self, prompts: list[str | list[dict]]) -> list[list[str]]:
        """For each prompt (plain text, or messages put through the chat template) the sampled completions.

        Raises:
            DataError: a prompt that cannot be encoded.
        """
        generator = TransformersGenerator(self.tokenizer, self.encoder.stop_ids())
        samples = generator.generate(self.model, [self._encode(prompt) for prompt in prompts], self.settings)
        return [[sample.text for sample in group] for group in samples]

    def _encode(self, prompt: str | list[dict]) -> Any:
        try:
            return self.encoder.prompt(prompt)
        except SkipRow as skip:
            raise DataError(f"this prompt cannot be answered; it is one {skip.cause}.") from skip


def run_generate(
    model: str, prompts: list[str] | None, raw: bool, seed: int, *, prerendered: bool = False, **settings: Any
) -> None:
    """Print completions to standard output, prompts before them when there are several."""
    prompts = prompts or [line.rstrip("\n") for line in sys.stdin if line.strip()]
    if not prompts:
        raise UsageError("no prompt: give --prompt TEXT, or lines on standard input.")
    talker = Talker(model, seed, prerendered=prerendered, **settings)
    templated = not raw and not prerendered and talker.tokenizer.chat_template is not None
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
