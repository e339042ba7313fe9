"""From messages to the exact text that a model sees, and which stretches of it the loss is taken on."""

import copy
import inspect
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from prefopt.core.errors import DataError, UsageError, did_you_mean
from prefopt.data.control import ControlTokens, written_out
from prefopt.data.examples import Text
from prefopt.data.messages import as_messages, is_open, trains
from prefopt.data.reasons import Reason, SkipRow
from prefopt.data.settings import DataSettings

PLAIN_NOTE = "the tokenizer has no chat template: turns are written as plain text, under lines 'User:' and 'Assistant:'"
_NAMES = {"user": "User", "assistant": "Assistant", "system": "System", "developer": "System", "tool": "Tool"}
_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
_PROBE = "\ufdd2"


@dataclass(frozen=True)
class Segment:
    """A stretch of text after the prompt.

    Attributes:
        text: what the model sees; marks stand around the text of control tokens in words (see `control`).
        counts: whether the model is to write it.
        ends: whether a turn of the model ends here, so that it must end in an end-of-turn token.
    """

    text: str
    counts: bool
    ends: bool = False


def render_prompt(
    prompt: Text, tokenizer: Any, settings: DataSettings | None = None, *, tools: Sequence | None = None
) -> str:
    """The text that a completion continues, in training and in generation alike.

    Messages go through the tokenizer's chat template, with the generation prompt and ``settings.template_args``; where
    it has none, turns are written as plain text. A plain string is used as it is.

    Args:
        prompt: a string or messages.
        tokenizer: a `PreTrainedTokenizerBase`.
        settings: ``template_args`` is used.
        tools: tool schemas for the chat template.

    Raises:
        DataError: the chat template refuses these messages.
        UsageError: a template argument that the chat template does not read.
    """
    if isinstance(prompt, str):
        return prompt
    try:
        renderer = Renderer(tokenizer, DataSettings.of(settings))
        return written_out(renderer.render(prompt, open_turn=True, tools=tools))
    except SkipRow as skip:
        raise DataError(f"this prompt cannot be rendered; it is one {skip.cause}.") from skip


class Renderer:
    """Renders messages for one tokenizer and one set of template arguments.

    Control tokens in somebody's words come out between marks (see `prefopt.data.control`).

    Attributes:
        controls: the control tokens.

    Raises:
        UsageError: a template argument that the chat template does not read.
    """

    def __init__(self, tokenizer: Any, settings: DataSettings) -> None:
        self.tokenizer = tokenizer
        self.arguments = dict(settings.template_args)
        self.has_template = bool(getattr(tokenizer, "chat_template", None))
        self.prerendered = settings.prerendered
        self._check_arguments()
        self.controls = ControlTokens(tokenizer, self._skeleton())

    def with_arguments(self, arguments: Mapping[str, Any]) -> "Renderer":
        """The same renderer with those of further arguments that the template reads, which win over its own."""
        other = copy.copy(self)
        # They come with the data, which must not speak with the template's voice.
        further = {name: self.controls.guard(value) for name, value in arguments.items() if self.reads(name)}
        other.arguments = {**self.arguments, **further}
        return other

    def reads(self, name: str) -> bool:
        """Whether the template reads an argument of this name, and the argument means nothing else."""
        # A row must not replace the template, the messages, or BOS and EOS.
        if not self.has_template or name in self._reserved:
            return False
        return self._known is None or name in self._known

    @cached_property
    def _reserved(self) -> set[str]:
        return {*inspect.signature(self.tokenizer.apply_chat_template).parameters, *self.tokenizer.special_tokens_map}

    @cached_property
    def _known(self) -> set[str] | None:
        return _variables(self.tokenizer.chat_template)

    @property
    def marks_generation(self) -> bool:
        """Whether the template itself says what the assistant writes, with ``{% generation %}``."""
        template = self.tokenizer.chat_template
        return isinstance(template, str) and bool(_GENERATION.search(template))

    def render(self, messages: list[dict], *, open_turn: bool = False, tools: Sequence | None = None) -> str:
        """Text of a conversation; with ``open_turn`` it ends where the assistant begins to write.

        A last turn of the assistant is the start of what it writes, so that an open turn ends behind its words.

        Raises:
            SkipRow: the chat template refuses these messages, or they end in a tool call.
        """
        if open_turn and is_open(messages):
            return self._continued(messages, tools)
        return self._render(messages, open_turn=open_turn, tools=tools)

    def _continued(self, messages: list[dict], tools: Sequence | None) -> str:
        """Text of a conversation whose last turn is the start of an answer, up to the last word of it."""
        if len(messages) == 1 or messages[-1].get("tool_calls"):
            raise SkipRow(Reason.NO_PROMPT if len(messages) == 1 else Reason.CALL_AT_END)
        opened = self._render(messages[:-1], open_turn=True, tools=tools)
        content = self.controls.turn(messages[-1])["content"]
        words = content.strip()
        if not words:
            return opened
        # The template may write a space before the words, which the prompt then has as well.
        closed = self._render(messages, open_turn=False, tools=tools)
        place = closed.find(words, len(opened))
        if place < 0 or not closed.startswith(opened):
            raise SkipRow(Reason.TEMPLATE_BREAKS_PROMPT)
        return closed[: place + len(words)] + content[len(content.rstrip()) :]

    def _render(self, messages: list[dict], *, open_turn: bool, tools: Sequence | None) -> str:
        if not self.has_template:
            if tools:
                raise SkipRow(Reason.TOOLS_WITHOUT_TEMPLATE)
            return "".join(segment.text for segment in self._plain(messages)) + ("Assistant:\n" if open_turn else "")
        return self._apply(messages, add_generation_prompt=open_turn, tools=tools, tokenize=False)

    def plain(self, text: str, *, assistant: bool = False) -> str:
        """A text that is used as it is, without the template; what was rendered beforehand keeps its tokens."""
        return text if self.prerendered else self.controls.guard(text, assistant=assistant)

    def segments(self, prompt: Text, completion: Text, tools: Sequence | None = None) -> tuple[str, list[Segment]]:
        """The prompt's text and the stretches after it.

        Of a completion in messages every assistant turn counts; the turns between, and what the template puts around
        them, do not.

        Raises:
            SkipRow: the template refuses the turns, or renders earlier ones differently once later ones follow, so that
                the model would be trained on a text that it never generates from.
        """
        if isinstance(prompt, str) and isinstance(completion, str):
            return self.plain(prompt), [Segment(self.plain(completion, assistant=True), counts=True, ends=True)]
        prompt, completion = as_messages(prompt, "user"), as_messages(completion, "assistant")
        start = self.render(prompt, open_turn=True, tools=tools)
        if not self.has_template:
            # The first part is the header of the turn that the prompt has opened.
            return start, self._plain(completion)[1:]
        if is_open(prompt):
            prompt, completion = prompt[:-1], [_joined(prompt[-1], completion[0]), *completion[1:]]
        return start, self._spans(prompt, completion, start, tools)

    def assistant_tokens(self, messages: list[dict], tools: Sequence | None = None) -> tuple[list[int], list[int]]:
        """Token ids of a whole conversation and, from a ``{% generation %}`` template, 1 where the assistant writes."""
        made = self._marked_tokens(messages, tools)
        return list(made["input_ids"]), list(made["assistant_masks"])

    def assistant_segments(self, messages: list[dict], tools: Sequence | None = None) -> list[Segment]:
        """The same in words, for a conversation with the text of control tokens in it."""
        text, made = self.render(messages, tools=tools), self._marked_tokens(messages, tools)
        places = [place for place, counts in enumerate(made["assistant_masks"]) if counts]
        written = {letter for place in places for letter in range(*made.token_to_chars(place))}
        runs = itertools.groupby(range(len(text)), key=lambda letter: letter in written)
        return [Segment("".join(text[letter] for letter in run), counts) for counts, run in runs]

    def _marked_tokens(self, messages: list[dict], tools: Sequence | None) -> Any:
        return self._apply(messages, tools=tools, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)

    def _spans(self, prompt: list[dict], completion: list[dict], start: str, tools: Sequence | None) -> list[Segment]:
        messages = [*prompt, *completion]
        whole = self.render(messages, tools=tools)
        segments, place = [], 0
        for number in range(len(prompt), len(messages)):
            if not trains(messages[number]):
                continue
            before = start if number == len(prompt) else self._render(messages[:number], open_turn=True, tools=tools)
            after = self._end_of_turn(self.render(messages[: number + 1], tools=tools), whole)
            if not after.startswith(before):
                raise SkipRow(Reason.TEMPLATE_BREAKS_PROMPT)
            if not whole.startswith(after) or len(before) < place:
                raise SkipRow(Reason.TEMPLATE_REWRITES)
            place = place or len(start)
            if len(before) > place:
                segments.append(Segment(whole[place : len(before)], counts=False))
            segments.append(Segment(whole[len(before) : len(after)], counts=True, ends=True))
            place = len(after)
        return segments

    def _end_of_turn(self, text: str, whole: str) -> str:
        """The text of a conversation up to the end of its last turn, for a template that closes the text as well.

        Some write EOS behind the last turn, which ends in a token of its own. Where the conversation goes on, EOS is
        not there.
        """
        closed, eos = text.rstrip(), getattr(self.tokenizer, "eos_token", None)
        if whole.startswith(text) or not eos or not closed.endswith(eos):
            return text
        turn = closed.removesuffix(eos)
        ends = tuple(self.tokenizer.all_special_tokens)
        return turn if whole.startswith(turn) and turn.rstrip().endswith(ends) else text

    def _plain(self, messages: list[dict]) -> list[Segment]:
        """Turns without a template: a header line, the content, and for the assistant the end-of-sequence token."""
        segments = []
        for message in messages:
            counts, content = trains(message), self.controls.turn(message)["content"]
            if message.get("tool_calls"):
                raise SkipRow(Reason.CALLS_WITHOUT_TEMPLATE)
            segments.append(Segment(f"{_NAMES[message['role']]}:\n", counts=False))
            if message["role"] == "assistant":
                segments.append(Segment(content + self._eos(), counts=counts, ends=True))
                content = ""
            segments.append(Segment(f"{content}\n\n", counts=False))
        return segments

    def _eos(self) -> str:
        if self.tokenizer.eos_token is None:
            raise UsageError("the tokenizer has no EOS token, so no completion could end; set tokenizer.eos_token.")
        return self.tokenizer.eos_token

    def _apply(self, messages: list[dict], tools: Sequence | None, **options: Any) -> Any:
        # weight and train are for the loss, not for the template.
        shown = [{key: value for key, value in turn.items() if key not in ("weight", "train")} for turn in messages]
        if any("tool_calls" in turn for turn in shown) and self._calls_as_text:
            shown = _with_text(shown)
        guarded = [self.controls.turn(turn) for turn in shown], self.controls.guard(tools) if tools else None
        return self._template(*guarded, **options)

    def _template(self, messages: list[dict], tools: Sequence | None, **options: Any) -> Any:
        import jinja2

        try:
            return self.tokenizer.apply_chat_template(messages, tools=tools, **options, **self.arguments)
        except jinja2.TemplateSyntaxError as error:
            raise DataError(f"the chat template of the tokenizer is not valid: {error}.") from error
        except (jinja2.TemplateError, TypeError, KeyError) as error:
            raise SkipRow(Reason.TEMPLATE_REFUSES, error=str(error).splitlines()[0]) from error

    def _skeleton(self) -> list[str]:
        """What the template writes around the words of a short conversation; nothing where it refuses that."""
        if not self.has_template:
            return []
        turns = [{"role": "user", "content": _PROBE}, {"role": "assistant", "content": _PROBE}]
        try:
            return self._template(turns, None, tokenize=False).split(_PROBE)
        except SkipRow:
            return []

    @cached_property
    def _calls_as_text(self) -> bool:
        """Whether the template writes the arguments of a tool call as they come, so that they must come as JSON.

        Most templates turn a mapping into JSON; with text they would encode it a second time. Others write what they
        get, or add it to a string, and of a mapping they would write Python or nothing.
        """
        call = {"id": "call12345", "type": "function", "function": {"name": "f", "arguments": {"probe": "p"}}}
        turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "", "tool_calls": [call]}]
        for text, probe in ((False, turns), (True, _with_text(turns))):
            try:
                written = self.tokenizer.apply_chat_template(probe, tokenize=False, **self.arguments)
            except Exception:  # a template may fail on the probe in any way
                continue
            if re.search(r'\{\s*"probe":\s*"p"\s*\}', written):
                return text
        return False

    def _check_arguments(self) -> None:
        if not self.arguments:
            return
        if not self.has_template:
            raise UsageError(
                f"data: template_args={self.arguments!r} would have no effect: the tokenizer has no chat template."
            )
        known = self._known
        for name in self.arguments:
            if known is not None and name not in known:
                near = did_you_mean(name, known)
                raise UsageError(f"data: template_args: the chat template does not read {name!r}.{near}")


def _joined(start: Mapping, rest: Mapping) -> dict:
    """One turn of the start of an answer and of what continues it."""
    kept = {key: value for key, value in start.items() if key not in ("weight", "train")}
    return {**kept, **rest, "content": start["content"] + rest["content"]}


def _with_text(value: Any) -> Any:
    """Messages or tool calls, with the arguments of calls as JSON text."""
    if isinstance(value, list):
        return [_with_text(one) for one in value]
    if not isinstance(value, Mapping):
        return value
    return {
        key: json.dumps(one, ensure_ascii=False)
        if key == "arguments" and isinstance(one, Mapping)
        else _with_text(one)
        if key in ("tool_calls", "function")
        else one
        for key, one in value.items()
    }


def _variables(template: str | Mapping) -> set[str] | None:
    """Names that a template reads from outside; None where that cannot be told."""
    import jinja2
    import jinja2.meta

    if not isinstance(template, str):
        return None
    # The generation block is an extension that means nothing to the question.
    source = re.sub(r"\{%-?\s*(end)?generation\s*-?%\}", "", template)
    environment = jinja2.Environment(extensions=["jinja2.ext.loopcontrols"])
    try:
        return jinja2.meta.find_undeclared_variables(environment.parse(source))
    except jinja2.TemplateError:
        return None
