"""The same model, pairs and reference through TRL's DPO trainer and through prefopt."""

from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from helpers import Watch, losses, trainer
from transformers import AutoModelForCausalLM, AutoTokenizer

from prefopt.data import load_rows, prepare_dataset
from prefopt.training.loading import step_loader

trl = pytest.importorskip("trl", reason="TRL is an extra of the tests: pip install prefopt[compare]")

BETA, RATE, STEPS, ROWS = 0.1, 1e-3, 5, 20


def text_pairs(shared: Path, tokenizer: Any) -> list[dict]:
    """Real pairs as plain text, short enough for the model's context, the same for both libraries.

    Where a token would reach across the end of the prompt the libraries cut differently (TRL drops that end of the
    prompt, prefopt keeps what generation will see), so such rows are left out.
    """
    rows = load_rows(shared / "data" / "llamafactory_dpo_en_demo.json")
    pairs = []
    for row in rows:
        prompt = " ".join(turn["value"] for turn in row["conversations"])[:160].strip() + " "
        chosen, rejected = (row[side]["value"][:200].strip() for side in ("chosen", "rejected"))
        ids = tokenizer(prompt).input_ids
        clean = all(tokenizer(prompt + text).input_ids[: len(ids)] == ids for text in (chosen, rejected))
        if clean and chosen != rejected and chosen and rejected:
            pairs.append({"prompt": prompt, "chosen": chosen, "rejected": rejected})
    return pairs[:ROWS]


def perturbed(path: Path) -> torch.nn.Module:
    """A reference that is not the policy, or the first loss would be log 2 in any code."""
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1 + 0.05 * torch.randn(parameter.shape, generator=generator))
    return model


ARGS = {
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 1,
    "max_steps": STEPS,
    "learning_rate": RATE,
    "lr_scheduler_type": "constant",
    "warmup_steps": 0,
    "max_grad_norm": 1e9,
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
    "use_cpu": True,
    "optim": "sgd",
}


class Sequential(torch.utils.data.SequentialSampler):
    """Both libraries take the rows in the order of the file."""


def run_trl(path: Path, rows: list[dict], tokenizer: Any, folder: Path) -> tuple[Any, list[torch.Tensor], list]:
    seen = []

    class Recorder(trl.DPOTrainer):
        def _get_train_sampler(self, dataset: Any = None) -> Any:
            return Sequential(self.train_dataset)

        def get_batch_samples(self, *args: Any) -> Any:
            batches, items = super().get_batch_samples(*args)
            with torch.no_grad():
                for batch in batches:
                    labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)
                    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
                    output = self.model(**inputs, labels=labels, fused_lm_head=True, use_cache=False)
                    seen.append(output.log_probs.sum(dim=1))
            return batches, items

    watch = Watch()
    run = Recorder(
        model=AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32),
        ref_model=perturbed(path),
        args=trl.DPOConfig(
            output_dir=str(folder),
            beta=BETA,
            loss_type="sigmoid",
            max_length=512,
            bf16=False,
            gradient_checkpointing=False,
            logging_nan_inf_filter=False,
            **ARGS,
        ),
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=tokenizer,
        callbacks=[watch],
    )
    run.train()
    return run, watch.gradients, seen


def run_prefopt(path: Path, rows: list[dict], tokenizer: Any) -> tuple[Any, list[torch.Tensor], list]:
    seen = []
    data = prepare_dataset(rows, "pairs", tokenizer, {"max_length": 512}, context=512)
    watch = Watch()
    run = trainer(
        "dpo",
        data,
        model=AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32),
        reference=perturbed(path),
        processing_class=tokenizer,
        args=ARGS,
        callbacks=[watch],
    )
    options = {"needs": run.objective.needs, "seed": 0, "shuffle": False}
    run.get_train_dataloader = lambda: step_loader(run.train_dataset, run.args, run.args.train_batch_size, **options)
    prepare = run.get_batch_samples

    def record(*args: Any) -> Any:
        batches, step = prepare(*args)
        with torch.no_grad():
            seen.extend(run.scorer.completions(run.model, batch.rows, batch.ref_logps).logps for batch in batches)
        return batches, step

    run.get_batch_samples = record
    run.train()
    return run, watch.gradients, seen


@pytest.mark.shared
def test_dpo_is_trls_dpo_on_the_real_model(shared: Path, tmp_path: Path) -> None:
    path = shared / "models" / "tinystories-656k"
    tokenizer = AutoTokenizer.from_pretrained(path)
    rows = text_pairs(shared, tokenizer)
    theirs, their_gradients, their_logps = run_trl(path, rows, tokenizer, tmp_path)
    ours, our_gradients, our_logps = run_prefopt(path, rows, tokenizer)

    for step, (a, b) in enumerate(zip(our_logps, their_logps, strict=True)):
        assert ((a - b).abs() / b.abs()).max() <= 1e-5, f"log-probs, row by row, step {step + 1}"
    our_norms = [gradient.norm().item() for gradient in our_gradients]
    assert our_norms == pytest.approx([gradient.norm().item() for gradient in their_gradients], rel=1e-5)
    assert losses(ours) == pytest.approx(losses(theirs), rel=1e-5)
    assert len(losses(ours)) == STEPS
    assert abs(losses(ours)[0] - 0.6931) > 0.01, "the perturbed reference makes the first loss differ from log 2"
    assert max(losses(ours)) - min(losses(ours)) > 0.01, "the losses move, so that the later steps say something"
