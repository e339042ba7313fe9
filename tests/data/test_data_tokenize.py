"""Seams between prompt and completion, end-of-turn tokens, chat templates, truncation."""

import copy
import json
from dataclasses import replace

import numpy as np
import pytest
from skipped import sentences

from prefopt.core.errors import DataError, UsageError
from prefopt.data import (
    DataSettings,
    DemonstrationExample,
    Encoder,
    LabelledExample,
    PairExample,
    PromptExample,
    prepare_dataset,
    render_prompt,
)
from prefopt.data.reasons import SkipRow
from prefopt.data.tokenize import tokenize


def u(text):
    return {"role": "user", "content": text}


def a(text, **more):
    return {"role": "assistant", "content": text, **more}


SETTINGS = DataSettings()


def complete(tokenizer, prompt, completion, method="completion", **settings):
    head, (ids, mask) = getattr(Encoder(tokenizer, DataSettings(**settings)), method)(prompt, completion)
    return head.tolist(), ids.tolist(), mask.tolist()


def counted(tokenizer, ids, mask):
    """The stretches that count, as text, with | between them."""
    runs, last = [], False
    for number, counts in zip(ids, mask, strict=True):
        if counts:
            runs = [*runs, [number]] if not last else [*runs[:-1], [*runs[-1], number]]
        last = counts
    return "|".join(tokenizer.decode(run) for run in runs)


@pytest.mark.parametrize("name", ["plain", "bos", "sentencepiece"])
@pytest.mark.parametrize("prompt", ["Once upon a time", "Once upon a time ", "Hi.", "The sky\n", "Hi, how are y"])
@pytest.mark.parametrize("completion", ["there was a dog.", " there was", "\nHi", "ou? The"])
def test_plain_text_seams(make, name, prompt, completion):
    tokenizer = make(name)
    head, ids, mask = complete(tokenizer, prompt, completion)
    # Generation tokenizes the prompt alone, the ordinary way.
    assert head == tokenizer(prompt).input_ids
    assert (
        tokenizer.decode(head + ids) == tokenizer.decode(tokenizer(prompt + completion).input_ids) + tokenizer.eos_token
    )
    assert ids.count(tokenizer.eos_token_id) == 1
    assert ids[-1] == tokenizer.eos_token_id
    assert all(mask)


def test_a_token_across_the_seam_is_really_met(make):
    """The suite above would prove nothing if no token of these tokenizers reached across."""
    tokenizer = make("sentencepiece")
    joined, alone = tokenizer("Once upon a time").input_ids, tokenizer("Once upon a t").input_ids
    assert joined[: len(alone)] != alone
    head, ids, _ = complete(tokenizer, "Once upon a t", "ime")
    assert head == alone
    assert tokenizer.decode(head + ids) == tokenizer.decode(joined) + "</s>"


def test_bos_once_also_where_the_text_has_it(make):
    tokenizer = make("bos")
    bos = tokenizer.bos_token_id
    for prompt, rendered in (("Hi", False), ("<s>Hi", True)):
        head, ids, _ = complete(tokenizer, prompt, " you", prerendered=rendered)
        assert (head + ids).count(bos) == 1
        assert head[0] == bos
    llama = make("llama2")
    head, ids, _ = complete(llama, [u("Hi")], [a("you")])
    assert (head + ids).count(bos) == 1
    # A template without BOS means that there is none; a tokenizer without BOS gets none.
    assert complete(make("plain"), "Hi", " you")[0] == make("plain")("Hi").input_ids


def test_eos_once_also_where_the_text_has_it(make):
    tokenizer = make("bos")
    rendered = complete(tokenizer, "Hi", " you</s>", prerendered=True)
    assert rendered[1] == complete(tokenizer, "Hi", " you")[1]


def test_an_empty_prompt_needs_bos(make):
    assert complete(make("bos"), "", "you")[0] == [make("bos").bos_token_id]
    with pytest.raises(SkipRow, match="empty prompt"):
        complete(make("plain"), "", "you")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("chatml", "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n@you<|im_end|>"),
        ("llama2", "<s>[INST] Hi [/INST]@ you </s>"),
        ("qwen3", "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n@<think>\n\n</think>\n\nyou<|im_end|>"),
        ("plain", "User:\nHi\n\nAssistant:\n@you<|endoftext|>"),
    ],
)
def test_one_answer_ends_with_the_end_of_its_turn(make, name, text):
    tokenizer = make(name)
    head, ids, mask = complete(tokenizer, [u("Hi")], [a("you")])
    assert tokenizer.decode(head) + "@" + tokenizer.decode(ids) == text
    assert all(mask)
    rendered = render_prompt([u("Hi")], tokenizer)
    assert head == tokenizer(rendered, add_special_tokens=False).input_ids


def test_template_arguments_reach_the_template(make):
    prompt = render_prompt([u("Hi")], make("qwen3"), DataSettings(template_args={"enable_thinking": False}))
    assert prompt.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    _, ids, _ = complete(make("qwen3"), [u("Hi")], [a("you")], template_args={"enable_thinking": False})
    assert make("qwen3").decode(ids) == "you<|im_end|>"
    with pytest.raises(UsageError, match=r"does not read 'enable_thinkin'.*Did you mean 'enable_thinking'"):
        render_prompt([u("Hi")], make("qwen3"), DataSettings(template_args={"enable_thinkin": False}))
    with pytest.raises(UsageError, match="no chat template"):
        complete(make("plain"), "Hi", "you", template_args={"enable_thinking": False})


TALK = [a("good dog"), u("and?"), a("bad cat")]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("chatml", "good dog<|im_end|>|bad cat<|im_end|>"),
        ("generation", "good dog<|im_end|>|bad cat<|im_end|>"),
        ("llama2", " good dog </s>| bad cat </s>"),
        ("plain", "good dog<|endoftext|>|bad cat<|endoftext|>"),
    ],
)
@pytest.mark.parametrize("method", ["completion", "demonstration"])
def test_only_the_assistants_turns_count(make, name, text, method):
    tokenizer = make(name)
    head, ids, mask = complete(tokenizer, [u("Hi")], TALK, method)
    assert counted(tokenizer, ids, mask) == text
    assert mask[-1]
    whole = tokenizer.decode(head + ids)
    if tokenizer.chat_template:
        messages = [u("Hi"), *TALK]
        assert whole == tokenizer.apply_chat_template(messages, tokenize=False).rstrip("\n")
    assert "and?" in whole


def test_turns_without_weight_do_not_count(make):
    for name in ("chatml", "generation", "plain"):
        talk = [a("good dog", weight=0), u("and?"), a("bad cat")]
        _, ids, mask = complete(make(name), [u("Hi")], talk, "demonstration")
        assert counted(make(name), ids, mask).startswith("bad cat<|")
        assert "good dog" in make(name).decode(ids)


def test_a_template_that_rewrites_earlier_turns(make):
    rows = [
        DemonstrationExample([u("Hi")], TALK),
        DemonstrationExample([u("Hi")], TALK[:1]),
        PairExample([u("Hi")], TALK, TALK[:1]),
    ]
    made = tokenize(rows, make("qwen3"), SETTINGS, 200)
    assert sentences(made.dropped) == {"whose earlier turns the chat template rewrites": 1}
    # Every answer is learned behind the text that the model sees when it writes it.
    assert (made.split, made.added, [each.id for each in made.examples]) == (1, 1, [0, 1, 2])
    behind = [([u("Hi")], TALK[:1]), ([u("Hi"), *TALK[:2]], TALK[2:])]
    for example, (prompt, answer) in zip(made.examples, behind, strict=False):
        head, ids, _ = complete(make("qwen3"), prompt, answer)
        assert (example.prompt.tolist(), example.completions[0].tolist()) == (head, ids)
    refused = tokenize([DemonstrationExample([u("Hi"), u("there")], TALK[:1])], make("llama2"), SETTINGS, 200)
    assert sentences(refused.dropped) == {"which the chat template refuses (roles must alternate)": 1}


def test_a_conversation_that_is_split_is_counted_by_its_answers(make):
    rows = [{"messages": [u("Hi"), *TALK]}, {"messages": [u("Hi"), *TALK[:1]]}]
    data = prepare_dataset(rows, "demonstrations", make("qwen3"))
    assert data.audit.lines()[0] == "demonstrations: 3 read, 3 kept, none dropped"
    assert [each.row for each in data.examples] == [0, 0, 1]
    assert any(note.startswith("1 conversations read as 2 examples, one for each answer") for note in data.notes)


def test_a_template_that_ends_the_whole_text_with_eos(make):
    """Phi-3: the end of a turn is a token of its own, and EOS stands behind the last turn only."""
    closing = make("own")(make("chatml").chat_template + "{% if not add_generation_prompt %}{{ eos_token }}{% endif %}")
    for completion in (TALK, TALK[:1]):
        example = PairExample([u("Hi")], completion, [a("no")])
        (made,) = tokenize([example], closing, SETTINGS, 200).examples
        turns = [turn["content"] for turn in completion if turn["role"] == "assistant"]
        end = "<|im_end|>"
        assert counted(closing, made.completions[0].tolist(), made.mask(0)) == "|".join(
            [turn + end for turn in turns[:-1]] + [turns[-1] + end + "\n<|endoftext|>"]
        )


# ---- the start of an answer ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["chatml", "generation", "llama2", "qwen3", "plain", "bos"])
def test_a_prompt_that_ends_in_the_start_of_an_answer_is_continued(make, name):
    tokenizer = make(name)
    for method in ("completion", "demonstration"):
        head, ids, mask = complete(tokenizer, [u("Hi"), a("good")], [a(" dog")], method)
        whole, answer, _ = complete(tokenizer, [u("Hi")], [a("good dog")], method)
        assert tokenizer.decode(head + ids) == tokenizer.decode(whole + answer)
        assert counted(tokenizer, ids, mask).startswith(" dog")
        assert head == Encoder(tokenizer, SETTINGS).prompt([u("Hi"), a("good")]).tolist()
        assert tokenizer.decode(head).endswith("good")


def test_starts_that_cannot_be_continued(make):
    call = a("", tool_calls=[{"type": "function", "function": {"name": "f", "arguments": {}}}])
    rows = [PairExample([u("Hi"), call], [a("x")], [a("y")]), PairExample([a("Hi")], [a("x")], [a("y")])]
    assert sentences(tokenize(rows, make("chatml"), SETTINGS, 200).dropped) == {
        "whose prompt ends in a tool call without a result": 1,
        "without a prompt": 1,
    }
    # The generation prompt opens a block that the template does not write before an answer.
    thinking = tokenize([PairExample([u("Hi"), a("good")], [a("x")], [a("y")])], make("own")(THINKING), SETTINGS, 200)
    assert sentences(thinking.dropped) == {
        "whose answer the chat template does not write after its own generation prompt": 1
    }


# ---- arguments for the template --------------------------------------------------------------------------------------

THINK = {"enable_thinking": True}
NO_THINK = {"enable_thinking": False}


@pytest.mark.parametrize("given", [NO_THINK, json.dumps(NO_THINK), str(NO_THINK), {**NO_THINK, "other": None}])
def test_a_row_brings_arguments_for_the_template(make, given):
    rows = [
        {"prompt": [u("Hi")], "chosen": "x", "rejected": "y", "chat_template_kwargs": value}
        for value in (given, None, {})
    ]
    for settings, others in (({}, THINK), ({"template_args": THINK}, THINK), ({"template_args": NO_THINK}, NO_THINK)):
        data = prepare_dataset(rows, "pairs", make("qwen3"), settings)
        for example, arguments in zip(data.examples, (NO_THINK, others, others), strict=True):
            head, ids, _ = complete(make("qwen3"), [u("Hi")], [a("x")], template_args=arguments)
            assert (example.prompt.tolist(), example.completions[0].tolist()) == (head, ids)
        assert "chat_template_kwargs of 1 rows: 'enable_thinking' is used" in data.notes
    prompts = prepare_dataset(rows[:1], "prompts", make("qwen3"))
    assert make("qwen3").decode(prompts[0].prompt).endswith("</think>\n\n")


def test_arguments_that_the_template_does_not_read_are_said(make):
    own = {"chat_template": "x", "tokenize": True, "enable_thinkin": False}
    row = {"prompt": [u("Hi")], "chosen": "x", "rejected": "y"}
    for name in ("qwen3", "plain"):
        data = prepare_dataset([{**row, "chat_template_kwargs": own}], "pairs", make(name))
        for argument in own:
            words = f"chat_template_kwargs of 1 rows: {argument!r} is not read by the chat template, and not used"
            assert words in data.notes
        assert np.array_equal(data[0].prompt, prepare_dataset([row], "pairs", make(name))[0].prompt)
    made = tokenize(
        [PairExample([u("Hi")], "x", "y", columns={"chat_template_kwargs": [1]})], make("qwen3"), SETTINGS, 99
    )
    assert sentences(made.dropped) == {"whose 'chat_template_kwargs' is no mapping of names to values": 1}


THINKING = (
    "{% for m in messages %}{% if m.role == 'user' %}U:{{ m.content }}{% else %}A:{{ m.content }}<|im_end|>{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'A:<think>' }}{% endif %}"
)


def test_an_answer_that_the_generation_prompt_does_not_lead_to(make):
    tokenizer = copy.copy(make("chatml"))
    tokenizer.chat_template = THINKING
    rows = [PairExample([u("Hi")], [a("you")], [a("me")]), PairExample([u("Hi")], [a("<think>x")], [a("<think>y")])]
    made = tokenize(rows, tokenizer, SETTINGS, 200)
    assert sentences(made.dropped) == {
        "whose answer the chat template does not write after its own generation prompt": 1
    }


def test_a_generation_template_that_renders_the_prompt_otherwise_later(make):
    tokenizer = copy.copy(make("generation"))
    tokenizer.chat_template = "{% if not add_generation_prompt %}later {% endif %}" + tokenizer.chat_template
    made = tokenize([DemonstrationExample([u("Hi")], TALK)], tokenizer, SETTINGS, 200)
    assert sentences(made.dropped) == {"whose earlier turns the chat template rewrites": 1}


def test_what_plain_text_cannot_say(make):
    tools = PromptExample([u("Hi")], columns={"tools": [{"name": "f"}]})
    assert sentences(tokenize([tools], make("plain"), SETTINGS, 99).dropped) == {
        "with tools, which only a chat template can write": 1
    }
    with pytest.raises(DataError, match="cannot be rendered"):
        render_prompt([u("Hi"), a("", tool_calls=[{"name": "f"}])], make("plain"))
    with pytest.raises(DataError, match="roles must alternate"):
        render_prompt([u("Hi"), u("you")], make("llama2"))


def test_tools_reach_the_template(make):
    tokenizer = copy.copy(make("chatml"))
    tokenizer.chat_template = "{% if tools %}{{ tools[0].name }}{% endif %}" + tokenizer.chat_template
    for tools in ([{"name": "fff"}], '[{"name": "fff"}]'):
        example = tokenize([PromptExample([u("Hi")], columns={"tools": tools})], tokenizer, SETTINGS, 99).examples[0]
        assert tokenizer.decode(example.prompt).startswith("fff<|im_start|>")


def test_stop_ids(make):
    names = {"chatml": ["<|endoftext|>", "<|im_end|>"], "llama2": ["</s>"], "plain": ["<|endoftext|>"]}
    for name, stops in names.items():
        assert make(name).convert_ids_to_tokens(Encoder(make(name), SETTINGS).stop_ids()) == stops


def test_null_content_is_never_the_word_none(make):
    from prefopt.data import to_examples

    call = {"role": "assistant", "content": None, "tool_calls": None}
    rows = [{"messages": [u("Hi"), call, u("and?"), a("you")]}]
    made = tokenize(to_examples(rows).examples, make("chatml"), SETTINGS, 200)
    assert "None" not in make("chatml").decode(made.examples[0].completions[0])


PAIR = PairExample("Once upon a time", " there was a little dog.", " no.")


def lengths(tokenizer, example):
    made = tokenize([example], tokenizer, SETTINGS, 1000).examples[0]
    return len(made.prompt), max(map(len, made.completions))


@pytest.mark.parametrize("truncation", ["drop", "keep-start", "keep-end"])
def test_a_row_that_just_fits_is_whole(make, truncation):
    prompt, longest = lengths(make("bos"), PAIR)
    made = tokenize([PAIR], make("bos"), DataSettings(truncation=truncation), prompt + longest)
    assert (len(made.examples), made.cut) == (1, 0)


def test_drop(make):
    prompt, longest = lengths(make("bos"), PAIR)
    limit = prompt + longest - 1
    assert sentences(tokenize([PAIR], make("bos"), SETTINGS, limit).dropped) == {f"longer than {limit} tokens": 1}
    assert sentences(tokenize([PAIR], make("bos"), SETTINGS, prompt).dropped) == {
        f"with a prompt of {prompt} tokens or more": 1
    }


def test_keep_start_cuts_completions_and_labels_no_eos(make):
    tokenizer, settings = make("bos"), DataSettings(truncation="keep-start")
    whole = tokenize([PAIR], tokenizer, SETTINGS, 1000).examples[0]
    prompt, longest = lengths(tokenizer, PAIR)
    made = tokenize([PAIR], tokenizer, settings, prompt + longest - 2)
    cut = made.examples[0]
    assert made.cut == 1
    assert cut.completions[0].tolist() == whole.completions[0][:-2].tolist()
    assert tokenizer.eos_token_id not in cut.completions[0]
    assert cut.completions[1].tolist() == whole.completions[1].tolist()
    assert sentences(tokenize([PAIR], tokenizer, settings, prompt).dropped) == {
        f"with a prompt of {prompt} tokens or more": 1
    }


def test_identical_after_the_cut(make):
    pair = PairExample("Once", " The dog said hello", " The dog said no")
    prompt, _ = lengths(make("bos"), pair)
    made = tokenize([pair], make("bos"), DataSettings(truncation="keep-start"), prompt + 2)
    assert sentences(made.dropped) == {"identical after the cut": 1}


def test_keep_end_cuts_the_start_of_the_prompt_behind_bos(make):
    tokenizer, settings = make("bos"), DataSettings(truncation="keep-end")
    whole = tokenize([PAIR], tokenizer, SETTINGS, 1000).examples[0]
    prompt, longest = lengths(tokenizer, PAIR)
    made = tokenize([PAIR], tokenizer, settings, prompt + longest - 2)
    cut = made.examples[0]
    assert cut.prompt.tolist() == [tokenizer.bos_token_id, *whole.prompt[3:].tolist()]
    assert cut.completions[0].tolist() == whole.completions[0].tolist()
    dropped = tokenize([PAIR], tokenizer, settings, longest).dropped
    assert sentences(dropped) == {f"with a completion of {longest} tokens or more": 1}


def test_useless_rows_are_dropped_with_their_reasons(make):
    rows = [
        PairExample("Hi", "x", "x"),
        PairExample("Hi", "x", " "),
        PairExample([u("Hi")], [a("")], [a("x")]),
        PairExample("Hi", "x</s>", "x"),
    ]
    dropped = tokenize(rows, make("bos"), replace(SETTINGS, prerendered=True), 99).dropped
    assert sentences(dropped) == {"with chosen equal to rejected": 2, "with an empty completion": 2}


def test_labels_ids_and_types(make):
    rows = [LabelledExample("Hi", "", True), LabelledExample("Hi", " x", False), PromptExample("Hi")]
    labelled = tokenize(rows[:2], make("bos"), SETTINGS, 99).examples
    assert [(row.id, row.labels) for row in labelled] == [(0, {"desirable": False})]
    assert labelled[0].prompt.dtype == labelled[0].completions[0].dtype == "int32"
    assert labelled[0].masks is None
    assert tokenize(rows[2:], make("bos"), SETTINGS, 99).examples[0].completions == ()
    pair = PairExample("Hi", "x", "y", labels={"preference": 0.75, "chosen_score": 2.0})
    assert tokenize([pair], make("bos"), SETTINGS, 99).examples[0].labels == {"preference": 0.75, "chosen_score": 2.0}
