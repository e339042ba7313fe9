"""Prompt and completion as token ids: every seam where a token could be doubled, lost or merged is here."""

import copy
import functools
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from prefopt.core.errors import UsageError
from prefopt.data.control import OPEN, apart
from prefopt.data.examples import Text
from prefopt.data.messages import as_messages, is_open, trains
from prefopt.data.reasons import Reason, SkipRow
from prefopt.data.settings import DataSettings
from prefopt.data.template import Renderer, Segment
from prefopt.data.values import read_tools


class Encoded(NamedTuple):
    """Token ids of a completion and which of them count."""

    ids: np.ndarray
    mask: np.ndarray


class Encoder:
    """Encodes prompts and completions for one tokenizer.

    Attributes:
        renderer: the chat template, or the plain text in its place.

    Raises:
        UsageError: the tokenizer has no EOS token.
    """

    def __init__(self, tokenizer: Any, settings: DataSettings) -> None:
        self.tokenizer = tokenizer
        self.renderer = Renderer(tokenizer, settings)
        if tokenizer.eos_token_id is None:
            raise UsageError("the tokenizer has no EOS token, so no completion could end; set tokenizer.eos_token.")
        self.eos = tokenizer.eos_token_id
        bos = tokenizer.bos_token_id
        self._bos = [bos] if bos is not None and list(tokenizer("a").input_ids)[:1] == [bos] else []
        added = getattr(tokenizer, "added_tokens_decoder", {})
        self._special = {*tokenizer.all_special_ids, *(number for number, token in added.items() if token.special)}

    def with_arguments(self, arguments: Mapping[str, Any]) -> "Encoder":
        """The same encoder with further arguments for the chat template, such as those of one row."""
        if not arguments:
            return self
        other = copy.copy(self)
        other.renderer = self.renderer.with_arguments(arguments)
        return other

    def prompt(self, prompt: Text, tools: Any = None) -> np.ndarray:
        """Ids of a prompt, the same for training and for generation, with BOS once where the tokenizer sets one.

        Raises:
            SkipRow: the chat template refuses the messages, or nothing is left to condition on.
        """
        if isinstance(prompt, str):
            text = self.renderer.plain(prompt)
        else:
            text = self.renderer.render(prompt, open_turn=True, tools=read_tools(tools))
        return self._prompt(self._encode([text])[0], prompt)

    def completion(self, prompt: Text, completion: Text, tools: Any = None) -> tuple[np.ndarray, Encoded]:
        """Ids of a prompt and of one completion after it, which ends in EOS or the template's end-of-turn token.

        The prompt's ids are those of the prompt alone. Where the tokenizer would merge its last token with the first
        of the completion, the two are tokenized apart, because generation starts from the prompt alone.

        Raises:
            SkipRow: the template refuses or rewrites the turns, or there is no prompt.
        """
        start, segments = self.renderer.segments(prompt, completion, read_tools(tools))
        head, parts = self._seams(start, segments)
        templated = self.renderer.prerendered or (self.renderer.has_template and not isinstance(prompt, str))
        ids: list[int] = []
        mask: list[bool] = []
        while segments and not segments[-1].counts:
            segments, parts = segments[:-1], parts[:-1]
        for number, (segment, part) in enumerate(zip(segments, parts, strict=True)):
            last = number == len(segments) - 1
            kept, ended = self._close(part, templated) if segment.ends else (len(part), True)
            ids += part[:kept] if last else part
            mask += [segment.counts] * kept + ([] if last else [False] * (len(part) - kept))
            if last and not ended:
                ids.append(self.eos)
                mask.append(segment.counts)
        return self._prompt(head, prompt), _encoded(ids, mask)

    def demonstration(self, prompt: Text, completion: Text, tools: Any = None) -> tuple[np.ndarray, Encoded]:
        """Like `completion`; a template that marks what the assistant writes (``{% generation %}``) is believed."""
        chat = isinstance(completion, list) and self.renderer.has_template and self.renderer.marks_generation
        if not chat or is_open(prompt) or any(not trains(turn) for turn in completion if turn["role"] == "assistant"):
            return self.completion(prompt, completion, tools)
        head = self.prompt(prompt, tools)
        messages = [*as_messages(prompt, "user"), *completion]
        if any(self.renderer.controls.found_in(text) for text in (prompt, completion)):
            return head, self._marked(*self._segmented(prompt, messages, read_tools(tools)))
        ids, mask = self.renderer.assistant_tokens(messages, read_tools(tools))
        if ids[: len(head)] != head.tolist():
            raise SkipRow(Reason.TEMPLATE_REWRITES)
        return head, self._marked(ids[len(head) :], [bool(counts) for counts in mask[len(head) :]])

    def stop_ids(self) -> list[int]:
        """Ids at which a completion ends: EOS, and the end-of-turn token of the chat template."""
        stops = [self.eos]
        if self.renderer.has_template:
            turns = [{"role": "user", "content": "a"}], [{"role": "assistant", "content": "b"}]
            try:
                _, (ids, _) = self.completion(*turns)
            except SkipRow:
                return stops
            stops += [int(ids[-1])] if ids[-1] != self.eos else []
        return stops

    def _segmented(self, prompt: Text, messages: list[dict], tools: Any) -> tuple[list[int], list[bool]]:
        """Ids after the prompt, and what the template says that the assistant writes of them."""
        start = self.renderer.render(as_messages(prompt, "user"), open_turn=True, tools=tools)
        segments = self.renderer.assistant_segments(messages, tools)
        whole = "".join(segment.text for segment in segments)
        if not whole.startswith(start):
            raise SkipRow(Reason.TEMPLATE_REWRITES)
        after, left = [], len(start)
        for segment in segments:
            text, left = segment.text[left:], max(0, left - len(segment.text))
            after += [Segment(text, segment.counts)] if text else []
        _, parts = self._seams(start, after)
        pairs = list(zip(after, parts, strict=True))
        return [i for _, ids in pairs for i in ids], [segment.counts for segment, ids in pairs for _ in ids]

    def _marked(self, ids: list[int], mask: list[bool]) -> Encoded:
        for place in range(1, len(ids)):
            # Some templates leave the end-of-turn token outside of the block; it must be learnt all the same.
            mask[place] = mask[place] or (mask[place - 1] and self._ends(ids, place, mask))
        if not any(mask):
            raise SkipRow(Reason.TEMPLATE_MARKS_NOTHING)
        while not mask[-1]:
            ids, mask = ids[:-1], mask[:-1]
        kept, ended = self._close(ids, templated=True)
        ids, mask = ids[:kept], mask[:kept]
        return _encoded(ids, mask) if ended else _encoded([*ids, self.eos], [*mask, True])

    def _ends(self, ids: list[int], place: int, mask: list[bool]) -> bool:
        return ids[place] in self._special and ids[place - 1] not in self._special and not mask[place]

    def _prompt(self, ids: list[int], prompt: Text) -> np.ndarray:
        # A chat template writes BOS itself, or means that there is none.
        if not (self.renderer.has_template and not isinstance(prompt, str)) and ids[: len(self._bos)] != self._bos:
            ids = [*self._bos, *ids]
        if not ids:
            raise SkipRow(Reason.EMPTY_PROMPT)
        return np.asarray(ids, dtype=np.int32)

    def _seams(self, start: str, segments: Sequence[Segment]) -> tuple[list[int], list[list[int]]]:
        """Ids of the prompt and of each segment: cut out of the whole where tokens respect the seams, else apart."""
        texts = [start]
        for segment in segments:
            texts.append(texts[-1] + segment.text)
        encoded = self._encode(texts)
        whole = encoded[-1]
        if all(whole[: len(part)] == part for part in encoded):
            places = [len(part) for part in encoded]
            return encoded[0], [whole[a:b] for a, b in itertools.pairwise(places)]
        return encoded[0], [self._apart(segment.text) for segment in segments]

    def _apart(self, text: str) -> list[int]:
        return apart(text, self._encode)

    def _close(self, ids: list[int], templated: bool) -> tuple[int, bool]:
        """How many ids reach up to the end-of-turn token, and whether there is one."""
        kept = len(ids)
        while kept and ids[kept - 1] not in self._special and not self.tokenizer.decode([ids[kept - 1]]).strip():
            kept -= 1
        if kept and (ids[kept - 1] == self.eos or (templated and ids[kept - 1] in self._special)):
            return kept, True
        return len(ids), False

    def _encode(self, texts: list[str]) -> list[list[int]]:
        if any(OPEN in text for text in texts):
            return [self.renderer.controls.encode(text, self._ids) for text in texts]
        return self._ids(texts)

    def control_text(self, prompt: Text, completions: Sequence[Text], tools: Any = None) -> bool:
        """Whether words hold the text of a control token that is written out as text."""
        controls = self.renderer.controls
        words = [] if self.renderer.prerendered and isinstance(prompt, str) else [prompt, *completions]
        found = any(controls.found_in(text, assistant=number > 0) for number, text in enumerate(words))
        return found or bool(tools and OPEN in str(controls.guard(str(tools))))

    def check_plain(self, prompt: Text, completions: Sequence[Text]) -> None:
        """Refuse a row of plain texts that were rendered beforehand, unless the settings say that they were.

        Such a prompt begins as the template begins, or with BOS; or every completion ends in EOS or the template's
        end-of-turn token.

        Raises:
            SkipRow: it was.
        """
        if self.renderer.prerendered or not isinstance(prompt, str):
            return
        start = prompt.lstrip()
        found = [token for token in self.renderer.controls.openers if start.startswith(token)]
        ends = [self._end_of(text) for text in completions]
        if not found and ends and all(ends):
            found = ends
        if found:
            raise SkipRow(Reason.PRERENDERED, token=found[0])

    def _end_of(self, completion: Text) -> str:
        """The token that ends a plain completion; empty where it ends in words."""
        if not isinstance(completion, str):
            return ""
        return next((token for token in self._ends_of_turn if completion.rstrip().endswith(token)), "")

    @functools.cached_property
    def _ends_of_turn(self) -> list[str]:
        return [self.tokenizer.convert_ids_to_tokens(number) for number in self.stop_ids()]

    def _ids(self, texts: list[str]) -> list[list[int]]:
        return self.tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]


def _encoded(ids: list[int], mask: list[bool]) -> Encoded:
    return Encoded(np.asarray(ids, dtype=np.int32), np.asarray(mask, dtype=bool))
