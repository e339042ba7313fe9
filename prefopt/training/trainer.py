"""The one trainer: data, scoring, an objective, and transformers' training loop."""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate.utils import gather_object
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import TrainerCallback
from transformers.trainer_utils import EvalLoopOutput, get_last_checkpoint

from prefopt.core.arguments import method_takes
from prefopt.core.counts import LossSums, step_loss
from prefopt.core.errors import UsageError
from prefopt.core.loss import Loss, State
from prefopt.core.micro_batch import MicroBatch
from prefopt.core.objective import Objective
from prefopt.core.version import VERSION
from prefopt.data import TokenizedDataset, collate, prepare_dataset
from prefopt.models import save_policy
from prefopt.models.export import RUN_FILE
from prefopt.scoring import share_prompts as let_share_prompts
from prefopt.scoring.scorer import StepScorer, pair_accuracy
from prefopt.training.arguments import CHECKPOINTING
from prefopt.training.build import assemble, check_batches
from prefopt.training.loading import step_loader
from prefopt.training.metrics import Means
from prefopt.training.preparation import Preparation, Step
from prefopt.training.reference_cache import ReferenceCache
from prefopt.training.spec import RunSpec
from prefopt.training.splitting import Portions
from prefopt.training.watch import Watch

STATE_FILE = "objective_state.safetensors"


class Trainer(transformers.Trainer):
    """Train a policy with any algorithm, swapped by one word.

    Of ``transformers.Trainer`` it overrides `get_train_dataloader` and `get_eval_dataloader` (batches that are the same
    on any number of processes, or sampled on demand), `_prepare_inputs` and `_track_num_input_tokens` (a `MicroBatch`
    in place of a dict), `get_batch_samples` (where *prepare* sees all micro-batches of a step), `compute_loss`,
    `training_step`, `create_optimizer` and `_clip_grad_norm` (a critic beside the policy), `floating_point_ops`
    (weights are counted once), `evaluation_loop` (sums and counts, not means of batch means), `log` (adds the metrics),
    `train` (restores the objective's state), `_save_rng_state` and `_load_rng_state` (rollouts in checkpoints) and
    `_save` (adapters without those of other roles, JSON instead of a pickle).
    """

    @method_takes(RunSpec)
    def __init__(self, spec: RunSpec) -> None:
        """Check the arguments, prepare the data, and load the models.

        Raises:
            UsageError, DataError, ModelError: What cannot work, in one line with the remedy, before anything is
                trained.
        """
        parts = assemble(spec)
        self.algorithm, self.data_settings = parts.algorithm, parts.reader.settings
        self.objective: Objective = self.algorithm.objective
        args, policy, tokenizer = parts.args, parts.policy, parts.tokenizer
        self.reference, self.online = parts.reference, parts.online
        if self.online is not None:
            self.objective = self.online.objective
        self._adapter_kind = parts.adapter_kind
        self.scorer = self._step_scorer()
        self.objective_state: State = self.objective.init_state()
        self._pending_state: State = self.objective_state
        self._means = Means()
        self._flops_per_token: int | None = None
        self._prepared = parts.reader
        super().__init__(
            model=policy,
            args=args,
            train_dataset=parts.train_dataset,
            eval_dataset=parts.eval_dataset,
            processing_class=tokenizer,
            data_collator=_identity,
            callbacks=[_Commit(self), *spec.callbacks, *self._own_watch(spec.callbacks)],
        )
        for watch in (one for one in self.callback_handler.callbacks if isinstance(one, Watch)):
            watch.attach(self._held_out_accuracy)
        if self.online is not None:
            if self.online.critic is not None:
                self.online.critic.follow(self.policy)
            self.loaders = self.online.loaders(
                lambda: self.policy,
                args,
                self.accelerator,
                record=lambda values: self._means.add(values),
                optimizer=lambda: self.optimizer,
            )
        # Every share of a step's loss is divided by global denominators already.
        self.loss_is_scaled_for_ga = True
        check_batches(self.algorithm, self.objective.needs, self.args)
        whole = self._why_whole()
        self._learned, self._scored = Portions("training", whole), Portions("scoring", whole)
        starts_equal = self.objective.needs.reference and spec.reference is None
        self.preparation = Preparation(self.scorer, self.accelerator, self._scored, starts_equal=starts_equal)
        for model in self._models():
            let_share_prompts(model, spec.share_prompts)
        self._cache: ReferenceCache | None = None
        if spec.reference_cache is not None:
            self._fill_cache(spec.reference_cache)

    # ---- assembly ----------------------------------------------------------------------------------------------

    def _models(self) -> list[nn.Module]:
        """The policy, and those beside it that have weights of their own."""
        roles = [self.reference, None if self.online is None else self.online.critic]
        return [self.policy, *(role.model for role in roles if hasattr(role, "model"))]

    def _why_whole(self) -> str:
        """Why a micro-batch that does not fit into memory cannot be divided; empty where it can."""
        if self.objective.needs.coupled:
            return f"{self.algorithm.name} compares its examples"
        if self.args.world_size > 1 or self.is_fsdp_enabled or self.is_deepspeed_enabled:
            return "all processes go through the same passes together"
        if getattr(self.args, CHECKPOINTING) and (getattr(self.args, f"{CHECKPOINTING}_kwargs") or {}).get(
            "use_reentrant"
        ):
            return "reentrant checkpointing adds gradients up piece by piece"
        return ""

    def _fill_cache(self, folder: str | Path) -> None:
        """Take all that is known of the reference from disk, or score it now, before the first update."""
        cache = self._cache = ReferenceCache(
            folder,
            self.reference.fingerprint(self.policy),
            self.accelerator.mixed_precision,
            lambda rows: self.preparation.reference_logps(
                self.model, self._prepare_inputs(collate(rows, self.processing_class.pad_token_id))
            ),
            everyones=gather_object,
            rank=self.args.process_index,
            world=self.args.world_size,
        )
        if self.train_dataset is not None:
            self.train_dataset = cache.fill(self.train_dataset)
        if isinstance(self.eval_dataset, dict):
            self.eval_dataset = {name: cache.fill(part) for name, part in self.eval_dataset.items()}
        elif self.eval_dataset is not None:
            self.eval_dataset = cache.fill(self.eval_dataset)
        # A watch asks it about pairs of its own.
        if not any(isinstance(one, Watch) for one in self.callback_handler.callbacks):
            self.reference = self.scorer.reference = self.reference.release()

    def _own_watch(self, callbacks: Any) -> list[TrainerCallback]:
        """Online runs are watched for reward hacking, by the user's own watch or by one that only warns."""
        # As transformers takes them, a callback may be a class.
        given = any(issubclass(one if isinstance(one, type) else type(one), Watch) for one in callbacks)
        return [Watch()] if self.algorithm.online and not given else []

    def _held_out_accuracy(self, pairs: Any) -> Callable[[], float]:
        """What measures how many held-out pairs the policy orders rightly, by its log-ratio to the reference."""
        dataset = prepare_dataset(
            pairs,
            "pairs",
            self.processing_class,
            self.data_settings,
            context=getattr(self.policy.config, "max_position_embeddings", None),
            reader="watch",
        )

        def measure() -> float:
            with self.accelerator.autocast():
                return pair_accuracy(self.policy, self.reference, dataset, self.args.per_device_eval_batch_size)

        return measure

    def _step_scorer(self) -> StepScorer:
        if self.online is None:
            return StepScorer(self.objective, self.reference)
        # Completions that are learned from as they are do not care how they were sampled.
        temperature = self.online.settings.temperature if self.algorithm.uses_ratio else 1.0
        head = self.online.critic.head if self.objective.needs.values else None
        return StepScorer(self.objective, self.reference, temperature=temperature, value_head=head)

    @property
    def policy(self) -> nn.Module:
        """The model that is trained, without the wrappers of parallel training."""
        return self.accelerator.unwrap_model(self.model)

    # ---- batches -----------------------------------------------------------------------------------------------

    def get_train_dataloader(self) -> Any:
        """Batches in an order that depends on the seed and the epoch, not on the number of processes."""
        if self.train_dataset is None:
            raise UsageError("training needs a dataset: pass train_dataset=.")
        if self.online is not None:
            return self.loaders.train(self.train_dataset, self._seed)
        options = {"needs": self.objective.needs, "seed": self._seed, "shuffle": True}
        return step_loader(self.train_dataset, self.args, self._train_batch_size, **options)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        """Batches in the order of the dataset; an online run samples them with a fixed seed."""
        dataset = self._eval_dataset(eval_dataset)
        if self.online is not None:
            return self.loaders.evaluation(dataset, self._seed)
        options = {"needs": self.objective.needs, "seed": self._seed, "shuffle": False}
        return step_loader(dataset, self.args, self.args.eval_batch_size, **options)

    def _eval_dataset(self, eval_dataset: Any) -> TokenizedDataset:
        if isinstance(eval_dataset, str) and isinstance(self.eval_dataset, dict):
            return self.eval_dataset[eval_dataset]
        if self._cache is not None and self._cache.knows(eval_dataset):
            return eval_dataset
        if eval_dataset is not None:
            dataset = self._prepared(eval_dataset, "eval")
            return dataset if self._cache is None else self._cache.fill(dataset)
        if self.eval_dataset is None:
            raise UsageError("evaluation needs a dataset: pass eval_dataset=.")
        return self.eval_dataset

    @property
    def _seed(self) -> int:
        """Of the order of the data, and of what is sampled."""
        return self.args.seed if self.args.data_seed is None else self.args.data_seed

    def _prepare_inputs(self, inputs: MicroBatch) -> MicroBatch:
        """The micro-batch on the device that trains."""
        return inputs.to(self.args.device)

    # ---- a step: prepare, then losses --------------------------------------------------------------------------

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list, Step | None]:
        """Take the micro-batches of a step and prepare it: reference, observations, denominators."""
        batches = []
        for _ in range(num_batches):
            try:
                batches.append(self._prepare_inputs(next(epoch_iterator)))
            except StopIteration:
                break
        if not batches:
            return batches, None
        batches, step = self.preparation.step(self.model, batches, self.objective_state)
        self._pending_state = {key: step.state[key] for key in self.objective_state}
        return batches, step

    def compute_loss(
        self,
        model: nn.Module,
        inputs: MicroBatch,
        return_outputs: bool = False,
        num_items_in_batch: Step | None = None,
    ) -> Tensor:
        """This micro-batch's share of the loss of its step."""
        # Around more than the policy's own forward: models beside it compute as it does, and so does what is compared.
        with self.accelerator.autocast():
            container = self.scorer.container(model, inputs)
        loss = self.objective(container, num_items_in_batch.state)
        self._seen = self._metrics(loss)
        return step_loss(loss, num_items_in_batch.denominators, self.accelerator.num_processes)

    def _metrics(self, loss: Loss) -> Mapping[str, Tensor]:
        return loss.metrics if self.online is None else self.online.metrics(loss)

    def training_step(self, model: nn.Module, inputs: MicroBatch, num_items_in_batch: Step | None = None) -> Tensor:
        """Forward and backward of the policy; then those of a critic of its own, one role after the other.

        Where memory runs out, in portions (see `prefopt.training.splitting`).
        """
        weights = [weight for group in self.optimizer.param_groups for weight in group["params"]]
        shares: list[Tensor] = []
        one_pass = super().training_step

        def learn(part: MicroBatch, *_: int) -> None:
            shares.append(one_pass(model, part, num_items_in_batch))
            self._means.add(self._seen)
            if self.online is not None:
                self.online.watch(self._seen)

        def learn_values(part: MicroBatch, *_: int) -> None:
            self._means.add(
                self.online.train_critic(self.policy, part, num_items_in_batch.denominators, self.accelerator)
            )

        self._learned.each(inputs, learn, weights)
        if self.online is not None and self.online.critic is not None:
            if self.online.separate_critic is not None:
                self._learned.each(inputs, learn_values, weights)
            self.online.average_critic(self.policy, self.accelerator)
        return torch.stack(shares).sum()

    def _clip_grad_norm(self, model: nn.Module) -> Tensor:
        """Clip the policy's gradients, and those of a critic of its own by themselves; a head is part of the policy."""
        if self.online is None or self.online.critic is None:
            return super()._clip_grad_norm(model)
        own = self.online.critic.parameters(self.policy)
        mine = {id(weight) for weight in own}
        rest = [weight for weight in model.parameters() if id(weight) not in mine]
        if self.online.separate_critic is None:
            return self.accelerator.clip_grad_norm_([*rest, *own], self.args.max_grad_norm)
        norm = self.accelerator.clip_grad_norm_(rest, self.args.max_grad_norm)
        nn.utils.clip_grad_norm_(own, self.args.max_grad_norm)
        return norm

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """The optimizer of transformers, with the critic's weights in it."""
        fresh = self.optimizer is None
        optimizer = super().create_optimizer(model)
        if fresh and self.online is not None and self.online.critic is not None:
            self.online.add_to(optimizer, self.policy, self.args.learning_rate)
        return optimizer

    def floating_point_ops(self, inputs: MicroBatch) -> int:
        """As transformers estimates them; the weights, for which it walks through all modules, are counted once."""
        tokens = inputs.rows.input_ids.numel()
        if self._flops_per_token is None:
            self._flops_per_token = super().floating_point_ops(inputs.rows.inputs) // tokens
        return self._flops_per_token * tokens

    def _track_num_input_tokens(self, inputs: MicroBatch) -> None:
        """As transformers counts them, which looks for ``input_ids`` and ``attention_mask``."""
        super()._track_num_input_tokens(inputs.rows.inputs)

    def _end_of_step(self) -> None:
        """After an optimizer step: remember the objective's state."""
        self.objective_state = self._pending_state
        if self.online is not None:
            self.online.end_of_step(self.policy, self.accelerator)
            # After a resume transformers counts from the beginning of the epoch again.
            self.state.epoch = self.online.epoch

    # ---- evaluation and logging --------------------------------------------------------------------------------

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Loss and metrics of a dataset, taken as one step: they do not depend on the batch size."""
        self.model.eval()
        kept, self._means = self._means, Means()
        sums = LossSums()
        with torch.no_grad(), self.accelerator.autocast():
            batches = list(dataloader) if self.algorithm.online else dataloader
            prepared = (self._prepare_inputs(batch) for batch in batches)
            state = self.preparation.evaluation(self.model, prepared, self.objective_state)

            def measure(part: MicroBatch, *_: int) -> None:
                scored = self.scorer.score_reference(self.policy, part)
                loss = self.objective(self.scorer.container(self.model, scored), state)
                self._means.add(self._metrics(loss))
                sums.add(loss)

            for batch in batches:
                self._scored.each(self._prepare_inputs(batch), measure)
                self.control = self.callback_handler.on_prediction_step(self.args, self.state, self.control)
        # Sampled prompts may have given no example.
        whole = sums.loss(gather_object)
        metrics = ({} if whole is None else {"loss": whole}) | self._drained()
        self._means = kept
        return EvalLoopOutput(
            predictions=None,
            label_ids=None,
            metrics={f"{metric_key_prefix}_{name}": value for name, value in metrics.items()},
            num_samples=len(dataloader.dataset),
        )

    def _drained(self) -> dict[str, float]:
        """The metrics since the last time, over all processes, of which one may have seen fewer kinds."""
        self._means.expect(gather_object(self._means.names))
        return self._means.drain(self.accelerator.gather, self.args.device)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the metrics since the last time to the log of a training step."""
        if "loss" in logs:
            logs |= self._drained()
        super().log(logs, start_time)

    # ---- saving and resuming -----------------------------------------------------------------------------------

    def train(self, resume_from_checkpoint: str | bool | None = None, **options: Any) -> Any:
        """Train; ``resume_from_checkpoint`` is a folder, or True for the newest one in the output folder."""
        if resume_from_checkpoint is True:
            folder = get_last_checkpoint(self.args.output_dir)
            if folder is None:
                raise UsageError(f"there is no checkpoint to resume from in {self.args.output_dir}.")
            resume_from_checkpoint = folder
        if resume_from_checkpoint:
            path = Path(resume_from_checkpoint) / STATE_FILE
            if path.is_file():
                self.objective_state = load_file(path, device=str(self.args.device))
            self.preparation.starts_equal = False
        return super().train(resume_from_checkpoint=resume_from_checkpoint or None, **options)

    def _save_rng_state(self, output_dir: str) -> None:
        """Called on every process for every checkpoint: beside random numbers, keep the rollout and its roles."""
        super()._save_rng_state(output_dir)
        if self.online is not None:
            self.online.save(Path(output_dir), self.policy, main=self.args.should_save)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Called where a resumed run begins: go on with the rollout of the checkpoint."""
        super()._load_rng_state(checkpoint)
        if self.online is not None and checkpoint is not None:
            self.online.load(Path(checkpoint), self.policy)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        folder = Path(output_dir or self.args.output_dir)
        if not self.args.should_save:
            return
        folder.mkdir(parents=True, exist_ok=True)
        save_policy(self.policy, folder, state_dict=state_dict)
        self.processing_class.save_pretrained(folder)
        if self.objective_state:
            save_file({key: value.contiguous() for key, value in self.objective_state.items()}, folder / STATE_FILE)
        (folder / RUN_FILE).write_text(json.dumps(self._record(), indent=2, default=str) + "\n")

    def _record(self) -> dict[str, Any]:
        """What one needs to know about a saved model later."""
        return {
            "prefopt": VERSION,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "algorithm": self.algorithm.name,
            "role": "reward model" if self.objective.needs.rewards else "policy",
            "hyperparameters": self.algorithm.hyperparameters,
            "template_args": dict(self.data_settings.template_args),
            "adapter": self._adapter_kind,
            "data": self.train_dataset.audit.lines() if self.train_dataset is not None else [],
            "step": self.state.global_step,
            "arguments": self.args.to_dict(),
        }


class _Commit(TrainerCallback):
    """Tells the trainer that an optimizer step is done."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.trainer._end_of_step()


def _identity(examples: list) -> list:
    return examples
