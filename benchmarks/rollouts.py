"""Rollouts and PPO: one base with four roles and batched sampling, against the plain way.

    python benchmarks/rollouts.py              # about 20 minutes on two CPU cores

The plain way is what people write first: a `generate` call for every prompt, four separate models (policy, reference,
critic, reward model), each completion scored alone from the logits of all positions. Both sample the same number of
completions of the same prompts and take the same number of optimizer steps on them, with LoRA on the same base. Rounds
are interleaved, minima are compared; memory is what each process needs at its peak above an idle one.

Results go to ``benchmarks/results/rollouts.json``.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import record
import torch
import words
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM
from transformers.utils import logging

from prefopt import Trainer, get_algorithm
from prefopt.core import console
from prefopt.lab.measure import costing
from prefopt.rollouts.advantages import gae, reward_to_tokens, whiten

HERE = Path(__file__).parent
VOCABULARY, HIDDEN, LAYERS = 2000, 512, 8
PROMPTS, N, LENGTH, NEW, PASSES = 8, 4, 64, 48, 2


def base(seed: int = 0) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=4 * HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=8,
        max_position_embeddings=256,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config)


def prompts() -> list[str]:
    random = np.random.default_rng(0)
    sizes = random.integers(LENGTH // 4, LENGTH, PROMPTS)
    return [" ".join(f"w{i}" for i in random.integers(4, VOCABULARY, size)) for size in sizes]


def reward_folder(folder: Path) -> Path:
    """A base and the adapter of a reward model on it, saved."""
    base().save_pretrained(folder / "base")
    words.tokenizer(VOCABULARY).save_pretrained(folder / "base")
    pairs = [{"prompt": text, "chosen": "w5 w6", "rejected": "w7"} for text in prompts()]
    trainer = Trainer(str(folder / "base"), "reward", pairs, adapter="lora", args=arguments(1))
    trainer.train()
    trainer.save_model(str(folder / "reward"))
    return folder


def arguments(steps: int) -> dict:
    return {
        "output_dir": tempfile.mkdtemp(),
        "max_steps": steps,
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": PROMPTS,
        "learning_rate": 1e-4,
        "save_strategy": "no",
        "logging_steps": 1,
        "use_cpu": True,
        "disable_tqdm": True,
    }


def ours(folder: Path, rounds: int) -> dict:
    """Seconds of each rollout with its optimizer steps, and how they are spent."""
    trainer = Trainer(
        str(folder / "base"),
        get_algorithm("ppo", passes=PASSES),
        [{"prompt": text} for text in prompts()],
        adapter="lora",
        reward=str(folder / "reward"),
        generation={"n": N, "max_new_tokens": NEW, "batch_size": PROMPTS * N},
        args=arguments(PASSES * rounds),
    )
    began = time.perf_counter()
    trainer.train()
    whole = (time.perf_counter() - began) / rounds
    logs = [entry for entry in trainer.state.log_history if "seconds/generate" in entry]
    parts = {name: min(entry[f"seconds/{name}"] for entry in logs) for name in ("generate", "reward", "score")}
    lengths = [entry["completions/length"] for entry in logs]
    return {"seconds": whole, **parts, "completion_tokens": float(np.mean(lengths))}


class Scored(nn.Module):
    """A copy of the base with a linear head on its last hidden state."""

    def __init__(self) -> None:
        super().__init__()
        self.body = get_peft_model(base(), LoraConfig(r=16, lora_alpha=32, target_modules="all-linear"))
        self.head = nn.Linear(HIDDEN, 1)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        hidden = self.body(input_ids=ids[None], output_hidden_states=True).hidden_states[-1]
        return self.head(hidden)[0, :, 0]


def plain(_: Path, rounds: int) -> dict:
    """The same amount of work, written plainly."""
    tokenizer = words.tokenizer(VOCABULARY)
    policy = get_peft_model(base(), LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"))
    reference, critic, judge = base(), Scored(), Scored()
    trained = [p for p in [*policy.parameters(), *critic.parameters()] if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4)
    config = GenerationConfig(
        do_sample=True, top_k=0, max_new_tokens=NEW, num_return_sequences=N, eos_token_id=2, pad_token_id=0
    )
    spent = {"generate": 0.0, "reward": 0.0, "score": 0.0}
    began = time.perf_counter()
    for _ in range(rounds):
        rows = []
        for text in prompts():
            inputs = tokenizer(text, return_tensors="pt")
            start = time.perf_counter()
            made = policy.generate(**inputs, generation_config=config)
            spent["generate"] += time.perf_counter() - start
            for ids in made:
                rows.append(
                    _experience(ids[ids != 0], inputs.input_ids.shape[1], policy, reference, critic, judge, spent)
                )
        _learn(rows, policy, critic, optimizer)
    whole = (time.perf_counter() - began) / rounds
    return {"seconds": whole, **{name: value / rounds for name, value in spent.items()}}


def _experience(ids, width, policy, reference, critic, judge, spent) -> dict:
    with torch.no_grad():
        start = time.perf_counter()
        score = judge(ids)[-1]
        middle = time.perf_counter()
        old, ref = (_logps(model, ids, width) for model in (policy, reference))
        values = critic(ids)[width - 1 : -1]
        spent["reward"] += middle - start
        spent["score"] += time.perf_counter() - middle
    mask = torch.ones(1, len(old), dtype=torch.bool)
    rewards = reward_to_tokens(score[None], mask, 0.05 * (old - ref)[None])
    advantages, returns = gae(rewards, values[None], mask)
    return {
        "ids": ids,
        "width": width,
        "old": old,
        "values": values,
        "advantages": advantages[0],
        "returns": returns[0],
    }


def _logps(model: nn.Module, ids: torch.Tensor, width: int) -> torch.Tensor:
    logps = model(input_ids=ids[None]).logits[0].log_softmax(-1)
    return logps[:-1].gather(-1, ids[1:, None]).squeeze(-1)[width - 1 :]


def _learn(rows: list[dict], policy: nn.Module, critic: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    white = whiten(torch.cat([row["advantages"] for row in rows])).split([len(row["old"]) for row in rows])
    total = sum(len(row["old"]) for row in rows)
    for _ in range(PASSES):
        for row, advantages in zip(rows, white, strict=True):
            ratio = (_logps(policy, row["ids"], row["width"]) - row["old"]).exp()
            loss = -torch.minimum(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages).sum()
            values = critic(row["ids"])[row["width"] - 1 : -1]
            near = row["values"] + (values - row["values"]).clamp(-0.2, 0.2)
            worse = torch.maximum((values - row["returns"]) ** 2, (near - row["returns"]) ** 2)
            ((loss + 0.05 * worse.sum()) / total).backward()
        optimizer.step()
        optimizer.zero_grad()


def run_one(which: str, folder: Path, rounds: int) -> dict:
    """One way in a process of its own, so that memory is its own."""
    command = [sys.executable, __file__, "--only", which, "--folder", str(folder), "--rounds", str(rounds)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return json.loads(text.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="rollouts in each process")
    parser.add_argument("--repeats", type=int, default=5, help="processes of each way")
    parser.add_argument("--only", choices=("ours", "plain"), help="used by this script itself")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "rollouts.json")
    chosen = parser.parse_args()
    logging.set_verbosity_error()
    console.console.quiet = True
    if chosen.only:
        with costing() as cost:
            found = {"ours": ours, "plain": plain}[chosen.only](chosen.folder, chosen.rounds)
        print(json.dumps({**found, "added_mb": cost.added_mb}))
        return
    folder = reward_folder(Path(tempfile.mkdtemp()))
    runs: dict[str, list[dict]] = {"ours": [], "plain": []}
    for _ in range(chosen.repeats):
        for which, found in runs.items():
            found.append(run_one(which, folder, chosen.rounds))
    best = {which: {key: min(run[key] for run in found) for key in found[0]} for which, found in runs.items()}
    for one in best.values():
        one["samples_per_second"] = PROMPTS * N / one["seconds"]
        one["share_generating"] = one["generate"] / one["seconds"]
        one["share_scoring"] = (one["score"] + one["reward"]) / one["seconds"]
        one["share_training"] = 1 - one["share_generating"] - one["share_scoring"]
    ratios = {
        "ratio_of_time": best["plain"]["seconds"] / best["ours"]["seconds"],
        "ratio_of_memory": best["plain"]["added_mb"] / best["ours"]["added_mb"],
    }
    print(json.dumps({**best, **ratios}, indent=2))
    setting = (
        f"hidden {HIDDEN}, {LAYERS} layers, vocabulary {VOCABULARY}, float32, LoRA r 16; {PROMPTS} prompts of up to "
        f"{LENGTH} tokens × {N} samples of up to {NEW}, {PASSES} passes; fastest of {chosen.repeats} processes each"
    )
    record.write(chosen.out, "python benchmarks/rollouts.py", setting, "peft", **best, **ratios)


if __name__ == "__main__":
    main()
