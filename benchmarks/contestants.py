"""The same DPO step three ways: a plain forward of all rows with all logits, TRL's trainer, and prefopt's."""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import datasets
import numpy as np
import torch
import words
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer

import prefopt
from prefopt.core.micro_batch import MicroBatch
from prefopt.data import TokenizedDataset, TokenizedExample
from prefopt.data.audit import Audit

BETA = 0.1

Pair = tuple[list[int], list[int], list[int]]
"""Token ids of a prompt and of its chosen and rejected completion."""


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
            max_position_embeddings=8192,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        )
        return LlamaForCausalLM(config)

    def lora(self) -> LoraConfig | None:
        if not self.adapter:
            return None
        return LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM")

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """Trainers want one; the data is token ids already."""
        return words.tokenizer(self.vocabulary)


class Contestant:
    """One way to make a step. Subclasses say how.

    Args:
        case: what is trained.
        cached: whether the reference's log-probs are known, or the reference runs in the step.
        folder: for files.
    """

    model: nn.Module

    def batch(self, pairs: Sequence[Pair]) -> Any:
        """Collate pairs; with the reference's log-probs where they are to be known."""
        raise NotImplementedError

    def share(self, batch: Any) -> Tensor:
        """Forward and backward, with the gradients added up; the loss."""
        raise NotImplementedError


class Plain(Contestant):
    """Chosen and rejected rows in one padded batch, and a log-softmax of all logits."""

    def __init__(self, case: Case, cached: bool, folder: str) -> None:
        base = case.model()
        self.model = get_peft_model(base, case.lora()) if case.adapter else base
        self.cached = cached

    def batch(self, pairs: Sequence[Pair]) -> dict[str, Tensor]:
        rows = [p + c for p, c, _ in pairs] + [p + r for p, _, r in pairs]
        starts = torch.tensor([len(p) for p, _, _ in pairs] * 2)
        lengths = torch.tensor([len(row) for row in rows])
        width = int(lengths.max())
        ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
        place = torch.arange(width)
        seen = place < lengths[:, None]
        batch = {"ids": ids, "seen": seen.long(), "counts": seen & (place >= starts[:, None])}
        return {**batch, "reference": self._reference(batch)} if self.cached else batch

    def share(self, batch: Mapping[str, Tensor]) -> Tensor:
        reference = batch["reference"] if self.cached else self._reference(batch)
        chosen, rejected = (self._logps(batch) - reference).chunk(2)
        loss = -functional.logsigmoid(BETA * (chosen - rejected)).mean()
        loss.backward()
        return loss.detach()

    def _logps(self, batch: Mapping[str, Tensor]) -> Tensor:
        logits = self.model(input_ids=batch["ids"], attention_mask=batch["seen"], use_cache=False).logits
        tokens = logits[:, :-1].log_softmax(dim=-1).gather(2, batch["ids"][:, 1:, None]).squeeze(2)
        return (tokens * batch["counts"][:, 1:]).sum(dim=1)

    @torch.no_grad()
    def _reference(self, batch: Mapping[str, Tensor]) -> Tensor:
        off = getattr(self.model, "disable_adapter", contextlib.nullcontext)
        with off():
            return self._logps(batch)


class TRL(Contestant):
    """TRL's own trainer and collator."""

    def __init__(self, case: Case, cached: bool, folder: str) -> None:
        self.cached = cached
        self.trainer = DPOTrainer(
            case.model(),
            args=DPOConfig(
                output_dir=folder,
                beta=BETA,
                precompute_ref_log_probs=cached,
                max_length=None,
                gradient_checkpointing=False,
                bf16=False,
                use_cpu=True,
                report_to="none",
                disable_tqdm=True,
            ),
            train_dataset=datasets.Dataset.from_list([{"prompt": "w4", "chosen": "w5", "rejected": "w6"}]),
            processing_class=case.tokenizer(),
            peft_config=case.lora(),
        )
        self.trainer.current_gradient_accumulation_steps = 1
        self.model = self.trainer.model

    def batch(self, pairs: Sequence[Pair]) -> dict[str, Tensor]:
        batch = self.trainer.data_collator([{"prompt_ids": p, "chosen_ids": c, "rejected_ids": r} for p, c, r in pairs])
        if self.cached:
            chosen, rejected = self.trainer.compute_ref_log_probs(self.model, batch)
            batch |= {"ref_chosen_logps": chosen, "ref_rejected_logps": rejected}
        return batch

    def share(self, batch: Mapping[str, Tensor]) -> Tensor:
        return self.trainer.training_step(self.model, dict(batch), None)


class Prefopt(Contestant):
    """prefopt's own trainer and collator."""

    def __init__(self, case: Case, cached: bool, folder: str) -> None:
        self.cached = cached
        self.trainer = prefopt.Trainer(
            case.model(),
            "dpo",
            self._dataset([([3], [4], [5])] * 2),
            adapter=case.lora(),
            processing_class=case.tokenizer(),
            args={
                "output_dir": folder,
                "gradient_accumulation_steps": 1,
                "gradient_checkpointing": False,
                "bf16": False,
                "use_cpu": True,
                "report_to": "none",
            },
        )
        self.trainer.create_optimizer_and_scheduler(1)
        self.trainer.current_gradient_accumulation_steps = 1
        self.model = self.trainer.model

    @staticmethod
    def _dataset(pairs: Sequence[Pair]) -> TokenizedDataset:
        examples = [
            TokenizedExample(i, np.array(p, np.int32), (np.array(c, np.int32), np.array(r, np.int32)))
            for i, (p, c, r) in enumerate(pairs)
        ]
        return TokenizedDataset("pairs", examples, 8192, 0, Audit("pairs", len(pairs), len(pairs), 0, [], 8192))

    def batch(self, pairs: Sequence[Pair]) -> MicroBatch:
        dataset = self._dataset(pairs)
        batch = dataset.collate(dataset.examples)
        if self.cached:
            batch = self.trainer.scorer.score_reference(self.trainer.policy, batch)
        return batch

    def share(self, batch: MicroBatch) -> Tensor:
        # A new one every time, without the layout that an earlier round has computed.
        fresh = replace(batch, rows=replace(batch.rows))
        batches, step = self.trainer.get_batch_samples(iter([fresh]), 1, torch.device("cpu"))
        return self.trainer.training_step(self.model, batches[0], step)


KINDS: dict[str, Callable[[Case, bool, str], Contestant]] = {"plain": Plain, "TRL": TRL, "prefopt": Prefopt}


def contestant(way: str, case: Case, folder: str) -> Contestant:
    """One by its way: ``"plain"``, ``"TRL"`` or ``"prefopt"``, alone or with ``", cached"``."""
    name, _, cached = way.partition(", ")
    made = KINDS[name](case, cached == "cached", folder)
    made.model.train()
    return made
