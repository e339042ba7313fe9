"""Whole optimizer steps on one graphics card: prefopt and TRL, memory, and the longest context that fits.

    python benchmarks/gpu.py                                              # everything; hours
    python benchmarks/gpu.py --only steps --size 8b --adapter qlora --objective dpo
    python benchmarks/gpu.py --only shares --size 1b --adapter lora
    python benchmarks/gpu.py --only context --size 8b --cap 16
    python benchmarks/gpu.py --only checks
    python benchmarks/gpu.py --device cpu --size toy --out toy.json       # seconds; shows that all of it runs

Where a card is lent for a short while, in this order: all parts at toy size on the card, then what memory must suffice
for, then one setting of each comparison, in which prefopt and TRL meet at the batches that they may be best at:

    python benchmarks/gpu.py --size toy --rounds 1 --pairs 4 --batch 2
    python benchmarks/gpu.py --only checks
    python benchmarks/gpu.py --only steps --size 8b --adapter qlora --objective dpo --batch 2 4 8 --checkpointing on
    python benchmarks/gpu.py --only shares --size 8b --adapter lora --share 0.8 --batch 8 --checkpointing on
    python benchmarks/gpu.py --only context --size 8b --adapter qlora --cap 16 --longest 32768

Nothing is downloaded. The models have the shapes of Llama 3 with 1, 3 and 8 billion weights, which are drawn on the
card layer by layer, in bfloat16; for QLoRA each layer is quantised as soon as it is drawn, as `prefopt.Trainer` loads
it (NF4, double quantisation), so that 8B needs no more than 8B in 4 bit. Tokens are random too: what they are does not
change what they cost. How many there are follows the lengths of real pairs: see ``--describe``, or give ``--data``.

Everyone trains with its own trainer, dataset, collator and loop: `prefopt.Trainer`, and of TRL 1.16 ``DPOTrainer`` and
``KTOTrainer``, and for ORPO and SimPO the trainers in ``trl.experimental`` (SimPO is a loss of its CPO). TRL 1.16 has
no PPO, so prefopt runs that alone. An epoch warms up (compilation, self-checks, the allocator), the next is timed from
the end of its predecessor to its own. Both take the same pairs, rank 16 on every linear layer, the same optimizer
(paged 8-bit AdamW under QLoRA) and a learning rate of 0, so that nothing depends on what was learnt. Runs of both
alternate in one process, each on freshly made weights, so only one model is in memory; the fastest of ``--rounds``
counts. Each way is taken at every batch size of ``--batch`` and, unless ``--checkpointing`` says otherwise, with
gradient checkpointing and without; ``best`` compares each at its fastest. ``--reference step known`` adds DPO and KTO
with the reference's log-probs made before the run, by both. For KTO a pair is two rows.

* ``tokens_per_s``: real tokens, every row with its prompt and without padding, so the same number for both.
* ``mfu``: useful FLOPs over seconds and the card's peak (dense, bfloat16; ``--peak-tflops`` where the table lacks it).
  N weights in matrices, embeddings aside, need 4N a token under an adapter (6N if all of them were trained), and 2N
  more where the reference runs in the step. What gradient checkpointing computes again (2N) is not useful, nor padding,
  nor attention's own products. Both are credited with every prompt twice, whatever they computed: a library that runs
  it once is not held to have done less. For PPO: 2N each for sampling, reward, old log-probs, reference and values, and
  4N for policy and critic in each of the passes.
* ``kernel_calls``, ``bucket_calls``: how often a layer of prefopt attended to shared prompts by torch's kernel for
  ragged rows, and without it; ``not_shared``: why prompts were not shared, where they were not.
* ``failed``: an error that is not one of memory. The command goes on, and ends with exit status 1.
* ``halved_to``: prefopt halves a micro-batch that runs out of memory and goes on; examples that it then took at once.
* ``allocated_gib``, ``reserved_gib``: peaks of torch's allocator over the whole run. The CUDA context is not in them.
* ``context`` and ``checks`` let torch have what `prefopt plan` thinks a card of that size has left for it, by
  ``torch.cuda.set_per_process_memory_fraction``. Memory that the driver pages out (optimizer states) is not under it,
  and bitsandbytes never frees it: where there is little, run one part at a time.

Parts merge into ``benchmarks/results/gpu.json``, each row with its commit.
"""

import argparse
import gc
import json
import logging
import math
import os
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

# Adapters look for the config of a base that is nowhere.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import bitsandbytes as bnb
import datasets
import numpy as np
import record
import torch
import transformers
from contestants import BETA, Case
from lengths import pairs_of
from peft import get_peft_model
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file
from torch import nn
from transformers import LlamaConfig, PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback
from transformers.utils import is_flash_attn_2_available
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer
from trl.experimental.cpo import CPOConfig, CPOTrainer
from trl.experimental.orpo import ORPOConfig, ORPOTrainer

import prefopt
from prefopt.core import console
from prefopt.core.errors import OutOfMemory
from prefopt.memory import skeleton
from prefopt.memory.estimate import CARDS, RESERVE
from prefopt.models import RUN_FILE, load_policy
from prefopt.models.load import ModelSettings
from prefopt.scoring import why_not_shared
from prefopt.scoring.attention import FlatAttention
from prefopt.training.splitting import ran_out_of_memory

HERE = Path(__file__).parent
GIB = 2**30

Lengths = tuple[int, int, int]
"""Tokens of a prompt and of its chosen and rejected completion, end tokens included."""

# layers, hidden, intermediate, heads, heads of keys and values, vocabulary, whether the embeddings are the head too.
SHAPES = {
    "toy": (2, 64, 128, 4, 2, 96, False),
    "1b": (16, 2048, 8192, 32, 8, 128_256, True),
    "3b": (28, 3072, 8192, 24, 8, 128_256, True),
    "8b": (32, 4096, 14_336, 32, 8, 128_256, False),
}
PARTS = ("steps", "shares", "context", "checks")
OBJECTIVES = ("dpo", "orpo", "kto", "simpo", "ppo")
REFERENCED = ("dpo", "kto")
LIBRARIES = ("prefopt", "TRL")
RANK = {"r": 16, "lora_alpha": 32, "lora_dropout": 0.0, "target_modules": "all-linear"}
PASSES = 4
PEAK_TFLOPS = {
    "NVIDIA H200": 989,
    "NVIDIA H100 80GB HBM3": 989,
    "NVIDIA H100 PCIe": 756,
    "NVIDIA A100-SXM4-80GB": 312,
    "NVIDIA A100-SXM4-40GB": 312,
    "NVIDIA A100 80GB PCIe": 312,
    "NVIDIA L40S": 362,
    "NVIDIA L4": 121,
    "NVIDIA RTX A6000": 154.8,
    "NVIDIA GeForce RTX 5090": 209.5,
    "NVIDIA GeForce RTX 4090": 165.2,
    "NVIDIA GeForce RTX 4080": 97.5,
    "NVIDIA GeForce RTX 3090": 71,
}
"""By the device's own name: dense bfloat16 with sums in float32, from the maker's data sheets."""

# Tenths of the lengths of 277 public pairs (LLaMA-Factory's dpo_en_demo, tokenized as benchmarks/lengths.py does, rows
# up to 2,048 tokens), and how their ranks correlate: what `--describe FILE` prints.
QUANTILES = [
    [15, 32, 50, 80, 112, 158, 272, 523, 724, 966, 1553],
    [2, 26, 81, 162, 242, 307, 386, 472, 515, 619, 1170],
    [3, 58, 117, 208, 273, 352, 407, 482, 541, 627, 1172],
]
RANKS = [[1.0, 0.06, 0.26], [0.06, 1.0, 0.49], [0.26, 0.49, 1.0]]


# ---- data ------------------------------------------------------------------------------------------------------------


def drawn_lengths(count: int, seed: int = 0) -> list[Lengths]:
    """Lengths with the quantiles of real ones, and with their correlations, or padding would be made larger."""
    normal = np.random.default_rng(seed).multivariate_normal(np.zeros(3), np.array(RANKS), count)
    place = np.vectorize(lambda z: (1 + math.erf(z / math.sqrt(2))) / 2)(normal)
    tenths = np.linspace(0, 1, len(QUANTILES[0]))
    columns = [np.interp(place[:, i], tenths, QUANTILES[i]).round().astype(int).tolist() for i in range(3)]
    return list(zip(*columns, strict=True))


def lengths_of_files(paths: Sequence[Path], max_length: int) -> list[Lengths]:
    """Of all pairs of files, in their order."""
    return [
        (len(example.prompt), len(example.completions[0]), len(example.completions[1]))
        for path in paths
        for example in pairs_of(path, max_length).examples
    ]


def described(lengths: Sequence[Lengths]) -> tuple[list[list[int]], list[list[float]]]:
    """Tenths of prompts, chosen and rejected completions, and the correlation of their ranks."""
    table = np.array(lengths)
    ranks = table.argsort(axis=0).argsort(axis=0)
    tenths = np.quantile(table, np.linspace(0, 1, 11), axis=0).T.round().astype(int)
    return tenths.tolist(), np.corrcoef(ranks.T).round(2).tolist()


def share_of(share: float, row: int, count: int) -> list[Lengths]:
    """Rows of one length, of which the prompt is a share."""
    prompt = round(share * row)
    return [(prompt, row - prompt, row - prompt)] * count


def text_rows(lengths: Sequence[Lengths], vocabulary: int) -> list[dict[str, str]]:
    """Pairs of random words, one token each; the trainers add the end token of a completion."""
    generator = np.random.default_rng(0)

    def words(count: int) -> str:
        return " ".join(f"w{i}" for i in generator.integers(4, vocabulary, count))

    return [{"prompt": words(p), "chosen": " " + words(c - 1), "rejected": " " + words(r - 1)} for p, c, r in lengths]


# ---- models ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Setting:
    """What is trained, and how.

    Attributes:
        size: key of `SHAPES`.
        adapter: ``"lora"`` or ``"qlora"``.
        objective: one of `OBJECTIVES`.
        batch: pairs (prompts, for PPO) of a micro-batch and step.
        checkpointing: whether layers are computed again in the backward pass.
        device: ``"cuda"`` or ``"cpu"``.
        new_tokens: that PPO samples at the most.
        known: whether the reference's log-probs are made before the run, instead of in its steps.
    """

    size: str
    adapter: str
    objective: str
    batch: int
    checkpointing: bool
    device: str
    new_tokens: int = 256
    known: bool = False

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.device == "cuda" else torch.float32

    def config(self) -> LlamaConfig:
        layers, hidden, intermediate, heads, kv_heads, vocabulary, tied = SHAPES[self.size]
        return LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=hidden,
            intermediate_size=intermediate,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            max_position_embeddings=131_072,
            rope_parameters={"rope_type": "default", "rope_theta": 500_000.0},
            tie_word_embeddings=tied,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        )


@cache
def tokenizer_of(size: str) -> PreTrainedTokenizerBase:
    layers, hidden, *_, vocabulary, _ = SHAPES[size]
    words = Case(hidden, layers, vocabulary, adapter=True).tokenizer()
    # ORPO's trainer in TRL would put one in front of its rows alone.
    words.bos_token = None
    return words


def random_base(setting: Setting) -> PreTrainedModel:
    """The model with random weights, made where they are to be, one by one; 4-bit layers are quantised at once."""
    quantized = setting.adapter == "qlora"
    model = skeleton.build(setting.config(), lora=None, quantized=quantized, dtype=setting.dtype)
    device = torch.device(setting.device)
    generator = torch.Generator(device).manual_seed(0)

    def drawn(weight: torch.Tensor) -> torch.Tensor:
        made = torch.empty(weight.shape, dtype=setting.dtype, device=device)
        return made.fill_(1) if made.dim() == 1 else made.normal_(0, 0.02, generator=generator)

    done: dict[int, nn.Parameter] = {}
    for module in model.modules():
        four_bit = isinstance(module, bnb.nn.Linear4bit)
        if four_bit:
            # Repacking for CPUs loses precision; the loader switches it off as well.
            module.support_avx512bf16_for_cpu = False
        for name, old in module.named_parameters(recurse=False):
            if id(old) not in done:
                if four_bit and name == "weight":
                    own = {key: value for key, value in vars(old).items() if key in ("quant_type", "quant_storage")}
                    options = own | {"compress_statistics": old.compress_statistics, "module": module}
                    made = bnb.nn.Params4bit(drawn(old), requires_grad=False, **options).to(device)
                else:
                    made = nn.Parameter(drawn(old), requires_grad=False)
                done[id(old)] = made
            setattr(module, name, done[id(old)])
    # What is computed from the config is no weight.
    model.model.rotary_emb = type(model.model.rotary_emb)(config=model.config).to(device)
    # The name under which adapters find their base again.
    model.name_or_path = f"random-llama-{setting.size}"
    return model


def matrix_weights(size: str) -> int:
    """Weights that are multiplied with at every token: all but norms and embeddings; a tied head counts once."""
    layers, hidden, intermediate, heads, kv_heads, vocabulary, _ = SHAPES[size]
    attention = hidden * hidden * 2 + 2 * hidden * (hidden // heads) * kv_heads
    return layers * (attention + 3 * hidden * intermediate) + hidden * vocabulary


def save_reward_adapter(setting: Setting, model: PreTrainedModel, folder: Path) -> None:
    """An adapter and a head as `prefopt train reward` would leave them, on this base."""
    policy = load_policy(model, ModelSettings(adapter=setting.adapter, lora=RANK))
    weights = {name: value.cpu().contiguous() for name, value in get_peft_model_state_dict(policy).items()}
    weights["base_model.model.score.weight"] = torch.randn(1, model.config.hidden_size)
    folder.mkdir()
    save_file(weights, folder / "adapter_model.safetensors")
    lora = replace(policy.peft_config["default"], task_type="SEQ_CLS", inference_mode=True)
    lora.base_model_name_or_path = model.name_or_path
    lora.save_pretrained(str(folder))
    tokenizer_of(setting.size).save_pretrained(folder)
    (folder / RUN_FILE).write_text(json.dumps({"adapter": setting.adapter}))
    policy.unload()


# ---- one run ---------------------------------------------------------------------------------------------------------


class Clock(TrainerCallback):
    """When steps were over."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.ends: list[float] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()
        self.ends.append(time.perf_counter())


def arguments(setting: Setting, folder: str, epochs: int) -> dict[str, Any]:
    cuda = setting.device == "cuda"
    paged = cuda and setting.adapter == "qlora"
    return {
        "output_dir": folder,
        "num_train_epochs": epochs,
        "per_device_train_batch_size": setting.batch,
        "gradient_accumulation_steps": 1,
        "gradient_checkpointing": setting.checkpointing,
        "gradient_checkpointing_kwargs": {"use_reentrant": False} if setting.checkpointing else None,
        "learning_rate": 0.0,
        "lr_scheduler_type": "constant",
        "optim": "paged_adamw_8bit" if paged else "adamw_torch",
        "bf16": cuda,
        "use_cpu": not cuda,
        "save_strategy": "no",
        "logging_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }


def trl_trainer(setting: Setting, rows: list[dict], longest: int, folder: str, clock: Clock) -> transformers.Trainer:
    own = arguments(setting, folder, 2) | {"max_length": longest, "beta": BETA}
    if setting.known:
        own["precompute_ref_log_probs"] = True
    if setting.objective == "kto":
        # Its neighbours in a batch give a row its mismatched completion.
        own["per_device_train_batch_size"] *= 2
    model, lora = random_base(setting), ModelSettings(adapter=setting.adapter, lora=RANK).lora_config()
    if is_flash_attn_2_available():
        model.set_attn_implementation("flash_attention_2")
    peft: dict[str, Any] = {"peft_config": lora}
    if setting.objective in ("orpo", "simpo"):
        # Given a config these two would go through peft's preparation for 4 bit, which makes activations float32.
        model, peft = get_peft_model(model, lora), {}
    kinds = {
        "dpo": (DPOConfig, DPOTrainer, {}),
        "kto": (KTOConfig, KTOTrainer, {}),
        "orpo": (ORPOConfig, ORPOTrainer, {}),
        "simpo": (CPOConfig, CPOTrainer, {"loss_type": "simpo", "cpo_alpha": 0.0}),
    }
    config, trainer, further = kinds[setting.objective]
    return trainer(
        model,
        args=config(**own, **further),
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=tokenizer_of(setting.size),
        callbacks=[clock],
        **peft,
    )


def prefopt_trainer(setting: Setting, rows: list[dict], longest: int, folder: str, clock: Clock) -> prefopt.Trainer:
    model, own = random_base(setting), arguments(setting, folder, 2)
    algorithm, options = prefopt.get_algorithm(setting.objective), {}
    if setting.known:
        options["reference_cache"] = Path(folder) / "reference"
    if setting.objective == "kto":
        own["per_device_train_batch_size"] *= 2
    if setting.objective == "ppo":
        reward = Path(folder) / "reward"
        save_reward_adapter(setting, model, reward)
        algorithm = prefopt.get_algorithm("ppo", passes=PASSES)
        own |= {
            "num_train_epochs": 1,
            "max_steps": 2 * PASSES * (len(rows) // setting.batch),
            "logging_strategy": "steps",
            "logging_steps": 1,
        }
        generation = {"n": 1, "max_new_tokens": setting.new_tokens, "batch_size": setting.batch}
        options = {"reward": str(reward), "generation": generation}
        rows = [{"prompt": row["prompt"]} for row in rows]
    return prefopt.Trainer(
        model,
        algorithm,
        rows,
        adapter=setting.adapter,
        lora=RANK,
        processing_class=tokenizer_of(setting.size),
        data={"max_length": longest},
        args=own,
        callbacks=[clock],
        **options,
    )


def train(library: str, setting: Setting, lengths: Sequence[Lengths]) -> dict[str, Any]:
    """Two epochs over these pairs; seconds of the second, and the peak of memory of both."""
    clock = Clock(setting.device)
    whole = list(lengths[: len(lengths) // setting.batch * setting.batch])
    longest = max(p + max(c, r, setting.new_tokens * (setting.objective == "ppo")) for p, c, r in whole)
    rows = text_rows(whole, SHAPES[setting.size][5])
    make = {"TRL": trl_trainer, "prefopt": prefopt_trainer}[library]
    with tempfile.TemporaryDirectory() as folder:
        trainer = make(setting, rows, longest, folder, clock)
        trainer.remove_callback(transformers.PrinterCallback)
        if setting.device == "cuda":
            # What making the model needed is no part of what is reserved.
            gc.collect()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        with attention_calls() as calls:
            trainer.train()
    epoch = len(clock.ends) // 2
    seconds = clock.ends[-1] - clock.ends[epoch - 1]
    if setting.objective == "ppo":
        logged = [one["completions/length"] for one in trainer.state.log_history if "completions/length" in one]
        tokens = round(sum(p for p, _, _ in whole) + len(whole) * sum(logged) / len(logged))
        weights_a_token = 10 + 8 * PASSES
    else:
        tokens = sum(2 * p + c + r for p, c, r in whole)
        weights_a_token = 6 if setting.objective in REFERENCED and not setting.known else 4
    made = {
        "steps": epoch,
        "tokens": tokens,
        "step_s": seconds / epoch,
        "tokens_per_s": tokens / seconds,
        "useful_tflops": weights_a_token * matrix_weights(setting.size) * tokens / seconds / 1e12,
    }
    if library == "prefopt":
        made |= {"kernel_calls": calls["by_kernel"], "bucket_calls": calls["by_bucket"]}
        if why := why_not_shared(trainer.policy):
            made["not_shared"] = why
        if trainer._learned.most is not None:
            made["halved_to"] = trainer._learned.most
    return made | peaks(setting.device)


@contextmanager
def attention_calls() -> Iterator[Counter[str]]:
    """How often layers attended to flat sequences, by torch's kernel for ragged rows and without it."""
    calls: Counter[str] = Counter()
    with ExitStack() as stack:
        for name in ("by_kernel", "by_bucket"):
            own = getattr(FlatAttention, name)

            def counted(*args: Any, own: Any = own, name: str = name, **options: Any) -> torch.Tensor:
                calls[name] += 1
                return own(*args, **options)

            stack.enter_context(patch.object(FlatAttention, name, counted))
        yield calls


def peaks(device: str) -> dict[str, float]:
    if device != "cuda":
        return {}
    return {
        "allocated_gib": torch.cuda.max_memory_allocated() / GIB,
        "reserved_gib": torch.cuda.max_memory_reserved() / GIB,
    }


def attempt(library: str, setting: Setting, lengths: Sequence[Lengths]) -> dict[str, Any]:
    """The same; where memory does not suffice, that; and any other error, so that what comes after it is measured."""
    try:
        return train(library, setting, lengths)
    except Exception as error:
        if ran_out_of_memory(error) or isinstance(error, OutOfMemory):
            return {"out_of_memory": True}
        traceback.print_exc()
        return {"failed": f"{type(error).__name__}: {error}"[:300]}
    finally:
        # Trainers are full of cycles, and an error holds the frames that hold a model.
        gc.collect()
        if setting.device == "cuda":
            torch.cuda.empty_cache()


def libraries_for(objective: str) -> tuple[str, ...]:
    return LIBRARIES if objective != "ppo" else ("prefopt",)


def alternating(
    setting: Setting,
    lengths: Sequence[Lengths],
    rounds: int,
    keep: Callable[[str, dict[str, Any]], None] = lambda library, row: None,
) -> dict[str, dict[str, Any]]:
    """The fastest round of each library, and the largest peaks; ``keep`` gets them after every run."""
    best: dict[str, dict[str, Any]] = {}
    for _ in range(rounds):
        for library in libraries_for(setting.objective):
            one, before = attempt(library, setting, lengths), best.get(library)
            if before is not None and ("step_s" not in one or before.get("step_s", math.inf) <= one["step_s"]):
                one, before = before, one
            higher = {key: max(one[key], (before or one).get(key, 0)) for key in one if key.endswith("_gib")}
            best[library] = one | higher
            keep(library, best[library])
    return best


# ---- parts -----------------------------------------------------------------------------------------------------------


class Results:
    """Rows by name, kept as soon as they are made."""

    def __init__(self, out: Path, about: dict[str, Any], peak_tflops: float | None) -> None:
        self.out, self.about, self.peak = out, about, peak_tflops
        before = json.loads(out.read_text()) if out.is_file() else {}
        if before and any(before[key] != value for key, value in about.items()):
            sys.exit(f"{out} has results of other hardware or versions: give another file (--out), or move it away.")
        self.rows: dict[str, dict[str, Any]] = before.get("rows", {})
        self.failed: set[str] = set()

    def add(self, name: str, row: dict[str, Any]) -> None:
        if self.peak and "useful_tflops" in row:
            row["mfu"] = row["useful_tflops"] / self.peak
        self.rows[name] = row | {"commit": record.commit()}
        if "failed" in row:
            self.failed.add(name)
        shown = {key: value for key, value in row.items() if isinstance(value, (bool, int, float))}
        print(f"{name:64}" + "  ".join(f"{key} {value:.4g}" for key, value in shown.items()), flush=True)
        self.out.parent.mkdir(parents=True, exist_ok=True)
        report = {"command": "python benchmarks/gpu.py", **self.about, "best": best_of(self.rows), "rows": self.rows}
        self.out.write_text(json.dumps(report, indent=2) + "\n")


def best_of(rows: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Of rows that differ in library, batch and checkpointing only, the fastest of each library, and their ratio."""
    groups: dict[str, dict[str, dict[str, Any]]] = {}
    for row in rows.values():
        if "tokens_per_s" not in row or "group" not in row:
            continue
        group = groups.setdefault(row["group"], {})
        if row["tokens_per_s"] > group.get(row["library"], {"tokens_per_s": 0})["tokens_per_s"]:
            group[row["library"]] = row
    best = {}
    for name, group in groups.items():
        keys = ("batch", "checkpointing", "tokens_per_s")
        best[name] = {library: {key: row[key] for key in keys} for library, row in group.items()}
        if len(group) == len(LIBRARIES):
            best[name]["ratio"] = group["prefopt"]["tokens_per_s"] / group["TRL"]["tokens_per_s"]
    return best


def measure(results: Results, group: str, setting: Setting, lengths: Sequence[Lengths], rounds: int) -> None:
    """One setting of both libraries, as rows of a group."""

    def keep(library: str, row: dict[str, Any]) -> None:
        name = f"{group} batch={setting.batch} checkpointing={'on' if setting.checkpointing else 'off'} {library}"
        results.add(name, {"group": group, "library": library, **asdict(setting), **row})

    alternating(setting, lengths, rounds, keep)


def largest(fits: Callable[[int], bool], low: int, high: int, grain: int) -> int:
    """The largest multiple of ``grain`` up to ``high`` that fits, if ``low`` does; else 0. What fits is monotone."""
    if not fits(low):
        return 0
    above = high + grain
    while above - low > grain:
        # Twice as much first: a length that fits costs less than one that does not, which must run until it fails.
        middle = min(2 * low, (low + above) // 2) // grain * grain
        if fits(middle):
            low = middle
        else:
            above = middle
    return low


def limited(device: str, gib: int) -> str | None:
    """Let torch have what a card of this size has; why not, where it cannot."""
    if device != "cuda":
        return None
    whole = torch.cuda.get_device_properties(0).total_memory
    room = gib * GIB - RESERVE
    if room > whole:
        return f"this card has {whole / GIB:.1f} GiB"
    torch.cuda.set_per_process_memory_fraction(room / whole)
    return None


def unlimited(device: str) -> None:
    if device == "cuda":
        torch.cuda.set_per_process_memory_fraction(1.0)


def longest_context(results: Results, library: str, setting: Setting, gib: int, longest: int, grain: int) -> None:
    """By trying: one pair of DPO, rows half prompt, two steps, so that the optimizer's states are there."""
    name = f"context {setting.size} {setting.adapter} {setting.objective} {gib} GiB {library}"
    about = {"library": library, "cap_gib": gib, **asdict(setting)}
    why = limited(setting.device, gib)
    if why is not None:
        print(f"{name}: {why}")
        return
    found: dict[int, dict[str, Any]] = {}

    def fits(row: int) -> bool:
        found[row] = attempt(library, setting, share_of(0.5, row, 1))
        return not {"out_of_memory", "failed"} & found[row].keys()

    try:
        context = largest(fits, grain, longest, grain)
    finally:
        unlimited(setting.device)
    row = about | {"context": context, "tried_up_to": longest, "limited": setting.device == "cuda"}
    failed = next((tried for tried in found.values() if "failed" in tried), {})
    results.add(name, row | found.get(context, {}) | failed)


def check(results: Results, name: str, setting: Setting, lengths: Sequence[Lengths], gib: int) -> None:
    """Whether a run of prefopt stays inside a card."""
    name = f"check {name} {setting.size} {setting.adapter} {gib} GiB"
    why = limited(setting.device, gib)
    if why is not None:
        print(f"{name}: {why}")
        return
    try:
        row = attempt("prefopt", setting, lengths)
    finally:
        unlimited(setting.device)
    # On a CPU nothing stops a run that is too large, so it says nothing about a card.
    says = setting.device == "cuda" and "failed" not in row
    fits = {"fits": "out_of_memory" not in row} if says else {}
    results.add(name, {**asdict(setting), "lengths": lengths[0], "cap_gib": gib, **fits, **row})


# ---- the command -----------------------------------------------------------------------------------------------------


def options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="parts to run")
    parser.add_argument("--size", nargs="+", choices=list(SHAPES), default=["1b", "3b", "8b"])
    parser.add_argument("--adapter", nargs="+", choices=["lora", "qlora"], default=["lora", "qlora"])
    parser.add_argument("--objective", nargs="+", choices=OBJECTIVES, default=OBJECTIVES)
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 2, 4, 8, 16], help="pairs (prompts) of a step")
    parser.add_argument("--checkpointing", nargs="+", choices=["on", "off"], default=["on", "off"])
    parser.add_argument("--reference", nargs="+", choices=["step", "known"], default=["step"], help="of DPO and KTO")
    parser.add_argument("--rounds", type=int, default=2, help="of which the fastest counts")
    parser.add_argument("--pairs", type=int, default=32, help="in an epoch")
    parser.add_argument("--share", nargs="+", type=float, default=[0.7, 0.8, 0.9], help="of the prompt in a row")
    parser.add_argument("--row", type=int, default=1024, help="tokens of a row where the prompt's share is given")
    parser.add_argument("--cap", nargs="+", type=int, default=list(CARDS), help="GiB of the cards in `context`")
    parser.add_argument("--longest", type=int, default=65_536, help="tokens of a row in `context`, at the most")
    parser.add_argument("--new-tokens", type=int, default=256, help="that PPO samples at the most")
    parser.add_argument("--data", nargs="+", type=Path, help="files of pairs whose lengths are taken")
    parser.add_argument("--max-length", type=int, default=2048, help="longer rows of such files are left out")
    parser.add_argument("--describe", action="store_true", help="print quantiles of the lengths in --data and stop")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--peak-tflops", type=float, help="of the card, dense bfloat16")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "gpu.json")
    return parser


def main(given: Sequence[str] | None = None) -> None:
    parser = options()
    chosen = parser.parse_args(given)
    if chosen.describe:
        if not chosen.data:
            parser.error("--describe needs --data")
        for table in described(lengths_of_files(chosen.data, chosen.max_length)):
            print(*table, sep="\n")
        return
    if chosen.device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no CUDA device here; --device cpu --size toy shows that everything runs")
    if chosen.device == "cpu" and set(chosen.size) != {"toy"}:
        parser.error("on a CPU only --size toy is of any use")
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    console.console.quiet = True
    datasets.disable_progress_bars()
    facts = record.about("trl", "bitsandbytes")
    peak = chosen.peak_tflops or PEAK_TFLOPS.get(facts["hardware"].get("device", ""))
    results = Results(chosen.out, facts, peak)
    real = lengths_of_files(chosen.data, chosen.max_length) if chosen.data else drawn_lengths(chosen.pairs)
    real = real[: chosen.pairs]
    toy = 64 if "toy" in chosen.size else 1

    def settings(size: str, adapter: str, objective: str, least: int = 1) -> Iterator[tuple[str, Setting]]:
        """All ways to run, each with the name of those that it is compared with."""
        for reference in chosen.reference if objective in REFERENCED else ("step",):
            group = f"{size} {adapter} {objective}" + (" reference=known" if reference == "known" else "")
            for batch in (batch for batch in chosen.batch if batch >= least):
                for on in chosen.checkpointing:
                    new = max(2, chosen.new_tokens // toy)
                    shape = (size, adapter, objective, batch, on == "on", chosen.device, new)
                    yield group, Setting(*shape, known=reference == "known")

    def shortened(lengths: Sequence[Lengths]) -> list[Lengths]:
        return [tuple(max(2, length // toy) for length in each) for each in lengths]

    source = "files" if chosen.data else "drawn"
    for size in chosen.size:
        for adapter in chosen.adapter:
            if "steps" in chosen.only:
                for objective in chosen.objective:
                    for group, setting in settings(size, adapter, objective):
                        measure(results, f"steps {group} lengths={source}", setting, shortened(real), chosen.rounds)
            if "shares" in chosen.only:
                for share in chosen.share:
                    lengths = shortened(share_of(share, chosen.row, chosen.pairs))
                    for group, setting in settings(size, adapter, "dpo", least=4):
                        name = f"shares {group} share={share} row={chosen.row}"
                        measure(results, name, setting, lengths, chosen.rounds)
            if "context" in chosen.only:
                setting = Setting(size, adapter, "dpo", 1, True, chosen.device)
                for gib in chosen.cap:
                    for library in LIBRARIES:
                        longest_context(results, library, setting, gib, chosen.longest // toy, 256 // toy)
    if "checks" in chosen.only:
        size = "8b" if toy == 1 else "toy"
        dpo = Setting(size, "qlora", "dpo", 1, True, chosen.device)
        check(results, "one pair of DPO", dpo, shortened([(4096, 2048, 2048)]), 16)
        ppo = replace(dpo, objective="ppo", batch=4, new_tokens=512 // toy)
        check(results, "PPO, four roles on one base", ppo, shortened([(1024, 512, 512)] * 4), 24)
    for name, row in best_of(results.rows).items():
        if "ratio" in row:
            print(f"{name}: × {row['ratio']:.2f} tokens a second against TRL, each at its best")
    if results.failed:
        sys.exit("\n".join(["these failed:", *sorted(results.failed)]))


if __name__ == "__main__":
    main()
