"""The training data of an online run: micro-batches made of the policy's own completions."""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from prefopt.core.micro_batch import MicroBatch
from prefopt.data import TokenizedDataset, TokenizedExample, collate
from prefopt.rollouts.collector import RolloutCollector
from prefopt.rollouts.schedule import UpdateSchedule

ROLLOUT_PLACE, ROLLOUT_ARRAYS = "rollout.json", "rollout.safetensors"


class PromptStream:
    """The prompts of a dataset, over and over, in an order of their own in every epoch.

    The stream is the same for any number of processes; each takes the places that are its own.

    Args:
        dataset: The prompts.
        seed: The seed of the orders.
        world: The number of processes.
        rank: The number of this process.
    """

    def __init__(self, dataset: TokenizedDataset, seed: int, *, world: int = 1, rank: int = 0) -> None:
        self.dataset, self.seed, self.world, self.rank = dataset, seed, world, rank
        self.place = 0

    def draw(self, number: int) -> list[tuple[int, TokenizedExample]]:
        """This process's share of the next prompts, with their places in the stream.

        All processes must ask for as many.
        """
        places = range(self.place, self.place + number)
        self.place += number
        return [(place, self._at(place)) for place in places if place % self.world == self.rank]

    def _at(self, place: int) -> TokenizedExample:
        epoch, position = divmod(place, len(self.dataset))
        return self.dataset[int(self._order(epoch)[position])]

    def _order(self, epoch: int) -> np.ndarray:
        if getattr(self, "_epoch", None) != epoch:
            self._epoch = epoch
            self._permutation = np.random.default_rng([self.seed, epoch]).permutation(len(self.dataset))
        return self._permutation


def split_into_microbatches(
    prompts: Sequence[tuple[int, int]], random: np.random.Generator, minibatches: int, parts: int
) -> list[np.ndarray]:
    """The examples of every micro-batch of a pass over a rollout, as numbers.

    A step's are drawn at random, and those of one prompt go together in it. What a step adds up to does not depend on
    how it is cut; so prompts are shared, or padded to one length.

    Args:
        prompts: Length and number of every example's prompt.
        random: The source of the drawing.
        minibatches: The number of steps in a pass.
        parts: The number of micro-batches in a step, over all processes.
    """
    microbatches = []
    for rows in np.array_split(random.permutation(len(prompts)), minibatches):
        together = sorted(range(len(rows)), key=lambda i, rows=rows: prompts[rows[i]])
        microbatches += np.array_split(rows[together], parts)
    return microbatches


class RolloutLoader:
    """Iterates over micro-batches that are sampled when they are asked for, so a rollout sees the newest weights.

    It must not be wrapped in a loader that fetches ahead. It goes on where it was when it is iterated over again, and
    `save` and `load` bring it to the same place in another run. Every process has the whole rollout, and hands out its
    own micro-batches of it.

    Args:
        collector: What makes examples of prompts.
        prompts: Where prompts come from.
        schedule: How often examples are used.
        micro_batch: The number of prompts in a micro-batch.
        accumulation: The number of micro-batches in an optimizer step.
        seed: The seed of the sampling and of the order within a rollout.
        renew_reference: Called before a rollout that is a new round (`UpdateSchedule.renew_reference`).
        restart: Called when a new round has been sampled (`UpdateSchedule.restart`).
        steps: The number of optimizer steps of the run. Where rounds begin with the weights of the start, the last
            one takes what would be left over, so that no run ends within a round.
    """

    def __init__(
        self,
        collector: RolloutCollector,
        prompts: PromptStream,
        schedule: UpdateSchedule,
        *,
        micro_batch: int,
        accumulation: int,
        seed: int,
        renew_reference: Callable[[], None],
        restart: Callable[[], None],
        steps: int = 0,
    ) -> None:
        self.collector, self.prompts, self.schedule = collector, prompts, schedule
        self.dataset = prompts.dataset
        self.accumulation = accumulation
        self.per_step = micro_batch * accumulation * prompts.world
        self.minibatches, self.steps = schedule.minibatches, steps
        self.seed, self.renew_reference, self.restart = seed, renew_reference, restart
        self.number = 0
        self.given = 0
        self._examples: list[TokenizedExample] = []
        self._cursor = 0
        self._skip = False

    @property
    def size(self) -> int:
        """The number of prompts in a rollout, over all processes."""
        return self.minibatches * self.per_step

    @property
    def uses(self) -> int:
        """The number of micro-batches that this process hands out of a rollout."""
        return self.schedule.passes * self.minibatches * self.accumulation

    def __len__(self) -> int:
        """Micro-batches that make up an epoch: about one pass over the prompts, in whole rollouts."""
        rollouts = -(-len(self.dataset) // (self.schedule.minibatches * self.per_step))
        return rollouts * self.schedule.passes * self.schedule.minibatches * self.accumulation

    def __iter__(self) -> Iterator[MicroBatch]:
        while True:
            yield self._next()
            if self.given % len(self) == 0:
                return

    def leave(self) -> None:
        """Use the current rollout no more; the next micro-batch begins another one."""
        self._skip = True

    def _next(self) -> MicroBatch:
        if not self._examples or self._skip or self._cursor >= self.uses:
            self._next_rollout()
        rows = self._rows(*divmod(self._cursor, self.minibatches * self.accumulation))
        self._cursor += 1
        self.given += 1
        return collate([self._examples[i] for i in rows], pad_token_id=self.collector.pad_token_id)

    def _rows(self, place: int, number: int) -> np.ndarray:
        """The examples of a micro-batch of this process."""
        # Steps and their examples do not depend on how many processes share them.
        random = np.random.default_rng([self.seed, self.number, place])
        prompts = [(len(example.prompt), example.id) for example in self._examples]
        parts = self.accumulation * self.prompts.world
        step, own = divmod(number, self.accumulation)
        microbatches = split_into_microbatches(prompts, random, self.minibatches, parts)
        return microbatches[step * parts + own * self.prompts.world + self.prompts.rank]

    def _next_rollout(self) -> None:
        # A round begins: the policy becomes its own reference before it samples.
        if self.schedule.renew_reference and self.number > 0:
            self.renew_reference()
        self.number += 1
        self.minibatches = self._minibatches()
        seed = int(np.random.SeedSequence([self.seed, self.number]).generate_state(1)[0])
        # Every micro-batch has at least one example.
        least = self.minibatches * self.accumulation * self.prompts.world
        self._examples = self.collector.collect(self.prompts.draw, self.size, least=least, seed=seed)
        self._cursor, self._skip = 0, False
        # Sampled by the policy as it is now, learned from beginning with the weights of the start.
        if self.schedule.restart and self.number > 1:
            self.restart()

    def _minibatches(self) -> int:
        """The number of optimizer steps in a pass over the next rollout."""
        usual, passes = self.schedule.minibatches, self.schedule.passes
        left = self.steps - self.given // self.accumulation
        if not self.schedule.restart or left <= 0 or left >= 2 * usual * passes:
            return usual
        return max(1, left // passes)

    # ---- checkpoints -------------------------------------------------------------------------------------------

    def save(self, folder: Path) -> None:
        """Write the rollout and the place in it, which all processes have; one of them calls this."""
        arrays: dict[str, np.ndarray] = {}
        labels = []
        for i, example in enumerate(self._examples):
            arrays[f"{i}/prompt"] = example.prompt
            arrays |= {f"{i}/completion/{k}": ids for k, ids in enumerate(example.completions)}
            arrays |= {f"{i}/{name}": value for name, value in example.labels.items() if isinstance(value, np.ndarray)}
            plain = {name: value for name, value in example.labels.items() if not isinstance(value, np.ndarray)}
            labels.append({"id": int(example.id), "completions": len(example.completions), "labels": plain})
        place = {
            "per_step": self.per_step,
            "passes": self.schedule.passes,
            "minibatches": self.minibatches,
            "accumulation": self.accumulation,
            "number": self.number,
            "given": self.given,
            "cursor": self._cursor,
            "skip": self._skip,
            "prompts": self.prompts.place,
            "kl_coef": self.collector.controller.coefficient,
            "examples": labels,
        }
        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, folder / ROLLOUT_ARRAYS)
        (folder / ROLLOUT_PLACE).write_text(json.dumps(place) + "\n")

    def load(self, folder: Path) -> None:
        """Go on where `save` was called, on any number of processes; nothing happens if it was not."""
        if not (Path(folder) / ROLLOUT_PLACE).is_file():
            return
        place = json.loads((Path(folder) / ROLLOUT_PLACE).read_text())
        arrays = load_file(Path(folder) / ROLLOUT_ARRAYS)
        # Checkpoints are written between steps: what a step was cut into then does not matter now.
        own, then = self.accumulation, place["accumulation"]
        self.number, self.minibatches = place["number"], place["minibatches"]
        self.given, self._cursor = place["given"] // then * own, place["cursor"] // then * own
        self._skip, self.prompts.place = place["skip"], place["prompts"]
        self.collector.controller.coefficient = place["kl_coef"]
        found: dict[int, dict[str, np.ndarray]] = {i: {} for i in range(len(place["examples"]))}
        for name, array in arrays.items():
            number, key = name.split("/", 1)
            found[int(number)][key] = array
        self._examples = [_restored(row, found[i]) for i, row in enumerate(place["examples"])]
        if (place["per_step"], place["passes"]) != (self.per_step, self.schedule.passes):
            # Batch sizes or the schedule are others now: the place in this rollout has no meaning.
            self.leave()


def _restored(row: dict[str, Any], arrays: dict[str, np.ndarray]) -> TokenizedExample:
    completions = tuple(arrays.pop(f"completion/{k}") for k in range(row["completions"]))
    return TokenizedExample(row["id"], arrays.pop("prompt"), completions, None, row["labels"] | arrays)


class EvaluationRollouts:
    """A rollout of the prompts of a dataset, always with the same seed, in micro-batches.

    It is sampled when it is first iterated over, and is the same when it is iterated over again.

    Args:
        collector: What makes examples of prompts.
        dataset: The prompts.
        batch_size: The number of prompts per batch and process.
        seed: The seed of the sampling.
        world: The number of processes.
        rank: The number of this process.
    """

    def __init__(
        self,
        collector: RolloutCollector,
        dataset: TokenizedDataset,
        batch_size: int,
        *,
        seed: int,
        world: int,
        rank: int,
    ) -> None:
        self.collector, self.dataset, self.batch_size = collector, dataset, batch_size
        self.seed, self.world, self.rank = seed, world, rank
        self._examples: list[TokenizedExample] | None = None

    def __len__(self) -> int:
        return -(-len(self.dataset) // (self.batch_size * self.world))

    def __iter__(self) -> Iterator[MicroBatch]:
        if self._examples is None:
            seed = int(np.random.SeedSequence([self.seed]).generate_state(1)[0])
            # One rollout: what is taken over all of it (whitening, for one) must not depend on the batch size.
            prompts = [(i, self.dataset[i]) for i in range(self.rank, len(self.dataset), self.world)]
            self._examples = self.collector.evaluate(prompts, seed)
        examples = self._examples[self.rank :: self.world]
        size = max(1, -(-len(self._examples) * self.batch_size // len(self.dataset)))
        for start in range(0, len(examples), size):
            yield collate(examples[start : start + size], pad_token_id=self.collector.pad_token_id)
