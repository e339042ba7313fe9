import json
from dataclasses import replace

import pytest
from skipped import sentences

from prefopt.core.errors import DataError
from prefopt.data import (
    DataSettings,
    DemonstrationExample,
    LabelledExample,
    PairExample,
    PromptExample,
    RankedExample,
    to_examples,
)


def u(text):
    return {"role": "user", "content": text}


def a(text):
    return {"role": "assistant", "content": text}


def h(text):
    return {"from": "human", "value": text}


def g(text):
    return {"from": "gpt", "value": text}


SYSTEM = {"role": "system", "content": "Be kind."}
TURNS = PairExample([u("Q")], [a("good")], [a("bad")])
PLAIN = PairExample("Q", "good", "bad")
SIDES = {"chosen": "good", "rejected": "bad"}

PAIRS = {
    "prompt-pairs": [
        ({"prompt": "Q", **SIDES}, PLAIN),
        ({"prompt": [u("Q")], "chosen": [a("good")], "rejected": [a("bad")]}, TURNS),
        ({"prompt": [u("Q")], **SIDES}, TURNS),
        # ultrafeedback_binarized: the lists repeat the prompt, and `messages` repeats chosen
        ({"prompt": "Q", "chosen": [u("Q"), a("good")], "rejected": [u("Q"), a("bad")],
          "messages": [u("Q"), a("good")]}, TURNS),
        ({"prompt": [u("Q")], "chosen": [u("Q"), a("good")], "rejected": [u("Q"), a("bad")]}, TURNS),
        ({"prompt": "Q", "chosen": a("good"), "rejected": a("bad")}, TURNS),
        ({"system": "Be kind.", "prompt": "Q", **SIDES}, PairExample([SYSTEM, u("Q")], [a("good")], [a("bad")])),
    ],
    "implied-prompt-pairs": [
        ({"chosen": [u("Q"), a("good")], "rejected": [u("Q"), a("bad")]}, TURNS),
        ({"chosen": [u("1"), a("2"), u("Q"), a("blue")], "rejected": [u("1"), a("2"), u("Q"), a("black")]},
         PairExample([u("1"), a("2"), u("Q")], [a("blue")], [a("black")])),
        # they part at a user turn: the answers before it belong to the completions
        ({"chosen": [u("1"), a("2"), u("Q"), a("x")], "rejected": [u("1"), a("2"), u("R"), a("y")]},
         PairExample([u("1")], [a("2"), u("Q"), a("x")], [a("2"), u("R"), a("y")])),
    ],
    "sharegpt-pairs": [
        ({"conversations": [h("Q")], "chosen": g("good"), "rejected": g("bad")}, TURNS),
        ({"conversations": [h("Q")], "system": "Be kind.", "chosen": g("good"), "rejected": g("bad")},
         PairExample([SYSTEM, u("Q")], [a("good")], [a("bad")])),
    ],
    "alpaca-pairs": [
        ({"instruction": "Q", "input": "", **SIDES}, TURNS),
        ({"instruction": "Q", "input": "it", **SIDES}, PairExample([u("Q\nit")], [a("good")], [a("bad")])),
    ],
    "orca-pairs": [
        ({"system": "Be kind.", "question": "Q", **SIDES}, PairExample([SYSTEM, u("Q")], [a("good")], [a("bad")])),
        ({"system": "", "input": "Q", **SIDES}, TURNS),
    ],
    "hh-rlhf": [
        ({"chosen": "\n\nHuman: Q\n\nAssistant: good", "rejected": "\n\nHuman: Q\n\nAssistant: bad"}, TURNS),
        # one side is the beginning of the other
        ({"chosen": "\n\nHuman: Q\n\nAssistant: good",
          "rejected": "\n\nHuman: Q\n\nAssistant: good\n\nHuman: R\n\nAssistant: S"},
         PairExample([u("Q")], [a("good")], [a("good"), u("R"), a("S")])),
        # not alternating
        ({"chosen": "\n\nHuman: Q\n\nHuman: R\n\nAssistant: good",
          "rejected": "\n\nHuman: Q\n\nHuman: R\n\nAssistant: bad"},
         PairExample([u("Q\n\nR")], [a("good")], [a("bad")])),
    ],
    "openai-pairs": [
        ({"input": {"messages": [u("Q")], "tools": [{"name": "f"}]}, "preferred_output": [a("good")],
          "non_preferred_output": [a("bad")]},
         PairExample([u("Q")], [a("good")], [a("bad")], columns={"tools": [{"name": "f"}]})),
    ],
    "alpaca-eval": [
        ({"instruction": "Q", "output_1": "good", "output_2": "bad", "preference": 1.25},
         PairExample([u("Q")], [a("good")], [a("bad")], labels={"preference": 0.75})),
        ({"instruction": "Q", "output_1": "bad", "output_2": "good", "preference": 2},
         PairExample([u("Q")], [a("good")], [a("bad")], labels={"preference": 1.0})),
    ],
    "shp": [
        ({"history": "Q", "human_ref_A": "good", "human_ref_B": "bad", "labels": 1}, TURNS),
        ({"history": "Q", "human_ref_A": "bad", "human_ref_B": "good", "labels": 0}, TURNS),
    ],
    "helpsteer2": [({"prompt": "Q", "response_1": "good", "response_2": "bad", "preference_strength": -2},
                    replace(TURNS, labels={"rated_margin": 2.0}))],
    "helpsteer3": [({"context": [u("Q")], "response1": "bad", "response2": "good", "overall_preference": 1},
                    replace(TURNS, labels={"rated_margin": 1.0}))],
    "lmsys": [
        ({"prompt": '["Q"]', "response_a": '["bad"]', "response_b": '["good"]',
          "winner_model_a": 0, "winner_model_b": 1, "winner_tie": 0}, TURNS),
    ],
    "arena": [
        ({"conversation_a": [u("Q"), a("good")], "conversation_b": [u("Q"), a("bad")], "winner": "model_a"}, TURNS),
    ],
    "stack-exchange-paired": [({"question": "Q", "response_j": "good", "response_k": "bad"}, TURNS)],
    "summarize-from-feedback": [
        ({"info": {"post": "P", "title": "T", "subreddit": "s", "article": None},
          "summaries": [{"text": " bad"}, {"text": "good"}], "choice": 1},
         PairExample("SUBREDDIT: r/s\nTITLE: T\nPOST: P\nTL;DR:", " good", " bad")),
    ],
    "nectar": [
        ({"prompt": "\n\nHuman: Q\n\nAssistant: ",
          "answers": [{"answer": "so", "rank": 2}, {"answer": "bad", "rank": 7}, {"answer": "good", "rank": 1}]},
         RankedExample([u("Q")], ([a("so")], [a("bad")], [a("good")]), ranks=(2.0, 7.0, 1.0))),
    ],
    "ultrafeedback": [
        # overall_score is wrong in the published data: the mean rating decides
        ({"instruction": "Q", "completions": [
            {"response": "bad", "overall_score": 10, "annotations": {"x": {"Rating": "1"}, "y": {"Rating": "2"}}},
            {"response": "good", "overall_score": 5, "annotations": {"x": {"Rating": "5"}, "y": {"Rating": "N/A"}}}]},
         RankedExample([u("Q")], ([a("bad")], [a("good")]), scores=(1.5, 5.0))),
    ],
    "code-ultrafeedback": [
        ({"instruction": "Q", "responses": [{"model": "m", "response": "bad"}, {"model": "n", "response": "good"}],
          "annotations": [{"model": "n", "rating": "5"}, {"model": "m", "rating": "2"}]},
         RankedExample([u("Q")], ([a("bad")], [a("good")]), scores=(2.0, 5.0))),
    ],
    "rewardbench-2": [
        ({"prompt": "Q", "chosen": ["good"], "rejected": ["bad", "worse"], "num_correct": 1, "total_completions": 3},
         RankedExample("Q", ("good", "bad", "worse"), ranks=(1.0, 2.0, 2.0))),
    ],
    "response-pairs": [
        ({"instruction": "Q", "chosen_response": "good", "rejected_response": "bad"}, TURNS),
    ],
    "distilabel": [
        ({"instruction": "Q", "generations": ["x", "y", "z"], "ratings": [1, 5, None]},
         RankedExample([u("Q")], ([a("x")], [a("y")], [a("z")]), scores=(1.0, 5.0, None))),
    ],
    "nemo-rl": [
        ({"context": [u("Q")], "completions": [{"rank": 1, "completion": [a("bad")]},
                                               {"rank": 0, "completion": [a("good")]}]},
         RankedExample([u("Q")], ([a("bad")], [a("good")]), ranks=(1.0, 0.0))),
    ],
    "tinker": [
        ({"comparison": {"prompt_conversation": [u("Q")], "completion_A": [a("bad")], "completion_B": [a("good")]},
          "label": "B"}, TURNS),
        ({"comparison": {"prompt_conversation": [u("Q")], "completion_A": [a("good")], "completion_B": [a("bad")]},
          "label": "A"}, TURNS),
    ],
    "prodigy-choice": [
        ({"text": "Q", "options": [{"id": 0, "text": "bad"}, {"id": 1, "text": "good"}, {"id": 2, "text": "worse"}],
          "accept": [1], "answer": "accept"},
         RankedExample([u("Q")], ([a("bad")], [a("good")], [a("worse")]), ranks=(2.0, 1.0, 2.0))),
    ],
    "kiln-repairs": [
        ({"input": "Q", "output": {"output": "bad", "rating": {"type": "five_star", "value": 2.0}},
          "repaired_output": {"output": "good"}}, TURNS),
        ({"input": "Q", "output": {"output": "bad"}, "repaired_output": "good"}, TURNS),
    ],
    "prompt-completions-scores": [
        ({"prompt": "Q", "completions": ["x", "y", "z"], "scores": [1, "2.5", None]},
         RankedExample("Q", ("x", "y", "z"), scores=(1.0, 2.5, None))),
        ({"prompt": "Q", "responses": ["x", None, "z"], "ranks": [2, 3, 1], "scores": [0.1, 0.2, 0.3]},
         RankedExample("Q", ("x", "", "z"), scores=(0.1, 0.2, 0.3), ranks=(2.0, 3.0, 1.0))),
        ({"prompt": [u("Q")], "completions": [[u("Q"), a("x")], a("y"), "z"], "scores": [1, 2, 3]},
         RankedExample([u("Q")], ([a("x")], [a("y")], [a("z")]), scores=(1.0, 2.0, 3.0))),
        ({"system": "Be kind.", "prompt": "Q", "completions": ["x", "y"], "scores": [1, 2]},
         RankedExample([SYSTEM, u("Q")], ([a("x")], [a("y")]), scores=(1.0, 2.0))),
    ],
}  # fmt: skip

OTHERS = {
    "prompt-completion-label": [
        ({"prompt": "Q", "completion": "good", "label": True}, LabelledExample("Q", "good", True)),
        ({"prompt": [u("Q")], "completion": [a("bad")], "label": "False"},
         LabelledExample([u("Q")], [a("bad")], False)),
    ],
    "messages-label": [
        ({"messages": [u("1"), a("2"), u("Q"), a("x")], "label": 0},
         LabelledExample([u("1"), a("2"), u("Q")], [a("x")], False)),
        ({"conversations": [h("Q"), g("x")], "kto_tag": "true"}, LabelledExample([u("Q")], [a("x")], True)),
    ],
    "alpaca-label": [
        ({"instruction": "Q", "input": "", "output": "x", "kto_tag": True}, LabelledExample([u("Q")], [a("x")], True)),
    ],
    "prompt-completion-thumb": [
        ({"prompt": "Q", "response": "x", "rating": True}, LabelledExample("Q", "x", True)),
        ({"prompt": [u("Q")], "completion": "x", "rating": "down"}, LabelledExample([u("Q")], [a("x")], False)),
    ],
    "messages-thumb": [({"messages": [u("Q"), a("x")], "rating": False}, LabelledExample([u("Q")], [a("x")], False))],
    "prompt-completion": [({"prompt": "Q", "completion": " x"}, DemonstrationExample("Q", " x"))],
    "alpaca": [({"instruction": "Q", "input": "it", "output": "x"}, DemonstrationExample([u("Q\nit")], [a("x")]))],
    "messages": [
        ({"messages": [SYSTEM, u("1"), a("2"), u("3"), a("4")]},
         DemonstrationExample([SYSTEM, u("1")], [a("2"), u("3"), a("4")])),
        # datasets stores sequences of structs as a dict of lists
        ({"messages": {"role": ["user", "assistant"], "content": ["Q", "x"]}},
         DemonstrationExample([u("Q")], [a("x")])),
    ],
    "turn-pairs": [({"conversation": [{"input": "Q", "output": "x"}]}, DemonstrationExample([u("Q")], [a("x")]))],
    "question-answer": [({"question": "Q", "answer": "x"}, DemonstrationExample([u("Q")], [a("x")]))],
    "prompt": [({"prompt": "Q", "answer": 4}, PromptExample("Q", columns={"answer": 4}))],
    "open-messages": [],
}  # fmt: skip


def cases():
    for name, rows in {**PAIRS, **OTHERS}.items():
        for number, (row, example) in enumerate(rows):
            yield pytest.param(name, row, example, id=f"{name}-{number}")


@pytest.mark.parametrize(("name", "row", "example"), cases())
def test_layouts_are_told_by_their_columns(name, row, example):
    reading = to_examples([row])
    assert reading.format.name == name
    assert reading.dropped == []
    assert reading.examples == [example]


@pytest.mark.parametrize(("name", "row", "example"), cases())
def test_layouts_survive_null_and_foreign_columns(name, row, example):
    reading = to_examples([{**row, "note": "x", "empty": None}])
    assert reading.format.name == name
    assert reading.examples[0].columns == {**example.columns, "note": "x", "empty": None}


@pytest.mark.parametrize(
    ("row", "scores"),
    [
        ({"score_chosen": 8, "score_rejected": 2.5}, (8.0, 2.5)),
        ({"chosen-rating": 5, "rejected-rating": 1}, (5.0, 1.0)),
        ({"rating_chosen": "4", "rating_rejected": "3"}, (4.0, 3.0)),
    ],
)
def test_scores_under_all_their_names(row, scores):
    example = to_examples([{"prompt": "Q", **SIDES, **row}]).examples[0]
    assert (example.labels["chosen_score"], example.labels["rejected_score"]) == scores


@pytest.mark.parametrize(
    "row",
    [
        {"instruction": "Q", "output_1": "x", "output_2": "y", "preference": 1.5},
        {"context": [u("Q")], "response1": "x", "response2": "y", "overall_preference": 0},
        {"conversation_a": [u("Q"), a("x")], "conversation_b": [u("Q"), a("y")], "winner": "tie (bothbad)"},
        {"prompt": '["Q"]', "response_a": '["x"]', "response_b": '["y"]', "winner_model_a": 0, "winner_model_b": 0},
        {
            "comparison": {"prompt_conversation": [u("Q")], "completion_A": [a("x")], "completion_B": [a("y")]},
            "label": "Tie",
        },
    ],
)
def test_ties_are_dropped_and_counted(row):
    reading = to_examples([row])
    assert reading.examples == []
    assert sentences(reading.dropped) == {"ties": 1}


def test_judgements_that_say_nothing_are_counted():
    options = [{"id": n, "text": str(n)} for n in range(2)]
    answers = [("ignore", []), ("reject", [0]), ("accept", []), ("accept", [0, 1]), ("accept", [0])]
    rows = [{"text": "Q", "options": options, "answer": answer, "accept": accept} for answer, accept in answers]
    assert sentences(to_examples(rows).dropped) == {"without a judgement": 4}
    assert [example.row for example in to_examples(rows).examples] == [4]
    numbers = [{"prompt": "Q", "completion": "x", "rating": rating} for rating in (True, 3)]
    assert sentences(to_examples(numbers).dropped) == {"without a label that is true or false": 1}


def test_the_prompt_is_shared_turns_and_never_shared_characters():
    reading = to_examples([{"chosen": [u("sky"), a("It is blue")], "rejected": [u("sky"), a("It is black")]}])
    assert reading.examples[0].prompt == [u("sky")]
    assert reading.examples[0].chosen == [a("It is blue")]
    same = to_examples([{"chosen": [u("sky"), a("blue")], "rejected": [u("sky"), a("blue")]}]).examples[0]
    assert (same.prompt, same.chosen, same.rejected) == ([u("sky")], [a("blue")], [a("blue")])
    with pytest.raises(DataError, match="lacks 'prompt'"):
        to_examples([{"chosen": "It is blue", "rejected": "It is black"}])


def test_nulls_in_messages():
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f"}}], "name": None}
    row = {"messages": [{**u("Q"), "tool_calls": None}, call, {"role": "tool", "content": "4"}, a("It is 4")]}
    prompt, completion = (lambda e: (e.prompt, e.completion))(to_examples([row]).examples[0])
    assert prompt == [u("Q")]
    assert completion[0] == {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f"}}]}


def test_bad_rows_are_dropped_with_their_reasons():
    rows = [
        {"prompt": "Q", "chosen": "x", "rejected": "y"},
        {"prompt": "Q", "chosen": None, "rejected": "y"},
        {"prompt": "Q", "rejected": "y"},
        {"prompt": "Q", "chosen": {"text": "x"}, "rejected": "y"},
        {"prompt": [{"role": "alien", "content": "Q"}], "chosen": "x", "rejected": "y"},
    ]
    reading = to_examples(rows)
    assert len(reading.examples) == 1
    assert sentences(reading.dropped) == {
        "without 'chosen'": 2,
        "whose 'chosen' is neither text nor messages": 1,
        "with the unknown role 'alien'": 1,
    }


def test_labels_that_are_no_labels():
    rows = [{"prompt": "Q", "completion": "x", "label": value} for value in (1, "0", True, "maybe", 2, None)]
    reading = to_examples(rows)
    assert [example.desirable for example in reading.examples] == [True, False, True]
    assert sentences(reading.dropped) == {"without a label that is true or false": 3}


@pytest.mark.parametrize(
    ("row", "kind", "words"),
    [
        ({"prompt": "Q", "chosen": "x", "reject": "y"}, "pairs",
         "columns chosen, prompt, reject.*lacks 'rejected'.*{'reject': 'rejected'}"),
        ({"text": "Q"}, None, "cannot read the columns text"),
        ({"query": "Q", "response": "x"}, "demonstrations", "'prompt-completion', which lacks 'prompt'"),
        ({"prompt": "Q", "chosen": ["x", "z"], "rejected": ["y"]}, "pairs", "'chosen' cannot be a list of str"),
        ({"prompt": "Q", "response_0": "x", "response_1": "y", "better_response_id": 1, "safer_response_id": 0},
         "pairs", "set data.format to 'safe-rlhf-helpful' or 'safe-rlhf-safe'"),
    ],
)  # fmt: skip
def test_unknown_columns_are_explained_in_one_line(row, kind, words):
    with pytest.raises(DataError, match=words) as caught:
        to_examples([row], kind=kind)
    assert "\n" not in str(caught.value)


def test_renaming_and_naming_the_format():
    row = {"query": "Q", "good": "x", "rejected": "y", "chosen": "left over"}
    settings = DataSettings(columns={"query": "prompt", "good": "chosen"})
    assert to_examples([row], settings).examples[0] == PairExample("Q", "x", "y")
    with pytest.raises(DataError, match=r"Turn it round: {'query': 'prompt'}"):
        to_examples([row], DataSettings(columns={"prompt": "query"}))
    safe = {"prompt": "Q", "response_0": "bad", "response_1": "good", "better_response_id": 0, "safer_response_id": 1}
    assert to_examples([safe], DataSettings(format="safe-rlhf-safe")).examples[0].chosen == [a("good")]
    assert to_examples([safe], DataSettings(format="safe-rlhf-helpful")).examples[0].chosen == [a("bad")]
    with pytest.raises(DataError, match="'hh-rlhf', which lacks 'chosen'"):
        to_examples([safe], DataSettings(format="hh-rlhf"))


def test_prompts_keep_every_column_for_reward_functions():
    example = to_examples([{"question": "Q", "answer": "4"}], kind="prompts").examples[0]
    assert example.columns == {"question": "Q", "answer": "4"}


def test_rankings_that_are_none_are_dropped_with_their_reasons():
    row = {"prompt": "Q", "completions": ["x", "y"], "scores": [1, 2]}
    bad = [{**row, "scores": [1]}, {**row, "scores": [1, None]}, {**row, "completions": "xy"}, {**row, "scores": None}]
    reading = to_examples([row, *bad])
    assert len(reading.examples) == 1
    assert sentences(reading.dropped) == {
        "with another number of scores than completions": 1,
        "with fewer than two rated answers": 2,
        "without 'completions'": 1,
    }


def test_a_malformed_row_is_counted_and_named():
    rows = [{"instruction": "Q", "completions": [{"response": "x", "annotations": {"a": {"Rating": r}}} for r in "12"]}]
    reading = to_examples([*rows, {"instruction": "Q", "completions": ["x"]}])
    assert len(reading.examples) == 1
    assert [(reason[:22], n) for reason, n in sentences(reading.dropped).items()] == [("malformed (first row 1", 1)]


def test_multi_turn_json_strings():
    row = {"prompt": json.dumps(["1", "2"]), "response_a": json.dumps(["x", None]),
           "response_b": json.dumps(["y", "z"]),
           "winner_model_a": 0, "winner_model_b": 1, "winner_tie": 0}  # fmt: skip
    example = to_examples([row]).examples[0]
    assert example.prompt == [u("1")]
    assert example.chosen == [a("y"), u("2"), a("z")]
    assert example.rejected == [a("x"), u("2"), a("")]
