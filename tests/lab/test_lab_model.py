"""The lab's tokenizer and its untrained model."""

import pytest
import torch
from transformers import AutoTokenizer

from prefopt.lab.model import build_model
from prefopt.lab.tokenizer import CONTEXT, build_tokenizer
from prefopt.lab.writer import corpus


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


def test_texts_come_back_as_they_were(tokenizer):
    for brief, text in corpus(500, 7):
        for whole in (brief.prompt, text):
            ids = tokenizer(whole).input_ids
            assert tokenizer.unk_token_id not in ids, whole
            assert tokenizer.decode(ids, skip_special_tokens=True) == whole


def test_no_token_spans_prompt_and_completion(tokenizer):
    for brief, text in corpus(200, 8):
        prompt = tokenizer(brief.prompt).input_ids
        for completion in (text, " " + text):
            alone = tokenizer(completion, add_special_tokens=False).input_ids
            assert prompt + alone == tokenizer(brief.prompt + completion).input_ids


def test_encoding_begins_with_bos_and_is_the_same_every_time(tokenizer):
    assert tokenizer("The bill was fair.").input_ids[0] == tokenizer.bos_token_id
    assert build_tokenizer().get_vocab() == tokenizer.get_vocab()
    assert 300 < len(tokenizer) < 1000
    assert len({tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id}) == 4


def test_texts_fit_the_context_with_room_to_spare(tokenizer):
    longest = max(len(tokenizer(brief.prompt + " " + text).input_ids) for brief, text in corpus(3000, 9))
    assert longest + 1 < 0.75 * CONTEXT


def test_a_saved_tokenizer_is_the_same(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    brief, text = next(corpus(1, 10))
    assert loaded(brief.prompt + " " + text).input_ids == tokenizer(brief.prompt + " " + text).input_ids
    assert loaded.decode(loaded(text).input_ids, skip_special_tokens=True) == text


def test_the_model_has_about_a_million_parameters_and_depends_on_its_seed_alone(tokenizer):
    torch.manual_seed(1)
    state = torch.random.get_rng_state()
    model = build_model(tokenizer, seed=0)
    assert torch.equal(state, torch.random.get_rng_state())
    assert 0.9e6 < sum(p.numel() for p in model.parameters()) < 1.2e6
    torch.manual_seed(2)
    for ours, again, other in zip(
        model.parameters(),
        build_model(tokenizer).parameters(),
        build_model(tokenizer, seed=1).parameters(),
        strict=True,
    ):
        assert torch.equal(ours, again)
        assert ours.dim() == 1 or not torch.equal(ours, other)
