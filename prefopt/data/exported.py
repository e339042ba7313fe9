"""Layouts that annotation tools, other trainers and benchmarks write.

A judgement that says nothing (skipped, ignored, cancelled) is counted as a row without one, and never guessed.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from prefopt.data.examples import LabelledExample, PairExample, RankedExample
from prefopt.data.layouts import (
    Format,
    Row,
    by_sign,
    is_messages,
    is_number,
    is_str,
    is_text,
    pair,
    ranking,
    read_mark,
    user_turn,
)
from prefopt.data.messages import read_messages, read_string, read_text, split_last, split_prompt
from prefopt.data.reasons import Reason, SkipRow


def _rewardbench2(row: Row) -> RankedExample:
    """RewardBench 2: several right and several wrong answers."""
    sides = [_texts(row.get(name), name) for name in ("chosen", "rejected")]
    ranks = [1] * len(sides[0]) + [2] * len(sides[1])
    return ranking(read_text(row.get("prompt"), "prompt"), [*sides[0], *sides[1]], ranks=ranks)


def _texts(value: Any, column: str) -> list[str]:
    if not isinstance(value, list):
        raise SkipRow(Reason.MISSING, column=column)
    return [read_string(text, column) for text in value]


def _responses(row: Row) -> PairExample:
    prompt = user_turn(row.get("instruction"), "instruction", row.get("system"))
    sides = (read_text(row.get(name), name) for name in ("chosen_response", "rejected_response"))
    return pair(prompt, *sides)


def _distilabel(row: Row) -> RankedExample:
    """distilabel before its conversion: ratings of generations, where what was not rated is null."""
    prompt = user_turn(row.get("instruction"), "instruction", row.get("system_prompt"))
    return ranking(prompt, row.get("generations") or [], scores=row.get("ratings") or [])


def _nemo(row: Row) -> RankedExample:
    """NeMo-RL: rank 0 is the best."""
    context = read_messages(row.get("context"), "context")
    answers = [read_messages(each.get("completion"), "completion") for each in row["completions"]]
    return ranking(context, answers, ranks=[each.get("rank") for each in row["completions"]])


def _tinker(row: Row) -> PairExample:
    held = row["comparison"]
    prompt = read_messages(held.get("prompt_conversation"), "prompt_conversation")
    sides = (read_text(held.get(name), name) for name in ("completion_A", "completion_B"))
    lean = {"a": -1.0, "b": 1.0, "tie": 0.0}.get(str(row.get("label")).strip().lower())
    return pair(prompt, *by_sign(*sides, lean, "label"))


def _prodigy(row: Row) -> RankedExample:
    """Prodigy: an accepted option stands against each that was not; ignored and rejected tasks say nothing."""
    if row.get("answer") != "accept":
        raise SkipRow(Reason.UNJUDGED)
    options, accepted = row["options"], set(row.get("accept") or [])
    if not accepted or accepted == {option["id"] for option in options}:
        raise SkipRow(Reason.UNJUDGED)
    ranks = [1 if option["id"] in accepted else 2 for option in options]
    return ranking(user_turn(row.get("text"), "text"), [option.get("text") for option in options], ranks=ranks)


def _kiln(row: Row) -> PairExample:
    """Kiln: a repaired answer against the one that was repaired."""
    output = read_string((row.get("output") or {}).get("output"), "output")
    repaired = row.get("repaired_output")
    repaired = repaired.get("output") if isinstance(repaired, Mapping) else repaired
    return pair(user_turn(row.get("input"), "input"), read_string(repaired, "repaired_output"), output)


def _thumbs(row: Row) -> LabelledExample:
    if row.get("prompt") is not None:
        completion = read_text(row.get("completion") or row.get("response"), "completion")
        sides = split_prompt(read_text(row["prompt"], "prompt"), completion)
    else:
        sides = split_last(read_messages(row.get("messages") or row.get("conversations"), "messages"))
    mark = read_mark(row["rating"]) if is_thumb(row.get("rating")) else None
    if mark is None:
        raise SkipRow(Reason.NO_LABEL)
    return LabelledExample(*sides, mark)


def is_thumb(value: Any) -> bool:
    """Whether a rating is a thumb, and not one of many numbers."""
    return isinstance(value, bool) or (isinstance(value, str) and read_mark(value) is not None and not is_number(value))


def _many(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(map(is_str, value))


def _mappings(*keys: str) -> Any:
    def test(value: Any) -> bool:
        given: Sequence[Any] = value if isinstance(value, list) else []
        return bool(given) and all(isinstance(one, Mapping) and set(keys) <= set(one) for one in given)

    return test


def _mapping(*keys: str) -> Any:
    return lambda value: isinstance(value, Mapping) and set(keys) <= set(value)


EXPORTED: tuple[Format, ...] = (
    Format("rewardbench-2", "ranked",
           {"prompt": is_text, "chosen": _many, "rejected": _many, "num_correct": is_number}, _rewardbench2,
           ("total_completions",)),
    Format("response-pairs", "pairs",
           {"instruction": is_str, "chosen_response": is_str, "rejected_response": is_str}, _responses, ("system",),
           labels=True),
    Format("distilabel", "ranked",
           {"instruction": is_str, "generations": lambda value: isinstance(value, list),
            "ratings": lambda value: isinstance(value, list)}, _distilabel, ("system_prompt",)),
    Format("nemo-rl", "ranked", {"context": is_messages, "completions": _mappings("rank", "completion")}, _nemo),
    Format("tinker", "pairs",
           {"comparison": _mapping("prompt_conversation", "completion_A", "completion_B"), "label": is_str}, _tinker),
    Format("prodigy-choice", "ranked",
           {"text": is_str, "options": _mappings("id", "text"), "answer": is_str}, _prodigy, ("accept",)),
    Format("kiln-repairs", "pairs",
           {"input": is_str, "output": _mapping("output"),
            "repaired_output": lambda value: isinstance(value, (str, Mapping))}, _kiln),
    Format("prompt-completion-thumb", "labelled",
           {"prompt": is_text, "completion|response": is_text, "rating": is_thumb}, _thumbs),
    Format("messages-thumb", "labelled", {"messages|conversations": is_messages, "rating": is_thumb}, _thumbs),
)  # fmt: skip
