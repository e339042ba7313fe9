"""Turns of a conversation: reading them in every public spelling, and splitting them into prompt and completion."""

import json
import re
from collections.abc import Mapping
from typing import Any

from prefopt.data.examples import Text
from prefopt.data.reasons import Reason, SkipRow
from prefopt.data.values import parse_text, read_structure

ROLES = {
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "chatbot": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "system": "system",
    "developer": "developer",
    "tool": "tool",
    "observation": "tool",
    "function_response": "tool",
    "function": "tool",
}
# Other fields of a message (ids, ratings, a null for every column of an Arrow table) would reach, and break, templates.
_KEPT = ("tool_call_id", "name", "reasoning_content", "thinking", "weight", "train")
_MARKER = re.compile(r"(?:^|\n\n)(Human|Assistant):")


def is_turn(value: Any) -> bool:
    """Whether this is one message, in either spelling (role/content or from/value)."""
    return isinstance(value, Mapping) and ("role" in value or "from" in value) and not _is_columnar(value)


def is_messages(value: Any) -> bool:
    """Whether this is a list of messages, or a dict of lists as `datasets` stores sequences of structs."""
    return (isinstance(value, list) and bool(value) and all(map(is_turn, value))) or _is_columnar(value)


def is_conversation(value: Any) -> bool:
    """Whether this is a list of messages that does not begin with an answer, so that it holds its prompt."""
    if not is_messages(value):
        return False
    first = value[0] if isinstance(value, list) else {key: fields[0] for key, fields in value.items() if fields}
    return ROLES.get(str(first.get("role", first.get("from"))).lower()) != "assistant"


def read_text(value: Any, column: str) -> Text:
    """A string as it is; one message or a list of them as messages.

    Raises:
        SkipRow: the value is missing or neither.
    """
    if value is None:
        raise SkipRow(Reason.MISSING, column=column)
    if isinstance(value, str):
        return value
    if is_turn(value):
        return [read_turn(value)]
    if is_messages(value):
        return read_messages(value, column)
    if value == []:
        raise SkipRow(Reason.EMPTY_COLUMN, column=column)
    raise SkipRow(Reason.NOT_TEXT_OR_MESSAGES, column=column)


def read_string(value: Any, column: str) -> str:
    """A string.

    Raises:
        SkipRow: the value is missing or no string.
    """
    if value is None:
        raise SkipRow(Reason.MISSING, column=column)
    if not isinstance(value, str):
        raise SkipRow(Reason.NOT_TEXT, column=column)
    return value


def read_messages(value: Any, column: str) -> list[dict]:
    """A list of messages in the spelling role/content, with null fields and foreign fields removed.

    Raises:
        SkipRow: the value is missing, no list of messages, or holds an unknown role or content that is not text.
    """
    if value is None or value == []:
        raise SkipRow(Reason.MISSING, column=column)
    if not is_messages(value):
        raise SkipRow(Reason.NOT_MESSAGES, column=column)
    if isinstance(value, Mapping):
        value = [dict(zip(value, fields, strict=True)) for fields in zip(*value.values(), strict=True)]
    return [read_turn(turn) for turn in value]


def read_turn(turn: Mapping) -> dict:
    """One message as ``{"role", "content", ...}``; a null content is an empty string, never the word "None"."""
    message = {"role": _role(turn), "content": _content(turn.get("content", turn.get("value")))}
    # An empty list of calls is no call; templates that test `is defined` would render one.
    message.update({key: turn[key] for key in _KEPT if turn.get(key) is not None and turn[key] != []})
    if calls := read_calls(turn.get("tool_calls")) or _older_call(turn.get("function_call")):
        message["tool_calls"] = calls
    return message


def read_calls(value: Any) -> list[dict]:
    """Tool calls with their arguments as a mapping; OpenAI's API has the arguments as JSON text.

    Raises:
        SkipRow: the value holds no calls, or arguments that are no JSON object.
    """
    value = read_structure(value, "tool_calls")
    calls = [value] if isinstance(value, Mapping) else value or []
    if not isinstance(calls, list) or not all(isinstance(call, Mapping) for call in calls):
        raise SkipRow(Reason.NOT_CALLS)
    return [_read_call(call) for call in calls]


def _older_call(value: Any) -> list[dict]:
    """The field that OpenAI's API had before ``tool_calls``."""
    calls = read_calls(value)
    return [{"type": "function", "function": call} for call in calls]


def _read_call(call: Mapping) -> dict:
    if isinstance(call.get("function"), Mapping):
        return {**call, "function": _read_call(call["function"])}
    return {**call, **({"arguments": _arguments(call["arguments"])} if "arguments" in call else {})}


def _arguments(value: Any) -> Mapping:
    if value is None or (isinstance(value, str) and not value.strip()):
        return {}
    # Text within text comes of data that were encoded twice.
    while isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            value = parse_text(value)
    if not isinstance(value, Mapping):
        raise SkipRow(Reason.NOT_ARGUMENTS)
    return value


def user(content: str) -> dict:
    """A user turn."""
    return {"role": "user", "content": content}


def assistant(content: str) -> dict:
    """An assistant turn."""
    return {"role": "assistant", "content": content}


def as_messages(text: Text, role: str) -> list[dict]:
    """Messages as they are; a string as one turn of ``role``."""
    return [{"role": role, "content": text}] if isinstance(text, str) else text


def trains(message: Mapping) -> bool:
    """Whether the loss is taken on this turn: assistant turns, unless marked ``weight: 0`` or ``train: false``."""
    return message["role"] == "assistant" and message.get("weight", 1) != 0 and message.get("train", True) is not False


def is_open(prompt: Text) -> bool:
    """Whether a prompt ends in the start of an answer, which the completion continues."""
    return isinstance(prompt, list) and bool(prompt) and prompt[-1]["role"] == "assistant"


def is_empty(completion: Text) -> bool:
    """Whether there is nothing in it that the model could learn to write."""
    if isinstance(completion, str):
        return not completion.strip()
    return not any(trains(turn) and (turn["content"].strip() or turn.get("tool_calls")) for turn in completion)


def split_pair(prompt: Text | None, chosen: Text, rejected: Text) -> tuple[Text, Text, Text]:
    """Bring prompt, chosen and rejected to one shape: all strings, or all messages.

    Without a prompt, or where the message lists repeat it, the prompt is the turns that both share. Strings are never
    compared character by character: "…blue" and "…black" do not make a prompt of "…bl".

    Raises:
        SkipRow: there is no prompt, or the two answer different ones.
    """
    if isinstance(chosen, str) and isinstance(rejected, str):
        if prompt is None:
            return split_turns(read_transcript(chosen), read_transcript(rejected))
        if isinstance(prompt, str):
            return prompt, chosen, rejected
    chosen, rejected = as_messages(chosen, "assistant"), as_messages(rejected, "assistant")
    complete = chosen[0]["role"] != "assistant" and rejected[0]["role"] != "assistant"
    if prompt is None or (complete and isinstance(prompt, str)):
        return split_turns(chosen, rejected)
    prompt = as_messages(prompt, "user")
    return prompt, _without(prompt, chosen), _without(prompt, rejected)


def split_turns(chosen: list[dict], rejected: list[dict]) -> tuple[list[dict], list[dict], list[dict]]:
    """Shared leading turns, and what follows them on either side; what follows begins with an assistant turn.

    Raises:
        SkipRow: nothing is shared before the answers.
    """
    shared = 0
    # The last turn is always an answer, also where one conversation is the beginning of the other.
    while shared < min(len(chosen), len(rejected)) - 1 and chosen[shared] == rejected[shared]:
        shared += 1
    while shared > 0 and not (chosen[shared]["role"] == rejected[shared]["role"] == "assistant"):
        shared -= 1
    if shared == 0:
        raise SkipRow(Reason.NO_SHARED_PROMPT)
    return chosen[:shared], chosen[shared:], rejected[shared:]


def split_prompt(prompt: Text, completion: Text) -> tuple[Text, Text]:
    """Bring a prompt and one completion to the same shape; a completion that repeats the prompt loses it."""
    if isinstance(prompt, str) and isinstance(completion, str):
        return prompt, completion
    prompt = as_messages(prompt, "user")
    return prompt, _without(prompt, as_messages(completion, "assistant"))


def split_last(messages: list[dict]) -> tuple[list[dict], list[dict]]:
    """Everything before the last assistant turn, and that turn alone.

    Raises:
        SkipRow: the conversation does not end in an answer, or has no turn before it.
    """
    if messages[-1]["role"] != "assistant":
        raise SkipRow(Reason.NO_LAST_ANSWER)
    if len(messages) == 1:
        raise SkipRow(Reason.NO_PROMPT)
    return messages[:-1], messages[-1:]


def split_first(messages: list[dict]) -> tuple[list[dict], list[dict]]:
    """Everything before the first assistant turn, and the rest up to the last assistant turn.

    Raises:
        SkipRow: there is no assistant turn, or nothing before the first.
    """
    answers = [place for place, message in enumerate(messages) if message["role"] == "assistant"]
    if not answers:
        raise SkipRow(Reason.NO_ANSWER)
    if answers[0] == 0:
        raise SkipRow(Reason.NO_PROMPT)
    return messages[: answers[0]], messages[answers[0] : answers[-1] + 1]


def read_transcript(text: str) -> list[dict]:
    """Turns of a transcript with the markers ``\\n\\nHuman:`` and ``\\n\\nAssistant:`` (HH-RLHF).

    Turns of one speaker in a row become one, because most chat templates refuse them. Text before the first marker is
    a system turn.

    Raises:
        SkipRow: the text has no such marker.
    """
    head, *parts = _MARKER.split(text)
    if not parts:
        raise SkipRow(Reason.NO_MARKERS)
    turns = [{"role": "system", "content": head.strip()}] if head.strip() else []
    for speaker, content in zip(parts[::2], parts[1::2], strict=True):
        role = ROLES[speaker.lower()]
        if turns and turns[-1]["role"] == role:
            turns[-1]["content"] += "\n\n" + content.strip()
        else:
            turns.append({"role": role, "content": content.strip()})
    return turns


def is_transcript(value: Any) -> bool:
    """Whether this is a string with a Human marker."""
    return isinstance(value, str) and "Human:" in value and bool(_MARKER.search(value))


def key_of(text: Text) -> str:
    """A string that is equal for equal texts."""
    return text if isinstance(text, str) else json.dumps(text, sort_keys=True, default=str)


def _without(prompt: list[dict], messages: list[dict]) -> list[dict]:
    """The messages after the prompt that they repeat."""
    if messages[0]["role"] == "assistant":
        return messages
    if len(messages) > len(prompt) and messages[: len(prompt)] == prompt:
        return messages[len(prompt) :]
    raise SkipRow(Reason.OTHER_PROMPT)


def _is_columnar(value: Any) -> bool:
    return isinstance(value, Mapping) and any(isinstance(value.get(key), list) for key in ("role", "from"))


def _role(turn: Mapping) -> str:
    name = turn.get("role", turn.get("from"))
    role = ROLES.get(name.lower()) if isinstance(name, str) else None
    if role is None:
        raise SkipRow(Reason.UNKNOWN_ROLE, role=repr(name))
    return role


def _content(content: Any) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, list) and all(isinstance(part, Mapping) and part.get("type") == "text" for part in content):
        return "".join(part["text"] for part in content)
    raise SkipRow(Reason.CONTENT_NOT_TEXT)
