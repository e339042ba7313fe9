"""Completions follow the model's own distribution, whatever its generation config says, and belong to their keys."""

from collections import Counter

import numpy as np
import pytest
import tiny
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from prefopt.core.errors import UsageError
from prefopt.rollouts import GenerationSettings, Sample, SampleKeys, TransformersGenerator, kv_cache
from prefopt.rollouts.draws import truncated

PROMPT = np.array([1, 7, 8, 9], dtype=np.int32)
TRAPS = {
    "repetition_penalty": 1.5,
    "encoder_repetition_penalty": 1.5,
    "no_repeat_ngram_size": 1,
    "min_p": 0.2,
    "typical_p": 0.5,
    "epsilon_cutoff": 0.1,
    "eta_cutoff": 0.1,
    "top_h": 0.3,
    "top_k": 3,
    "top_p": 0.4,
    "temperature": 0.3,
    "min_new_tokens": 2,
    "min_length": 6,
    "suppress_tokens": [8, 9],
    "begin_suppress_tokens": [10],
    "bad_words_ids": [[11]],
    "sequence_bias": [[[12], 3.0]],
    "exponential_decay_length_penalty": (1, 1.5),
    "forced_bos_token_id": 13,
    "forced_eos_token_id": 2,
    "guidance_scale": 1.5,
    "num_beams": 3,
    "stop_strings": ["a"],
    "max_time": 1e-9,
    "renormalize_logits": True,
    "num_return_sequences": 2,
    "cache_implementation": "static",
    "return_dict_in_generate": True,
}


def probabilities(model: torch.nn.Module, ids: list[int], temperature: float = 1.0) -> np.ndarray:
    with torch.no_grad():
        return (model(torch.tensor([ids])).logits[0, -1].double() / temperature).softmax(-1).numpy()


def generate(model: torch.nn.Module, prompts: list, stops: list[int] = (), keys: SampleKeys | None = None, **settings):
    generator = TransformersGenerator(tiny.tokenizer(), stops)
    return generator.generate(model, prompts, GenerationSettings(**settings), keys=keys)


def test_two_tokens_follow_the_law_of_the_model_with_a_generation_config_full_of_traps() -> None:
    """χ² of the first token, of the second after the likeliest first one, and of both kinds of end."""
    model, n = tiny.model(), 4000
    for name, value in TRAPS.items():
        setattr(model.generation_config, name, value)
    before = model.generation_config.to_dict()
    torch.manual_seed(0)
    samples = generate(model, [PROMPT], n=n, max_new_tokens=2, batch_size=n)[0]
    assert model.generation_config.to_dict() == before
    first = probabilities(model, PROMPT.tolist())
    assert chi_square(Counter(int(one.ids[0]) for one in samples), first, n) < 3
    likely = int(np.delete(first, 2).argmax())
    likely += likely >= 2
    second = [int(one.ids[1]) for one in samples if one.ids[0] == likely]
    assert chi_square(Counter(second), probabilities(model, [*PROMPT.tolist(), likely]), len(second)) < 3


def chi_square(counts: Counter, expected: np.ndarray, n: int) -> float:
    """How many standard deviations χ² is above its mean, over tokens that are expected often enough."""
    often = expected * n >= 5
    observed = np.array([counts[i] for i in range(len(expected))])
    cells = [*zip(observed[often], expected[often] * n, strict=True)]
    cells.append((observed[~often].sum(), max(expected[~often].sum() * n, 1e-9)))
    value = sum((o - e) ** 2 / e for o, e in cells if e > 1e-6)
    return (value - len(cells) + 1) / (2 * len(cells)) ** 0.5


def test_truncation_and_temperature_have_their_own_law() -> None:
    model, n = tiny.model(), 4000
    law = probabilities(model, PROMPT.tolist(), 0.7)
    order = np.argsort(-law)
    for settings, size in (({"top_k": 4}, 4), ({"top_p": 0.5}, int(np.searchsorted(law[order].cumsum(), 0.5)) + 1)):
        torch.manual_seed(1)
        samples = generate(model, [PROMPT], n=n, max_new_tokens=1, batch_size=n, temperature=0.7, **settings)[0]
        kept = np.zeros_like(law)
        kept[order[:size]] = law[order[:size]] / law[order[:size]].sum()
        counts = Counter(int(one.ids[0]) for one in samples)
        assert set(counts) <= set(order[:size].tolist())
        assert chi_square(counts, kept, n) < 3
    everything = truncated(torch.tensor([[0.0, 1.0, 2.0]]), top_k=0, top_p=1.0)
    assert everything.isfinite().all()


def ids_of(group: list[Sample]) -> list[list[int]]:
    return [one.ids.tolist() for one in group]


def test_a_completion_depends_on_its_keys_and_on_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.model(3).double()
    prompts = [np.array(ids, dtype=np.int32) for ids in ([1, 7, 8, 9, 10, 11], [1, 12], [9], [1, 20, 21, 22])]
    together = generate(model, prompts, keys=SampleKeys(5, [30, 31, 32, 33]), n=4, max_new_tokens=20)
    for i, prompt in enumerate(prompts):
        alone = generate(model, [prompt], keys=SampleKeys(5, [30 + i]), n=4, max_new_tokens=20, batch_size=2)[0]
        assert ids_of(alone) == ids_of(together[i])
        later = generate(model, [prompt], keys=SampleKeys(5, [30 + i], first=2), n=2, max_new_tokens=20)[0]
        assert ids_of(later) == ids_of(together[i])[2:]
    monkeypatch.setattr(kv_cache, "keeps_all", lambda model: False)
    plain = generate(model, prompts, keys=SampleKeys(5, [30, 31, 32, 33]), n=4, max_new_tokens=20)
    assert [ids_of(group) for group in plain] == [ids_of(group) for group in together]
    for keys in (SampleKeys(6, [30]), SampleKeys(5, [31]), SampleKeys(5, [30], first=4)):
        assert ids_of(generate(model, prompts[:1], keys=keys, n=4, max_new_tokens=20)[0]) != ids_of(together[0])
    assert len({tuple(ids) for ids in ids_of(together[0])}) == 4


def test_a_stop_string_ends_a_completion_and_invents_no_end_token() -> None:
    model, tokenizer = tiny.model(), tiny.tokenizer()
    keys = SampleKeys(1, [0])
    free = generate(model, [PROMPT], keys=keys, n=32, max_new_tokens=24, stops=[2])[0]
    stopped = generate(model, [PROMPT], keys=keys, n=32, max_new_tokens=24, stops=[2], stop_strings=["k", "d e"])[0]
    assert any(len(one.ids) < len(other.ids) for one, other in zip(stopped, free, strict=True))
    for one, other in zip(stopped, free, strict=True):
        # The same tokens, up to the stop.
        assert one.ids.tolist() == other.ids.tolist()[: len(one.ids)]
        np.testing.assert_array_equal(one.logps, other.logps[: len(one.ids)])
        text = tokenizer.decode(one.ids)
        inside = tokenizer.decode(one.ids[:-1])
        assert not any(stop in inside for stop in ("k", "d e"))
        by_string = any(stop in text for stop in ("k", "d e"))
        assert one.ended == (by_string or one.ids[-1] == 2)
        assert one.ended or len(one.ids) == 24
        if by_string:
            assert one.ids[-1] != 2
    with pytest.raises(UsageError, match=r"stop_strings=.* must be a list of texts"):
        GenerationSettings(stop_strings=[""])


def test_no_completion_ends_before_its_least_length() -> None:
    stops = [2, *range(8, 20)]
    short = generate(tiny.model(), [PROMPT], keys=SampleKeys(1, [0]), n=32, max_new_tokens=9, stops=stops)[0]
    long = generate(
        tiny.model(), [PROMPT], keys=SampleKeys(1, [0]), n=32, max_new_tokens=9, min_new_tokens=5, stops=stops
    )[0]
    assert min(len(one.ids) for one in short) < 5 <= min(len(one.ids) for one in long)


@pytest.mark.parametrize("cached", [True, False])
def test_the_longest_prompt_of_a_batch_cuts_nobody_else(cached: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Positions are learned here, so a row that went on past the context would crash."""
    if not cached:
        monkeypatch.setattr(kv_cache, "keeps_all", lambda model: False)
        monkeypatch.setattr("prefopt.rollouts.generator.keeps_all", lambda model: False)
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=30, n_positions=48, n_embd=16, n_layer=1, n_head=2)).eval()
    prompts = [np.full(length, 7, dtype=np.int32) for length in (3, 40, 47, 20)]
    groups = generate(model, prompts, stops=[29_000], n=2, max_new_tokens=25, keys=SampleKeys(0, range(4)))
    assert [[len(one.ids) for one in group] for group in groups] == [[25, 25], [8, 8], [1, 1], [25, 25]]
    assert [[one.limit for one in group] for group in groups] == [[25, 25], [8, 8], [1, 1], [25, 25]]
    with pytest.raises(UsageError, match="a prompt of 48 tokens leaves no room in the model's context of 48"):
        generate(model, [np.full(48, 7, dtype=np.int32)], n=1)
