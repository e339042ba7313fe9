"""The prepared world: made once, cached whole, and never read stale."""

import json

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from prefopt.core.errors import DataError
from prefopt.lab import world
from prefopt.lab.reward import score
from prefopt.lab.world import WorldSettings, prepare

TINY = WorldSettings(steps=4, batch=4, prompts=12, held_out_prompts=6, samples=4, max_new_tokens=12)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def told():
    return []


@pytest.fixture(scope="module")
def lab(cache, told):
    return prepare(cache, settings=TINY, progress=lambda what, done: told.append((what, done)))


def test_everything_is_there(lab):
    assert len(lab.prompts) == 12 and len(lab.held_out_prompts) == 6
    assert not set(lab.prompts) & set(lab.held_out_prompts)
    assert {row["prompt"] for row in lab.pairs} <= set(lab.prompts)
    assert {row["prompt"] for row in lab.held_out_pairs} <= set(lab.held_out_prompts)
    assert len(lab.pairs) == 12 and len(lab.held_out_pairs) == 6
    assert lab.sft_rows[0] == {"prompt": lab.pairs[0]["prompt"], "completion": lab.pairs[0]["chosen"]}


def test_model_and_tokenizer_load_with_plain_transformers(lab):
    tokenizer = AutoTokenizer.from_pretrained(lab.model)
    model = AutoModelForCausalLM.from_pretrained(lab.model)
    assert model.config.eos_token_id == tokenizer.eos_token_id
    assert model.get_input_embeddings().num_embeddings == len(tokenizer)


def test_progress_is_told_from_start_to_end(lab, told):
    assert {what for what, _ in told} == {"pretraining", "sampling"}
    assert ("pretraining", 1.0) in told and ("sampling", 1.0) in told
    assert all(0 <= done <= 1 for _, done in told)


def test_reward_and_its_parts_are_the_gold_reward(lab):
    prompt, text = lab.held_out_prompts[0], "The bill was absolutely unbeatable."
    assert lab.reward([prompt], [text]) == [score(prompt, text).reward]
    assert set(lab.explain(prompt, text)) == {"grammar", "variety", "sentiment", "topic"}


def test_a_second_call_reads_what_the_first_one_made(lab, cache, monkeypatch):
    monkeypatch.setattr(world, "_make", lambda *_: pytest.fail("made again"))
    assert prepare(cache, settings=TINY) == lab


def test_the_same_seed_makes_the_same_world(lab, tmp_path):
    again = prepare(tmp_path, settings=TINY, progress=lambda *_: None)
    assert (again.pairs, again.held_out_pairs, again.prompts) == (lab.pairs, lab.held_out_pairs, lab.prompts)
    weights = [AutoModelForCausalLM.from_pretrained(each.model).state_dict() for each in (lab, again)]
    assert all((weights[0][name] == weights[1][name]).all() for name in weights[0])


def test_no_held_out_prompt_is_pretrained_on(tmp_path, monkeypatch):
    seen = []

    class Spy(Exception):
        pass

    def trainer(_model, _name, rows, **_):
        seen.extend(row["prompt"] for row in rows)
        raise Spy

    monkeypatch.setattr(world, "Trainer", trainer)
    many = WorldSettings(steps=20, batch=50, prompts=1000, held_out_prompts=3000)
    with pytest.raises(Spy):
        prepare(tmp_path, settings=many, progress=lambda *_: None)
    _, held_out = world.split_prompts(1000, 3000, 0)
    assert seen and not set(seen) & set(held_out)
    assert list(tmp_path.iterdir()) == []  # what failed leaves nothing behind


def test_the_name_of_the_cache_changes_with_what_the_world_is_made_from(monkeypatch, tmp_path):
    names = {world._key(TINY, 0), world._key(TINY, 1), world._key(WorldSettings(), 0)}
    assert len(names) == 3
    for name in world._SOURCES:
        (tmp_path / f"{name}.py").write_text("the same for all")
    monkeypatch.setattr(world, "__file__", str(tmp_path / "world.py"))
    before = world._key(TINY, 0)
    for name in world._SOURCES:
        (tmp_path / f"{name}.py").write_text("changed")
        assert world._key(TINY, 0) != before
        (tmp_path / f"{name}.py").write_text("the same for all")
    assert world._key(TINY, 0) == before


def test_the_cache_lies_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setenv("PREFOPT_CACHE", str(tmp_path))
    assert world._cache_root(None) == tmp_path / "lab"
    monkeypatch.delenv("PREFOPT_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert world._cache_root(None) == tmp_path / "home" / ".cache" / "prefopt" / "lab"


def test_a_damaged_cache_is_named_with_the_remedy(lab, cache, tmp_path):
    folder = tmp_path / lab.folder.name
    folder.mkdir()
    (folder / "pairs.json").write_text(json.dumps(lab.pairs)[:-5])
    with pytest.raises(DataError, match="delete that folder") as error:
        prepare(tmp_path, settings=TINY)
    assert str(folder) in str(error.value) and "\n" not in str(error.value)
