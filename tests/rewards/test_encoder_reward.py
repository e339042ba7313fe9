"""A published reward model that is an encoder: it scores, and says clearly what it cannot do."""

from pathlib import Path

import pytest
import tiny
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

from prefopt import Trainer, plan
from prefopt.core.errors import ModelError, UsageError
from prefopt.evaluation.run import evaluate
from prefopt.evaluation.spec import Evaluation
from prefopt.rewards.names import load_reward
from prefopt.rewards.reward import make_reward

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"abcdefghijklmnopqrstuvwxyz"]
PROMPTS = ["a b c", "d", "e f g h i j", "a b"]
COMPLETIONS = ["x y z z", "x", "k l m n o p q", ""]


def encoder(folder: Path, labels: int = 1) -> str:
    """A random one with a tokenizer that writes pairs, saved."""
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=24,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=40,
        num_labels=labels,
        initializer_range=0.5,
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def test_it_gives_what_its_own_forward_gives_for_each_pair_alone(tmp_path: Path) -> None:
    reward = load_reward(encoder(tmp_path))
    alone = [
        reward.model(**reward.tokenizer([prompt], [completion], return_tensors="pt")).logits.item()
        for prompt, completion in zip(PROMPTS, COMPLETIONS, strict=True)
    ]
    torch.testing.assert_close(reward(PROMPTS, COMPLETIONS), alone, rtol=0, atol=1e-5)
    assert max(alone) - min(alone) > 0.1
    swapped = reward(COMPLETIONS, PROMPTS)
    assert abs(swapped[0] - alone[0]) > 1e-3


def test_messages_are_read_as_their_contents(tmp_path: Path) -> None:
    reward = load_reward(encoder(tmp_path))
    messages = [{"role": "system", "content": "a"}, {"role": "user", "content": "b c"}]
    assert reward([messages], ["x"]) == reward(["a\nb c"], ["x"])


def test_it_rewards_a_run_by_the_name_of_its_folder(tmp_path: Path) -> None:
    run = Trainer(
        tiny.model(),
        "rejection_sampling",
        [{"prompt": row["prompt"]} for row in tiny.pairs(2)],
        processing_class=tiny.tokenizer(),
        reward=[encoder(tmp_path / "judge"), "empty_penalty"],
        generation={"n": 2, "max_new_tokens": 3},
        args={
            "output_dir": str(tmp_path / "out"),
            "max_steps": 1,
            "logging_steps": 1,
            "use_cpu": True,
            "report_to": "none",
        },
    )
    run.train()
    (log,) = [entry for entry in run.state.log_history if "reward/judge" in entry]
    assert log["reward"] == pytest.approx(log["reward/judge"] + log["reward/empty_penalty"])
    assert log["reward/judge"] != 0


def test_what_it_cannot_do_is_said(tmp_path: Path) -> None:
    name = encoder(tmp_path / "one")
    total, _ = make_reward(name)(["a"], ["b"], {})
    assert len(total) == 1
    with pytest.raises(UsageError, match=r"completion 1 with its prompt has 30 tokens, .* context is 24"):
        load_reward(name)(["a", "b " * 26], ["c", "d"])
    with pytest.raises(UsageError, match="2 prompts for 1 completions"):
        load_reward(name)(["a", "b"], ["c"])
    with pytest.raises(ModelError, match="3 labels"):
        load_reward(encoder(tmp_path / "three", labels=3))
    with pytest.raises(ModelError, match="an encoder can be given as `reward`"):
        evaluate(Evaluation(model=name, data=str(tmp_path / "pairs.json"), out=str(tmp_path / "report")))
    with pytest.raises(UsageError, match="is an encoder, whose passes cannot be planned"):
        plan(model=tiny.model().config, algorithm="grpo", reward=name, data={"max_length": 8})


def test_a_separator_that_somebody_wrote_stays_text(tmp_path: Path) -> None:
    reward = load_reward(encoder(tmp_path))
    # To this tokenizer a word of several letters is unknown, and a separator is not.
    assert reward(["a[SEP]b"], ["x"]) == reward(["abc"], ["x"])
