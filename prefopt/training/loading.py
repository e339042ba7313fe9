"""Batches of a dataset in an order that depends on the seed and the epoch, not on the number of processes."""

import torch
from torch.utils.data import DataLoader
from transformers import TrainingArguments

from prefopt.core.needs import Needs
from prefopt.data import StepSampler, TokenizedDataset


class StepLoader(DataLoader):
    """A data loader whose batch sampler reshuffles every epoch."""

    def set_epoch(self, epoch: int) -> None:
        self.batch_sampler.set_epoch(epoch)


def step_loader(
    dataset: TokenizedDataset, args: TrainingArguments, batch_size: int, *, needs: Needs, seed: int, shuffle: bool
) -> StepLoader:
    """A loader of this process's share of every batch.

    Args:
        dataset: of tokenized examples.
        args: number of processes and workers, and memory pinning.
        batch_size: examples per process and batch.
        needs: of the objective: one that compares examples cannot take a last batch of one, which is left out.
        seed: of the order.
        shuffle: whether to shuffle (and to spread labels evenly), or to keep the dataset's order.
    """
    least = 2 if "mismatched" in needs.observes or needs.coupled else 1
    sampler = StepSampler(
        len(dataset),
        batch_size,
        world=args.world_size,
        rank=args.process_index,
        seed=seed,
        shuffle=shuffle,
        stratify=dataset.labels if shuffle else None,
        min_rows=min(least, batch_size * args.world_size),
    )
    return StepLoader(
        dataset,
        batch_sampler=sampler,
        # Of its own, or starting a loader (to evaluate, for one) would draw from the global random numbers.
        generator=torch.Generator().manual_seed(seed),
        collate_fn=dataset.collate,
        num_workers=args.dataloader_num_workers,
        pin_memory=args.dataloader_pin_memory and torch.cuda.is_available(),
        persistent_workers=args.dataloader_num_workers > 0 and args.dataloader_persistent_workers,
    )
