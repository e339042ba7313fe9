"""Public layouts whose rows hold several answers and a judgement: votes, ratings, rankings."""

import json
from collections.abc import Mapping
from typing import Any

from prefopt.data.examples import PairExample, RankedExample
from prefopt.data.layouts import (
    Format,
    Row,
    by_sign,
    is_label,
    is_messages,
    is_number,
    is_str,
    pair,
    ranking,
    read_bool,
    read_number,
    user_turn,
)
from prefopt.data.messages import assistant, is_transcript, read_messages, read_string, read_transcript, user
from prefopt.data.reasons import Reason, SkipRow


def _judged(prompt: Any, first: Any, second: Any, lean: float | None, column: str, **labels: float) -> PairExample:
    """A pair of two plain answers to a user turn; a negative lean prefers the first."""
    answers = read_string(first, "first answer"), read_string(second, "second answer")
    return pair(prompt, *by_sign(*answers, lean, column), **labels)


def _alpaca_eval(row: Row) -> PairExample:
    lean = read_number(row.get("preference"))
    if lean is None:
        raise SkipRow(Reason.MISSING, column="preference")
    if not 1 <= lean <= 2:
        raise SkipRow(Reason.OUT_OF_BOUNDS, column="preference", low=1, high=2)
    certainty = max(lean - 1, 2 - lean)
    prompt = user_turn(row.get("instruction"), "instruction")
    return _judged(prompt, row.get("output_1"), row.get("output_2"), lean - 1.5, "preference", preference=certainty)


def _shp(row: Row) -> PairExample:
    label = read_bool(row.get("labels"))
    lean = None if label is None else -1 if label else 1
    return _judged(
        user_turn(row.get("history"), "history"), row.get("human_ref_A"), row.get("human_ref_B"), lean, "labels"
    )


def _safe_rlhf(axis: str) -> Any:
    def build(row: Row) -> PairExample:
        better = read_number(row.get(axis))
        lean = None if better not in (0, 1) else -1 if better == 0 else 1
        return _judged(user_turn(row.get("prompt"), "prompt"), row.get("response_0"), row.get("response_1"), lean, axis)

    return build


def _helpsteer2(row: Row) -> PairExample:
    lean = read_number(row.get("preference_strength"))
    prompt = user_turn(row.get("prompt"), "prompt")
    sides = row.get("response_1"), row.get("response_2")
    return _judged(prompt, *sides, lean, "preference_strength", rated_margin=abs(lean or 0))


def _helpsteer3(row: Row) -> PairExample:
    lean = read_number(row.get("overall_preference"))
    prompt = read_messages(row.get("context"), "context")
    sides = row.get("response1"), row.get("response2")
    return _judged(prompt, *sides, lean, "overall_preference", rated_margin=abs(lean or 0))


def _winner(row: Row) -> float | None:
    """−1 for model A, 1 for model B, 0 for a tie, from the one-hot columns of LMSYS."""
    a, b, tie = (read_bool(row.get(name)) for name in ("winner_model_a", "winner_model_b", "winner_tie"))
    return None if a is None or b is None else 0 if tie or a == b else -1 if a else 1


def _strings(value: Any, column: str) -> list[str]:
    try:
        values = json.loads(value) if isinstance(value, str) else value
    except json.JSONDecodeError:
        values = [value]
    if not isinstance(values, list) or not values:
        raise SkipRow(Reason.NOT_STRINGS, column=column)
    return ["" if text is None else text for text in values]


def _lmsys(row: Row) -> PairExample:
    prompts = _strings(row.get("prompt"), "prompt")
    sides = []
    for column in ("response_a", "response_b"):
        answers = _strings(row.get(column), column)
        if len(answers) != len(prompts):
            raise SkipRow(Reason.ANSWERS_DIFFER_IN_NUMBER)
        turns = zip(prompts, answers, strict=True)
        sides.append([turn for asked, answer in turns for turn in (user(asked), assistant(answer))])
    return pair(None, *by_sign(*sides, _winner(row), "winner_model_a"))


def _arena(row: Row) -> PairExample:
    winner = str(row.get("winner")).lower()
    lean = -1 if winner == "model_a" else 1 if winner == "model_b" else 0 if winner.startswith("tie") else None
    sides = [read_messages(row.get(column), column) for column in ("conversation_a", "conversation_b")]
    return pair(None, *by_sign(*sides, lean, "winner"))


def _stack_exchange(row: Row) -> PairExample:
    return _judged(
        user_turn(row.get("question"), "question"), row.get("response_j"), row.get("response_k"), -1, "response_j"
    )


def _summaries(row: Row) -> PairExample:
    info, summaries, choice = row["info"], row["summaries"], read_number(row.get("choice"))
    if choice not in (0, 1):
        raise SkipRow(Reason.MISSING, column="choice")
    if info.get("post") is not None:
        head = f"SUBREDDIT: r/{info.get('subreddit')}\nTITLE: {info.get('title')}\nPOST: {info['post']}"
    else:
        head = f"Article: {read_string(info.get('article'), 'article')}"
    texts = [" " + read_string(summary.get("text"), "summaries").strip() for summary in summaries]
    return pair(head + "\nTL;DR:", texts[int(choice)], texts[1 - int(choice)])


def _nectar(row: Row) -> RankedExample:
    prompt = read_string(row.get("prompt"), "prompt")
    turns = read_transcript(prompt) if is_transcript(prompt) else [user(prompt)]
    if turns[-1] == assistant(""):
        turns = turns[:-1]
    answers = row["answers"]
    return ranking(turns, [answer["answer"] for answer in answers], ranks=[answer["rank"] for answer in answers])


def _ultrafeedback(row: Row) -> RankedExample:
    # The mean over aspects: overall_score is wrong for about 2,000 rows of the published set (a 1 became a 10).
    def mean_rating(completion: Mapping) -> float | None:
        ratings = [
            read_number((aspect or {}).get("Rating")) for aspect in (completion.get("annotations") or {}).values()
        ]
        known = [rating for rating in ratings if rating is not None]
        return sum(known) / len(known) if known else None

    completions = row["completions"] or []
    prompt = user_turn(row.get("instruction"), "instruction")
    return ranking(prompt, [each.get("response") for each in completions], scores=map(mean_rating, completions))


def _code_ultrafeedback(row: Row) -> RankedExample:
    ratings = {note["model"]: read_number(note.get("rating")) for note in row["annotations"] or []}
    answers = row["responses"] or []
    scores = [ratings.get(answer.get("model")) for answer in answers]
    prompt = user_turn(row.get("instruction"), "instruction")
    return ranking(prompt, [answer.get("response") for answer in answers], scores=scores)


def _list_with(*keys: str) -> Any:
    def test(value: Any) -> bool:
        return isinstance(value, list) and all(isinstance(item, Mapping) and set(keys) <= set(item) for item in value)

    return test


def _is_json_list(value: Any) -> bool:
    return isinstance(value, list) or (isinstance(value, str) and value.lstrip().startswith("["))


_SAFE = {"prompt": is_str, "response_0": is_str, "response_1": is_str}

JUDGED: tuple[Format, ...] = (
    Format("alpaca-eval", "pairs",
           {"instruction": is_str, "output_1": is_str, "output_2": is_str, "preference": is_number}, _alpaca_eval),
    Format("shp", "pairs", {"history": is_str, "human_ref_A": is_str, "human_ref_B": is_str, "labels": is_label},
           _shp),
    Format("safe-rlhf-helpful", "pairs", {**_SAFE, "better_response_id": is_number}, _safe_rlhf("better_response_id"),
           auto=False),
    Format("safe-rlhf-safe", "pairs", {**_SAFE, "safer_response_id": is_number}, _safe_rlhf("safer_response_id"),
           auto=False),
    Format("helpsteer2", "pairs",
           {"prompt": is_str, "response_1": is_str, "response_2": is_str, "preference_strength": is_number},
           _helpsteer2),
    Format("helpsteer3", "pairs",
           {"context": is_messages, "response1": is_str, "response2": is_str, "overall_preference": is_number},
           _helpsteer3),
    Format("lmsys", "pairs",
           {"prompt": _is_json_list, "response_a": _is_json_list, "response_b": _is_json_list,
            "winner_model_a": is_number, "winner_model_b": is_number}, _lmsys, ("winner_tie",)),
    Format("arena", "pairs", {"conversation_a": is_messages, "conversation_b": is_messages, "winner": is_str}, _arena),
    Format("stack-exchange-paired", "pairs", {"question": is_str, "response_j": is_str, "response_k": is_str},
           _stack_exchange),
    Format("summarize-from-feedback", "pairs",
           {"info": lambda value: isinstance(value, Mapping), "summaries": _list_with("text"), "choice": is_number},
           _summaries),
    Format("nectar", "ranked", {"prompt": is_str, "answers": _list_with("answer", "rank")}, _nectar),
    Format("ultrafeedback", "ranked", {"instruction": is_str, "completions": _list_with("response", "annotations")},
           _ultrafeedback),
    Format("code-ultrafeedback", "ranked",
           {"instruction": is_str, "responses": _list_with("model", "response"),
            "annotations": _list_with("model", "rating")}, _code_ultrafeedback),
)  # fmt: skip
