"""One DPO step: prefopt, TRL and a plain forward of all rows with all logits, side by side.

    python benchmarks/step.py              # about 12 minutes on two CPU cores

Two cases, both with 8 pairs of a 384-token prompt and two completions of 128 tokens, in float32:

* ``full``: hidden 256, 4 layers, vocabulary 32,000, all weights trained, the reference's log-probs known;
* ``lora``: hidden 512, 8 layers, vocabulary 8,000, LoRA r = 16 on all linear layers, the reference (adapter off) run in
  the step, or its log-probs known ("cached").

Every way has the same start, data and AdamW. Rounds are interleaved, and the fastest of each way counts, in seconds of
forward and backward pass and of the whole step. Memory is the peak of the resident set in one step above what it was
before, in a process of its own. After all rounds the losses are compared.

Results go to ``benchmarks/results/step.json``.
"""

import argparse
import contextlib
import copy
import json
import logging
import platform
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
import torch
import transformers
import trl
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer

import prefopt
from prefopt.data import TokenizedDataset, TokenizedExample
from prefopt.data.audit import Audit
from prefopt.lab.measure import costing

HERE = Path(__file__).parent
PAIRS, PROMPT, COMPLETION, BETA, RATE = 8, 384, 128, 0.1, 1e-4


@dataclass(frozen=True)
class Case:
    """A model and how it is trained."""

    hidden: int
    layers: int
    vocabulary: int
    adapter: bool

    def model(self) -> LlamaForCausalLM:
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=self.vocabulary,
            hidden_size=self.hidden,
            intermediate_size=4 * self.hidden,
            num_hidden_layers=self.layers,
            num_attention_heads=self.hidden // 64,
            num_key_value_heads=self.hidden // 64,
            max_position_embeddings=1024,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        )
        return LlamaForCausalLM(config)

    def lora(self) -> LoraConfig | None:
        if not self.adapter:
            return None
        return LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM")


CASES = {"full": Case(256, 4, 32_000, adapter=False), "lora": Case(512, 8, 8_000, adapter=True)}
WAYS = {
    "full": ("plain, cached", "TRL, cached", "prefopt, cached"),
    "lora": ("plain", "TRL", "prefopt", "plain, cached", "TRL, cached", "prefopt, cached"),
}


def pairs(case: Case) -> list[tuple[list[int], list[int], list[int]]]:
    generator = np.random.default_rng(0)

    def draw(length: int) -> list[int]:
        return generator.integers(3, case.vocabulary, length).tolist()

    return [(draw(PROMPT), draw(COMPLETION), draw(COMPLETION)) for _ in range(PAIRS)]


def tokenizer(case: Case) -> PreTrainedTokenizerFast:
    words = ["<pad>", "<s>", "</s>", *(f"w{i}" for i in range(3, case.vocabulary))]
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<pad>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>", pad_token="<pad>")


Share = Callable[[], Tensor]
"""Forward and backward of one step, with the gradients added up; its loss."""


def plain(case: Case, cached: bool, folder: str) -> tuple[nn.Module, Share]:
    """Chosen and rejected rows in one batch, and a log-softmax of all logits."""
    base = case.model()
    model = get_peft_model(base, case.lora()) if case.adapter else base
    rows = pairs(case)
    ids = torch.tensor([p + c for p, c, _ in rows] + [p + r for p, _, r in rows])

    def logps() -> Tensor:
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
        tokens = logits[:, :-1].log_softmax(dim=-1).gather(2, ids[:, 1:, None]).squeeze(2)
        return tokens[:, PROMPT - 1 :].sum(dim=1)

    @torch.no_grad()
    def reference() -> Tensor:
        with model.disable_adapter() if case.adapter else contextlib.nullcontext():
            return logps()

    known = reference()

    def share() -> Tensor:
        chosen, rejected = (logps() - (known if cached else reference())).chunk(2)
        loss = -functional.logsigmoid(BETA * (chosen - rejected)).mean()
        loss.backward()
        return loss.detach()

    return model, share


def trl_trainer(case: Case, cached: bool, folder: str) -> tuple[nn.Module, Share]:
    """TRL's own trainer and collator."""
    rows = pairs(case)
    texts = datasets.Dataset.from_list([{"prompt": "w3", "chosen": "w4", "rejected": "w5"}])
    trainer = DPOTrainer(
        case.model(),
        args=DPOConfig(
            output_dir=folder,
            beta=BETA,
            per_device_train_batch_size=PAIRS,
            precompute_ref_log_probs=cached,
            max_length=None,
            gradient_checkpointing=False,
            bf16=False,
            use_cpu=True,
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=texts,
        processing_class=tokenizer(case),
        peft_config=case.lora(),
    )
    batch = trainer.data_collator([{"prompt_ids": p, "chosen_ids": c, "rejected_ids": r} for p, c, r in rows])
    if cached:
        trainer.precompute_ref_logps = False
        chosen, rejected = trainer.compute_ref_log_probs(trainer.model, batch)
        trainer.precompute_ref_logps = True
        batch |= {"ref_chosen_logps": chosen, "ref_rejected_logps": rejected}
    trainer.current_gradient_accumulation_steps = 1
    return trainer.model, lambda: trainer.training_step(trainer.model, dict(batch), None)


def ours(case: Case, cached: bool, folder: str) -> tuple[nn.Module, Share]:
    """prefopt's own trainer and collator."""
    examples = [
        TokenizedExample(i, np.array(p, np.int32), (np.array(c, np.int32), np.array(r, np.int32)), None, {})
        for i, (p, c, r) in enumerate(pairs(case))
    ]
    trainer = prefopt.Trainer(
        case.model(),
        "dpo",
        TokenizedDataset("pairs", examples, 1024, 0, Audit("pairs", PAIRS, PAIRS, 0, {}, 1024)),
        adapter=case.lora(),
        processing_class=tokenizer(case),
        args={
            "output_dir": folder,
            "per_device_train_batch_size": PAIRS,
            "gradient_accumulation_steps": 1,
            "gradient_checkpointing": False,
            "bf16": False,
            "use_cpu": True,
            "report_to": "none",
        },
    )
    batch = trainer.train_dataset.collate(examples)
    if cached:
        trainer.scorer.score_reference(trainer.policy, batch)
    trainer.create_optimizer_and_scheduler(1)
    trainer.current_gradient_accumulation_steps = 1

    def share() -> Tensor:
        batches, step = trainer.get_batch_samples(iter([dict(batch)]), 1, torch.device("cpu"))
        return trainer.training_step(trainer.model, batches[0], step)

    return trainer.model, share


MAKE = {"plain": plain, "TRL": trl_trainer, "prefopt": ours}


class Run:
    """One way of one case, ready to step."""

    def __init__(self, case: str, way: str, folder: str) -> None:
        name, _, cached = way.partition(", ")
        # Everyone begins with the same adapter.
        torch.manual_seed(1)
        self.model, self.share = MAKE[name](CASES[case], cached == "cached", folder)
        self.model.train()
        self.weights = [weight for weight in self.model.parameters() if weight.requires_grad]
        self.optimizer = torch.optim.AdamW(self.weights, lr=RATE)
        self.passes = self.whole = float("inf")
        self.loss = float("nan")

    def step(self) -> None:
        began = time.perf_counter()
        self.loss = self.share().item()
        passed = time.perf_counter()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.passes = min(self.passes, passed - began)
        self.whole = min(self.whole, time.perf_counter() - began)


def memory(case: str, way: str) -> float:
    """MB at the peak of one step, in this process, above what it was before."""
    with tempfile.TemporaryDirectory() as folder:
        run = Run(case, way, folder)
        with costing() as cost:
            run.share()
        return cost.added_mb


def measured(case: str, rounds: int) -> list[dict]:
    """All ways of a case."""
    with contextlib.ExitStack() as stack:
        runs = {way: Run(case, way, stack.enter_context(tempfile.TemporaryDirectory())) for way in WAYS[case]}
        starts = [copy.deepcopy([weight.detach() for weight in run.weights]) for run in runs.values()]
        for others in zip(*starts, strict=True):
            if not all(torch.equal(others[0], other) for other in others[1:]):
                raise SystemExit("the ways do not begin with the same weights.")
        for _ in range(rounds):
            for run in runs.values():
                run.step()
    table = []
    for way, run in runs.items():
        own = [sys.executable, __file__, "--memory", case, way]
        added = float(subprocess.run(own, capture_output=True, text=True, check=True).stdout.split()[-1])
        row = {"case": case, "way": way, "passes_s": run.passes, "step_s": run.whole, "mb": added, "loss": run.loss}
        table.append(row)
    for row in table:
        for other in ("plain", "TRL"):
            base = next(one for one in table if one["way"] == f"{other}, cached" or one["way"] == other)
            row[f"passes_x_{other}"] = base["passes_s"] / row["passes_s"]
            row[f"step_x_{other}"] = base["step_s"] / row["step_s"]
            row[f"memory_x_{other}"] = base["mb"] / row["mb"]
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="steps of each way, of which the fastest counts")
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--memory", nargs=2, metavar=("CASE", "WAY"), help="print the memory of one way and stop")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "step.json")
    chosen = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    if chosen.memory:
        print(memory(*chosen.memory))
        return
    table = []
    for case in chosen.cases:
        rows = measured(case, chosen.rounds)
        table += rows
        print(
            f"\n{case}: {'way':18}{'passes s':>10}{'step s':>9}{'MB':>8}{'loss':>12}   × plain, × TRL (first of each)"
        )
        for row in rows:
            print(
                f"{'':{len(case) + 2}}{row['way']:18}{row['passes_s']:10.2f}{row['step_s']:9.2f}{row['mb']:8.0f}"
                f"{row['loss']:12.7f}   step {row['step_x_plain']:.2f}, {row['step_x_TRL']:.2f}"
                f"  memory {row['memory_x_plain']:.1f}, {row['memory_x_TRL']:.1f}",
                flush=True,
            )
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=HERE).stdout
    report = {
        "command": "python benchmarks/step.py",
        "setting": f"{PAIRS} pairs of {PROMPT} + 2 × {COMPLETION} tokens, float32, AdamW; best of {chosen.rounds} "
        "interleaved rounds; memory is the peak of the resident set in one step above what it was before, in a process "
        "of its own; ratios are against the first plain and the first TRL row of the case",
        "hardware": {"machine": platform.machine(), "threads": torch.get_num_threads()},
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "trl": trl.__version__,
            "prefopt": prefopt.__version__,
        },
        "commit": commit.strip(),
        "steps": table,
    }
    chosen.out.write_text(json.dumps(report, indent=2) + "\n")
    print(f"\n{chosen.out}")


if __name__ == "__main__":
    main()
