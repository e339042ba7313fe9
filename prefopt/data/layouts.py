"""The public layouts of preference data: which columns tell each one, and how a row of it becomes an example.

A layout is a `Format`: a name, the columns that it needs, the other columns that it understands, and a function from a
row to an example. `prefopt.data.formats` finds the one that fits a dataset.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from prefopt.core.labels import LABELS, Axis, Label, labels_of
from prefopt.data.examples import (
    DemonstrationExample,
    Example,
    LabelledExample,
    PairExample,
    PromptExample,
    RankedExample,
    Text,
)
from prefopt.data.messages import (
    as_messages,
    is_conversation,
    is_messages,
    is_transcript,
    is_turn,
    read_messages,
    read_string,
    read_text,
    split_first,
    split_last,
    split_pair,
    split_prompt,
    user,
)
from prefopt.data.reasons import Reason, SkipRow
from prefopt.data.values import read_structure

Row = Mapping[str, Any]
Test = Callable[[Any], bool]

TRUE, FALSE = ("true", "1", "yes"), ("false", "0", "no")
UP = ("up", "thumbs_up", "thumbs-up", "thumbs up", "like", "good", "positive", "desirable", "👍", "+1")
DOWN = ("down", "thumbs_down", "thumbs-down", "thumbs down", "dislike", "bad", "negative", "undesirable", "👎")


@dataclass(frozen=True)
class Format:
    """One public layout.

    Attributes:
        name: what ``data.format`` calls it.
        kind: the kind of example that it gives.
        needs: column, or alternatives as ``"a|b"`` → a test on its first value that is not null.
        build: from a row to an example.
        takes: other columns that it understands.
        labels: True where columns that are named like labels of its kind (see `prefopt.core.labels`) hold them.
        auto: False where it must be asked for by name, because the columns alone do not decide.
        wanted: True where it is taken only if its kind is the one that is wanted.
    """

    name: str
    kind: str
    needs: Mapping[str, Test]
    build: Callable[[Row], Example]
    takes: tuple[str, ...] = ()
    labels: bool = False
    auto: bool = True
    wanted: bool = False

    @property
    def consumed(self) -> set[str]:
        """The columns whose content goes into the example; all others go along as ``columns``."""
        needed = {name for need in self.needs for name in need.split("|")}
        return needed.union(self.takes, *(label.columns[self.kind] for label in self.read_labels))

    @property
    def read_labels(self) -> list[Label]:
        """The labels of examples that it reads from columns of their own."""
        known = labels_of(self.kind, Axis.EXAMPLE) if self.labels else []
        return [label for label in known if label.columns.get(self.kind)]


def is_str(value: Any) -> bool:
    """Whether a value is a string."""
    return isinstance(value, str)


def is_text(value: Any) -> bool:
    """Whether a value is a string, a message, or a list of messages."""
    return isinstance(value, str) or is_turn(value) or is_messages(value)


def is_answer(value: Any) -> bool:
    """Whether a value is a string or messages that begin with an answer."""
    return is_text(value) and not is_conversation(value)


def is_answers(value: Any) -> bool:
    """Whether a value is a list of answers, each a string, a message or messages."""
    return isinstance(value, list) and len(value) > 0 and all(each is None or is_text(each) for each in value)


def is_numbers(value: Any) -> bool:
    """Whether a value is a list in which something reads as a number."""
    return isinstance(value, list) and any(map(is_number, value))


def is_label(value: Any) -> bool:
    """Whether a value reads as true or false."""
    return read_bool(value) is not None


def is_mark(value: Any) -> bool:
    """Whether a value reads as desirable or undesirable."""
    return read_mark(value) is not None


def is_number(value: Any) -> bool:
    """Whether a value reads as a finite number."""
    return read_number(value) is not None


def is_pairs_of_turns(value: Any) -> bool:
    """Whether this is a list of ``{input, output}``."""
    return isinstance(value, list) and all(isinstance(turn, Mapping) and "input" in turn for turn in value)


def read_bool(value: Any) -> bool | None:
    """True or False from a bool, 0 or 1, or their spellings; None for anything else."""
    if isinstance(value, bool):
        return value
    if isinstance(value, (int, float)) and value in (0, 1):
        return bool(value)
    text = value.strip().lower() if isinstance(value, str) else None
    return True if text in TRUE else False if text in FALSE else None


def read_mark(value: Any) -> bool | None:
    """True or False from what people leave on an answer: what `read_bool` reads, 1 or −1, thumbs; None for others."""
    known = read_bool(value)
    if known is None and read_number(value) == -1:
        return False
    text = value.strip().lower() if isinstance(value, str) else None
    return True if text in UP else False if text in DOWN else known


def read_number(value: Any) -> float | None:
    """A finite float from a number or its spelling; None for anything else."""
    try:
        number = float(value) if not isinstance(value, bool) else math.nan
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def either(row: Row, *names: str) -> Any:
    """The first of these columns that is not null."""
    return next((row[name] for name in names if row.get(name) is not None), None)


def by_sign(first: Any, second: Any, lean: float | None, column: str) -> tuple[Any, Any]:
    """(chosen, rejected): a negative lean prefers the first, a positive one the second."""
    if lean is None:
        raise SkipRow(Reason.MISSING, column=column)
    if lean == 0:
        raise SkipRow(Reason.TIE)
    return (first, second) if lean < 0 else (second, first)


def read_label(row: Row, label: Label, kind: str) -> float | bool | None:
    """The value of a label in the columns of a layout; None where the row has none.

    Raises:
        SkipRow: a value that the label cannot have.
    """
    column = next((name for name in label.columns[kind] if row.get(name) is not None), None)
    if column is None:
        return None
    value = (read_mark if label.dtype is bool else read_number)(row[column])
    if value is not None and label.bounds is not None and not label.bounds[0] <= value <= label.bounds[1]:
        raise SkipRow(Reason.OUT_OF_BOUNDS, column=column, low=label.bounds[0], high=label.bounds[1])
    return value


def pair(prompt: Text | None, chosen: Text, rejected: Text, **labels: float) -> PairExample:
    """A pair brought to one shape."""
    return PairExample(*split_pair(prompt, chosen, rejected), labels=labels)


def ranking(
    prompt: Text, answers: Sequence[Any], *, scores: Iterable[Any] | None = None, ranks: Iterable[Any] | None = None
) -> RankedExample:
    """Judged answers brought to one shape; one without a text or without a judgement stays, to be counted later.

    Raises:
        SkipRow: there are fewer than two judged answers, or as many judgements as answers are not given.
    """
    texts = ["" if answer is None else read_text(answer, "completions") for answer in answers]
    if not all(isinstance(text, str) for text in (prompt, *texts)):
        prompt = as_messages(prompt, "user")
        texts = [split_prompt(prompt, as_messages(text, "assistant"))[1] for text in texts]
    judgements = [None if given is None else tuple(map(read_number, given)) for given in (scores, ranks)]
    if any(given is not None and len(given) != len(texts) for given in judgements):
        raise SkipRow(Reason.SCORES_DIFFER_IN_NUMBER)
    example = RankedExample(prompt, tuple(texts), *judgements)
    if len(example.judged) < 2:
        raise SkipRow(Reason.FEW_RATED)
    return example


def user_turn(question: Any, column: str, system: Any = None) -> list[dict]:
    """A question as a user turn, after the system prompt if there is one that is not blank."""
    turns = [{"role": "system", "content": system}] if isinstance(system, str) and system.strip() else []
    return [*turns, user(read_string(question, column))]


_ALPACA = ("instruction", "input", "system", "history")
_LABEL = "|".join(LABELS["desirable"].columns["labelled"])
_RATING = "rating|score|reward"


def _sides(row: Row) -> tuple[Text, Text]:
    return read_text(row.get("chosen"), "chosen"), read_text(row.get("rejected"), "rejected")


def _alpaca_prompt(row: Row) -> list[dict]:
    turns = user_turn(row.get("instruction"), "instruction", row.get("system"))
    if isinstance(row.get("input"), str) and row["input"].strip():
        turns[-1] = user(turns[-1]["content"] + "\n" + row["input"])
    # LLaMA-Factory: history is a list of [instruction, answer].
    history = read_structure(row.get("history"), "history") or []
    past = [message for asked, answer in history for message in (user(asked), _answer(answer))]
    return [*turns[:-1], *past, turns[-1]]


def _answer(text: Any) -> dict:
    return {"role": "assistant", "content": read_string(text, "history")}


def _conversation(row: Row) -> list[dict]:
    turns = read_messages(either(row, "messages", "conversations", "conversation"), "messages")
    system = row.get("system")
    if isinstance(system, str) and system.strip() and turns[0]["role"] != "system":
        turns = [{"role": "system", "content": system}, *turns]
    return turns


def _desirable(row: Row) -> bool:
    desirable = read_label(row, LABELS["desirable"], "labelled")
    if desirable is None:
        raise SkipRow(Reason.NO_LABEL)
    return desirable


def _rated(row: Row, prompt: Text, completion: Text) -> RankedExample:
    """One completion with a rating, which is a ranking of one."""
    rating = read_number(either(row, *_RATING.split("|")))
    if rating is None:
        raise SkipRow(Reason.NO_RATING)
    return RankedExample(prompt, (completion,), (rating,))


def _with_system(row: Row, prompt: Text, *completions: Text) -> tuple[Text, ...]:
    """Prompt and completions after the system prompt of a ``system`` column, where there is one that is not blank."""
    system = row.get("system")
    if not isinstance(system, str) or not system.strip():
        return prompt, *completions
    turns = as_messages(prompt, "user")
    if not turns or turns[0]["role"] != "system":
        turns = [{"role": "system", "content": system}, *turns]
    return turns, *(as_messages(completion, "assistant") for completion in completions)


def _prompt_pair(row: Row) -> PairExample:
    sides = split_pair(read_text(row.get("prompt"), "prompt"), *_sides(row))
    return PairExample(*_with_system(row, *sides))


def _implied_pair(row: Row) -> PairExample:
    return pair(None, *_sides(row))


def _sharegpt_pair(row: Row) -> PairExample:
    return pair(_conversation(row), *_sides(row))


def _orca_pair(row: Row) -> PairExample:
    prompt = user_turn(either(row, "question", "input"), "question", row.get("system"))
    return pair(prompt, *_sides(row))


def _alpaca_pair(row: Row) -> PairExample:
    return pair(_alpaca_prompt(row), *_sides(row))


def _openai_pair(row: Row) -> PairExample:
    prompt = read_messages(row["input"].get("messages") if isinstance(row.get("input"), Mapping) else None, "input")
    chosen = read_text(row.get("preferred_output"), "preferred_output")
    rejected = read_text(row.get("non_preferred_output"), "non_preferred_output")
    example = pair(prompt, chosen, rejected)
    # Tools are not a turn; they reach the chat template by this column.
    return PairExample(*split_pair(example.prompt, chosen, rejected), columns={"tools": row["input"].get("tools")})


def _prompt_completion(row: Row) -> tuple[Text, Text]:
    prompt, completion = read_text(row.get("prompt"), "prompt"), either(row, "completion", "response")
    return _with_system(row, *split_prompt(prompt, read_text(completion, "completion")))


def _alpaca_completion(row: Row) -> tuple[Text, Text]:
    output = read_text(either(row, "output", "response"), "output")
    return _alpaca_prompt(row), as_messages(output, "assistant")


def _turn_pairs(row: Row) -> DemonstrationExample:
    turns = []
    for turn in row.get("conversation") or []:
        turns += [user(read_string(turn.get("input"), "input")), _answer(turn.get("output"))]
    return DemonstrationExample(*split_first(turns or read_messages(None, "conversation")))


def _question_answer(row: Row) -> DemonstrationExample:
    answer = read_text(either(row, "answer", "response"), "answer")
    prompt = user_turn(row.get("question"), "question", row.get("system"))
    return DemonstrationExample(prompt, as_messages(answer, "assistant"))


def _scored_completions(row: Row) -> RankedExample:
    prompt, answers = read_text(row.get("prompt"), "prompt"), either(row, "completions", "responses")
    if not isinstance(answers, list):
        raise SkipRow(Reason.MISSING, column="completions")
    example = ranking(prompt, answers, scores=row.get("scores"), ranks=row.get("ranks"))
    prompt, *completions = _with_system(row, example.prompt, *example.completions)
    return replace(example, prompt=prompt, completions=tuple(completions))


def _conversation_prompt(row: Row) -> PromptExample:
    turns = _conversation(row)
    if turns[-1]["role"] != "assistant":
        return PromptExample(turns)
    # The last answer is the one to write again; a reward function may want it.
    turns, answer = split_last(turns)
    return PromptExample(turns, columns={"completion": answer})


_CHOSEN = {"chosen": is_answer, "rejected": is_answer}
_TURNS = "messages|conversations|conversation"

# The order decides where several fit: the more specific layout comes first.
BASIC: tuple[Format, ...] = (
    Format("prompt-pairs", "pairs", {"prompt": is_text, "chosen": is_text, "rejected": is_text}, _prompt_pair,
           ("messages", "conversation", "system"), labels=True),
    Format("implied-prompt-pairs", "pairs", {"chosen": is_conversation, "rejected": is_conversation}, _implied_pair,
           ("messages",), labels=True),
    Format("sharegpt-pairs", "pairs", {_TURNS: is_messages, **_CHOSEN}, _sharegpt_pair, ("system",), labels=True),
    Format("alpaca-pairs", "pairs", {"instruction": is_str, **_CHOSEN}, _alpaca_pair, _ALPACA, labels=True),
    Format("orca-pairs", "pairs", {"question|input": is_str, **_CHOSEN}, _orca_pair, ("system",), labels=True),
    Format("hh-rlhf", "pairs", {"chosen": is_transcript, "rejected": is_transcript}, _implied_pair,
           labels=True),
    Format("openai-pairs", "pairs",
           {"input": lambda value: isinstance(value, Mapping) and "messages" in value, "preferred_output": is_messages,
            "non_preferred_output": is_messages}, _openai_pair),
)  # fmt: skip

OTHER: tuple[Format, ...] = (
    Format("prompt-completion-label", "labelled",
           {"prompt": is_text, "completion|response": is_text, _LABEL: is_mark},
           lambda row: LabelledExample(*_prompt_completion(row), _desirable(row)), ("system",), labels=True),
    Format("messages-label", "labelled", {_TURNS: is_messages, _LABEL: is_mark},
           lambda row: LabelledExample(*split_last(_conversation(row)), _desirable(row)), ("system",), labels=True),
    Format("alpaca-label", "labelled", {"instruction": is_str, "output|response": is_text, _LABEL: is_mark},
           lambda row: LabelledExample(*_alpaca_completion(row), _desirable(row)), _ALPACA, labels=True),
    Format("prompt-completions-scores", "ranked",
           {"prompt": is_text, "completions|responses": is_answers, "scores|ranks": is_numbers}, _scored_completions,
           ("system",), labels=True),
    # Of these the completions alone are demonstrations too, which is what they are read as unless ratings are wanted.
    # Conversations are demonstrations too, unless prompts are wanted.
    Format("prompt-completion-rating", "ranked",
           {"prompt": is_text, "completion|response": is_text, _RATING: is_number},
           lambda row: _rated(row, *_prompt_completion(row)), ("system",), labels=True, wanted=True),
    Format("messages-rating", "ranked", {_TURNS: is_messages, _RATING: is_number},
           lambda row: _rated(row, *split_last(_conversation(row))), ("system",), labels=True, wanted=True),
    Format("alpaca-rating", "ranked", {"instruction": is_str, "output|response": is_text, _RATING: is_number},
           lambda row: _rated(row, *_alpaca_completion(row)), _ALPACA, labels=True, wanted=True),
    Format("prompt-completion", "demonstrations", {"prompt": is_text, "completion|response": is_text},
           lambda row: DemonstrationExample(*_prompt_completion(row)), ("system",), labels=True),
    Format("alpaca", "demonstrations", {"instruction": is_str, "output|response": is_text},
           lambda row: DemonstrationExample(*_alpaca_completion(row)), _ALPACA, labels=True),
    Format("open-messages", "prompts", {_TURNS: is_messages}, _conversation_prompt, ("system",), wanted=True),
    Format("messages", "demonstrations", {_TURNS: is_messages},
           lambda row: DemonstrationExample(*split_first(_conversation(row))), ("system", "prompt"), labels=True),
    Format("turn-pairs", "demonstrations", {"conversation": is_pairs_of_turns}, _turn_pairs,
           labels=True),
    Format("question-answer", "demonstrations", {"question": is_str, "answer|response": is_text}, _question_answer,
           ("system",), labels=True),
    Format("prompt", "prompts", {"prompt": is_text},
           lambda row: PromptExample(*_with_system(row, read_text(row.get("prompt"), "prompt"))), ("system",)),
    Format("instruction", "prompts", {"instruction": is_str}, lambda row: PromptExample(_alpaca_prompt(row)), _ALPACA),
    Format("question", "prompts", {"question": is_str},
           lambda row: PromptExample(user_turn(row.get("question"), "question", row.get("system"))), ("system",)),
)  # fmt: skip
