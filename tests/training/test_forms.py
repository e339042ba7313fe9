"""Every documented form of the arguments of `prefopt.Trainer` trains."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import peft
import pyarrow
import pyarrow.parquet
import pytest
import tiny
from transformers import TrainerCallback, TrainingArguments

import prefopt
from prefopt.core.errors import UsageError
from prefopt.data import prepare_dataset

QUICK = {"max_steps": 2, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 1, "report_to": "none"}
QUICK |= {"use_cpu": True, "save_strategy": "no", "disable_tqdm": True}
ROWS = [{key: row[key] for key in ("prompt", "chosen", "rejected")} for row in tiny.pairs(6)]
ONLINE = {"algorithm": "online_dpo", "generation": {"n": 2, "max_new_tokens": 4}}


def longest(prompts: list, completions: list) -> list[float]:
    return [float(len(text)) for text in completions]


class Counting(TrainerCallback):
    steps = 0

    def on_step_end(self, *_: Any, **__: Any) -> None:
        Counting.steps += 1


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with models and data in it."""
    folder = tmp_path_factory.mktemp("world")
    tiny.save(folder / "owner" / "model")
    adapted(tiny.model()).save_pretrained(folder / "adapter")
    tiny.tokenizer().save_pretrained(folder / "adapter")
    values = json.loads((folder / "adapter" / "adapter_config.json").read_text())
    values["base_model_name_or_path"] = str(folder / "owner" / "model")
    (folder / "adapter" / "adapter_config.json").write_text(json.dumps(values))
    (folder / "rows.json").write_text(json.dumps(ROWS))
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), folder / "rows.parquet")
    with (folder / "rows.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(ROWS[0]))
        writer.writeheader()
        writer.writerows(ROWS)
    datasets.Dataset.from_list(ROWS).save_to_disk(folder / "saved")
    (folder / "reward.py").write_text(
        "def longest(prompts, completions):\n    return [1.0 * len(c) for c in completions]\n"
    )
    return folder


def adapted(model: Any) -> peft.PeftModel:
    return peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))


def tokenized() -> Any:
    return prepare_dataset(ROWS, "pairs", tiny.tokenizer())


MADE: dict[str, dict[str, Callable[[Path], dict[str, Any]]]] = {
    "model": {
        "a path": lambda w: {"model": str(w / "owner" / "model")},
        "a Path": lambda w: {"model": w / "owner" / "model"},
        "a path like a hub id": lambda w: {"model": "owner/model"},
        "a folder of an adapter": lambda w: {"model": str(w / "adapter")},
        "a loaded model": lambda w: {"model": tiny.model(), "processing_class": tiny.tokenizer()},
        "a loaded peft model": lambda w: {"model": adapted(tiny.model()), "processing_class": tiny.tokenizer()},
    },
    "algorithm": {
        "a name": lambda w: {"algorithm": "ipo"},
        "a call": lambda w: {"algorithm": "dpo(beta=0.3)"},
        "a sum": lambda w: {"algorithm": "dpo + 0.2*sft"},
        "an objective": lambda w: {"algorithm": prefopt.get_objective("dpo", beta=0.3)},
        "a sum of objectives": lambda w: {
            "algorithm": prefopt.get_objective("dpo") + 0.2 * prefopt.get_objective("sft")
        },
        "an algorithm": lambda w: {"algorithm": prefopt.get_algorithm("dpo", beta=0.3)},
    },
    "train_dataset": {
        "json": lambda w: {"train_dataset": str(w / "rows.json")},
        "jsonl": lambda w: {"train_dataset": w / "rows.jsonl"},
        "csv": lambda w: {"train_dataset": w / "rows.csv"},
        "parquet": lambda w: {"train_dataset": w / "rows.parquet"},
        "a saved dataset": lambda w: {"train_dataset": w / "saved"},
        "a Dataset": lambda w: {"train_dataset": datasets.Dataset.from_list(ROWS)},
        "a DatasetDict": lambda w: {"train_dataset": datasets.DatasetDict(train=datasets.Dataset.from_list(ROWS))},
        "dicts": lambda w: {"train_dataset": ROWS},
        "a tokenized dataset": lambda w: {"train_dataset": tokenized()},
    },
    "eval_dataset": {
        "json": lambda w: {"eval_dataset": str(w / "rows.json")},
        "a Dataset": lambda w: {"eval_dataset": datasets.Dataset.from_list(ROWS)},
        "dicts": lambda w: {"eval_dataset": ROWS},
        "a tokenized dataset": lambda w: {"eval_dataset": tokenized()},
        "several": lambda w: {"eval_dataset": {"one": ROWS, "other": w / "rows.json"}},
    },
    "adapter": {
        "none": lambda w: {"adapter": None},
        "lora": lambda w: {"adapter": "lora"},
        "qlora": lambda w: {"adapter": "qlora"},
        "a LoraConfig": lambda w: {"adapter": peft.LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")},
    },
    "reference": {
        "none": lambda w: {"reference": None},
        "a path": lambda w: {"reference": str(w / "owner" / "model")},
        "a Path": lambda w: {"reference": w / "owner" / "model"},
        "a folder of an adapter": lambda w: {"reference": str(w / "adapter")},
        "a loaded model": lambda w: {"reference": tiny.model(1)},
    },
    "reward": {
        "a function": lambda w: ONLINE | {"reward": longest},
        "FILE.py:NAME": lambda w: ONLINE | {"reward": f"{w / 'reward.py'}:longest"},
        "a built-in": lambda w: ONLINE | {"reward": "length_penalty"},
        "a built-in with settings": lambda w: ONLINE | {"reward": "length_penalty(limit=1)"},
        "a name with a weight": lambda w: ONLINE | {"reward": "0.5*length_penalty"},
        "a pair with a weight": lambda w: ONLINE | {"reward": (longest, 0.5)},
        "a list with weights": lambda w: ONLINE | {"reward": [(longest, 0.5), "0.1*length_penalty", "empty_penalty"]},
        "a mapping": lambda w: ONLINE | {"reward": {"reward": "length_penalty", "weight": 0.5}},
        "an ensemble": lambda w: ONLINE | {"reward": {"ensemble": [longest, "length_penalty"], "how": "min"}},
        "an Ensemble": lambda w: ONLINE | {"reward": prefopt.Ensemble([longest, "length_penalty"])},
        "a made reward": lambda w: ONLINE | {"reward": prefopt.make_reward([longest])},
    },
    "processing_class": {
        "none": lambda w: {"processing_class": None},
        "a tokenizer": lambda w: {"processing_class": tiny.tokenizer()},
    },
    "data": {
        "none": lambda w: {"data": None},
        "a dict": lambda w: {"data": {"max_length": 40, "truncation": "keep-start"}},
        "DataSettings": lambda w: {"data": prefopt.DataSettings(max_length=40)},
    },
    "generation": {
        "a dict": lambda w: ONLINE | {"reward": longest},
        "GenerationSettings": lambda w: (
            ONLINE | {"reward": longest, "generation": prefopt.GenerationSettings(n=2, max_new_tokens=4)}
        ),
    },
    "args": {
        "a dict": lambda w: {"args": QUICK | {"learning_rate": 1e-3}},
        "TrainingArguments": lambda w: {"args": TrainingArguments(output_dir=str(w / "out"), **QUICK)},
    },
    "callbacks": {
        "objects": lambda w: {"callbacks": [Counting()]},
        "a tuple": lambda w: {"callbacks": (Counting(),)},
        "classes": lambda w: {"callbacks": [Counting]},
        "a watch": lambda w: ONLINE | {"reward": longest, "callbacks": [prefopt.Watch(stop=True, held_out=ROWS)]},
        "the class of the watch": lambda w: ONLINE | {"reward": longest, "callbacks": [prefopt.Watch]},
    },
    "lora": {"a dict": lambda w: {"adapter": "lora", "lora": {"r": 2}}},
    "reference_cache": {
        "a path": lambda w: {"reference_cache": str(w / "cache")},
        "a Path": lambda w: {"reference_cache": w / "cache"},
    },
    "share_prompts": {"on": lambda w: {"share_prompts": True}, "off": lambda w: {"share_prompts": False}},
    "trust_remote_code": {
        "on": lambda w: {"trust_remote_code": True},
        "off": lambda w: {"trust_remote_code": False},
    },
}
FORMS = [(name, form) for name, forms in MADE.items() for form in forms]


def test_every_argument_has_its_forms_here() -> None:
    import inspect

    assert list(MADE) == list(inspect.signature(prefopt.Trainer).parameters)


@pytest.mark.parametrize(("name", "form"), FORMS)
def test_a_form_trains(name: str, form: str, world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(world)
    Counting.steps = 0
    given = {"model": str(world / "owner" / "model"), "algorithm": "dpo", "train_dataset": ROWS, "args": QUICK}
    given |= MADE[name][form](world)
    trainer = prefopt.Trainer(**given)
    trainer.train()
    assert trainer.state.global_step == 2
    if given.get("eval_dataset") is not None:
        assert any(key.endswith("loss") for key in trainer.evaluate())
    if Counting in given.get("callbacks", ()) or (name == "callbacks" and form in ("objects", "a tuple")):
        assert Counting.steps == 2
    watches = [one for one in trainer.callback_handler.callbacks if isinstance(one, prefopt.Watch)]
    assert len(watches) == trainer.algorithm.online


def test_a_training_arguments_object_is_taken_as_it_is(tmp_path: Path) -> None:
    args = TrainingArguments(output_dir=str(tmp_path), learning_rate=3e-4, **QUICK)
    trainer = prefopt.Trainer(tiny.model(), "dpo", tiny.pairs(4), processing_class=tiny.tokenizer(), args=args)
    trainer.train()
    assert trainer.state.global_step == 2
    assert trainer.args is args
    assert trainer.args.learning_rate == 3e-4


def test_a_field_without_effect_is_refused_in_an_object_too(tmp_path: Path) -> None:
    args = TrainingArguments(output_dir=str(tmp_path), label_smoothing_factor=0.1, use_cpu=True)
    with pytest.raises(UsageError, match=r"label_smoothing_factor=0\.1 would have no effect"):
        prefopt.Trainer(tiny.model(), "dpo", tiny.pairs(4), processing_class=tiny.tokenizer(), args=args)
