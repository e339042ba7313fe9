"""The one trainer: data, scoring, an objective, and transformers' training loop."""

import math
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate.utils import gather_object
from torch import Tensor, nn
from transformers import TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, EvalLoopOutput

from prefopt.core.arguments import method_takes
from prefopt.core.counts import LossSums, step_loss
from prefopt.core.errors import UsageError
from prefopt.core.loss import State
from prefopt.core.micro_batch import MicroBatch
from prefopt.core.objective import Objective
from prefopt.data import TokenizedDataset
from prefopt.models import save_policy
from prefopt.scoring import share_prompts as let_share_prompts
from prefopt.training.balancing import ExpertBalance
from prefopt.training.build import assemble, check_batches
from prefopt.training.checkpoint import (
    checkpoint_to_resume,
    finish_checkpoint,
    identity_of,
    load_log,
    load_state,
    prepare_folder,
    save_log,
    save_state,
    write_record,
)
from prefopt.training.context import TrainingContext
from prefopt.training.held_out import HeldOutAccuracy
from prefopt.training.manifest import UNFINISHED
from prefopt.training.metrics import Means
from prefopt.training.preparation import StepContext, StepPreparer
from prefopt.training.reference_cache import ReferenceCache
from prefopt.training.spec import RunSpec
from prefopt.training.splitting import MicroBatchSplitter, why_whole
from prefopt.training.step_guard import StepGuard
from prefopt.training.watch import Watch


class Trainer(transformers.Trainer):
    """Train a policy with any algorithm, swapped by one word.

    Of ``transformers.Trainer`` it overrides

    - `get_train_dataloader`, `get_eval_dataloader`: the micro-batches of an `ExampleSource`;
    - `_prepare_inputs`, `_track_num_input_tokens`: a `MicroBatch` in place of a dict;
    - `get_batch_samples`: where *prepare* sees all micro-batches of a step;
    - `compute_loss`, `training_step`: the loss of the step's share, then the passes of what is trained next to the
      policy (a critic);
    - `create_optimizer`, `_clip_grad_norm`: the weights that are trained next to the policy;
    - `floating_point_ops`: weights are counted once;
    - `evaluation_loop`: sums and counts, not means of batch means;
    - `log`: adds the metrics;
    - `train`, `_run_epoch`, `_save_checkpoint`, `_get_output_dir`: checkpoints that are whole, and a run that ends at
      its last step also when it is resumed there;
    - `_save_rng_state`, `_load_rng_state`: the state of the source and of the log in checkpoints;
    - `_save`: adapters without those of other roles, JSON instead of a pickle.

    Where examples come from is known to the source alone (`prefopt.training.sources`).
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
        args, policy, tokenizer = parts.args, parts.policy, parts.tokenizer
        self.policy, self.reference, self.source = policy, parts.reference, parts.source
        self.objective: Objective = self.source.objective
        self._adapter_kind = parts.adapter_kind
        self.scorer = self.source.scorer(self.reference)
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
            data_collator=list,
            callbacks=[_Commit(self), *spec.callbacks, *self.source.callbacks(spec.callbacks)],
        )
        self.context = TrainingContext(policy, self.args, self.accelerator, self._means)
        self.source.attach(self.context)
        for watch in (one for one in self.callback_handler.callbacks if isinstance(one, Watch)):
            watch.attach(HeldOutAccuracy(self.context, self.reference, tokenizer, self.data_settings))
        # Every share of a step's loss is divided by global denominators already.
        self.loss_is_scaled_for_ga = True
        check_batches(self.algorithm, self.objective.needs, self.args)
        self.balance = ExpertBalance(policy, rewards=self.objective.needs.rewards)
        sharded = self.is_fsdp_enabled or self.is_deepspeed_enabled
        whole = why_whole(self.args, self.algorithm.name, coupled=self.objective.needs.coupled, sharded=sharded)
        self._learned, self._scored = MicroBatchSplitter("training", whole), MicroBatchSplitter("scoring", whole)
        starts_equal = self.objective.needs.reference and spec.reference is None
        self.preparer = StepPreparer(self.scorer, policy, self.accelerator, self._scored, starts_equal=starts_equal)
        beside = () if self.reference is None else self.reference.own_models
        for one in (policy, *beside, *self.source.auxiliary.models):
            let_share_prompts(one, spec.share_prompts)
        self._guard = StepGuard(self.accelerator, self.args.output_dir)
        self._run: dict[str, Any] | None = None
        self._unfinished = False
        self._logged_losses = 0.0
        self._cache: ReferenceCache | None = None
        if spec.reference_cache is not None:
            self._fill_cache(spec.reference_cache)

    # ---- assembly ----------------------------------------------------------------------------------------------

    def _fill_cache(self, folder: str | Path) -> None:
        """Take all that is known of the reference from disk, or score it now, before the first update."""
        score = partial(self.preparer.reference_logps, self.model, pad_token_id=self.processing_class.pad_token_id)
        cache = self._cache = ReferenceCache.of_run(folder, self.reference, self.context, score)
        self.train_dataset = cache.fill_all(self.train_dataset)
        self.eval_dataset = cache.fill_all(self.eval_dataset)
        # A watch asks it about pairs of its own.
        if not any(isinstance(one, Watch) for one in self.callback_handler.callbacks):
            self.reference = self.scorer.reference = self.reference.release()

    # ---- batches -----------------------------------------------------------------------------------------------

    def get_train_dataloader(self) -> Any:
        """The micro-batches of the source."""
        if self.train_dataset is None:
            raise UsageError("training needs a dataset: pass train_dataset=.")
        return self.source.train_batches(self.train_dataset, self._train_batch_size)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        """The micro-batches of the source, the same every time."""
        return self.source.eval_batches(self._eval_dataset(eval_dataset), self.args.eval_batch_size)

    def _eval_dataset(self, eval_dataset: Any) -> TokenizedDataset:
        if isinstance(eval_dataset, str) and isinstance(self.eval_dataset, dict):
            return self.eval_dataset[eval_dataset]
        if self._cache is not None and self._cache.knows(eval_dataset):
            return eval_dataset
        if eval_dataset is not None:
            dataset = self._prepared(eval_dataset, "eval", held_out=True)
            return dataset if self._cache is None else self._cache.fill(dataset)
        if self.eval_dataset is None:
            raise UsageError("evaluation needs a dataset: pass eval_dataset=.")
        return self.eval_dataset

    def _prepare_inputs(self, inputs: MicroBatch) -> MicroBatch:
        """The micro-batch on the device that trains."""
        return inputs.to(self.args.device)

    # ---- a step: prepare, then losses --------------------------------------------------------------------------

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list, StepContext | None]:
        """Take the micro-batches of a step and prepare it: reference, observations, denominators."""
        batches = []
        for _ in range(num_batches):
            try:
                batches.append(self._prepare_inputs(next(epoch_iterator)))
            except StopIteration:
                break
        if not batches:
            return batches, None
        self._guard.begin(batches)
        batches, step = self.preparer.step(self.model, batches, self.objective_state)
        self._pending_state = {key: step.state[key] for key in self.objective_state}
        self.balance.begin(batches)
        return batches, step

    def compute_loss(
        self,
        model: nn.Module,
        inputs: MicroBatch,
        return_outputs: bool = False,
        num_items_in_batch: StepContext | None = None,
    ) -> Tensor:
        """This micro-batch's share of the loss of its step."""
        # Around more than the policy's own forward: models beside it compute as it does, and so does what is compared.
        with self.accelerator.autocast(), self.balance.collected():
            container = self.scorer.container(model, inputs)
        loss = self.objective(container, num_items_in_batch.state)
        balance, logged = self.balance.share()
        self._seen = {**self.source.metrics(loss), **logged}
        return step_loss(loss, num_items_in_batch.denominators, self.accelerator.num_processes) + balance

    def training_step(
        self, model: nn.Module, inputs: MicroBatch, num_items_in_batch: StepContext | None = None
    ) -> Tensor:
        """Forward and backward of the policy; then those of what is trained next to it, one role after the other.

        Where memory runs out, in parts (see `prefopt.training.splitting`).
        """
        weights = [weight for group in self.optimizer.param_groups for weight in group["params"]]
        shares: list[Tensor] = []
        one_pass = super().training_step

        def learn(part: MicroBatch, *_: int) -> None:
            shares.append(one_pass(model, part, num_items_in_batch))
            self._means.add(self._seen)
            self.source.observe(self._seen)

        self._learned.each(inputs, learn, weights)
        self.source.auxiliary.after_backward(inputs, num_items_in_batch, self._learned)
        loss = torch.stack(shares).sum()
        self._guard.see_loss(loss)
        return loss

    def _clip_grad_norm(self, model: nn.Module) -> Tensor:
        """Clip the policy's gradients, with those that share its pass; what is trained apart has a norm of its own."""
        joint, apart = self.source.auxiliary.clipped_with_policy(), self.source.auxiliary.clipped_apart()
        if not joint and not apart:
            norm = super()._clip_grad_norm(model)
            self._guard.see_norm(norm)
            return norm
        own = {id(weight) for weight in (*joint, *apart)}
        rest = [weight for weight in model.parameters() if id(weight) not in own]
        norm = self.accelerator.clip_grad_norm_([*rest, *joint], self.args.max_grad_norm)
        if apart:
            nn.utils.clip_grad_norm_(apart, self.args.max_grad_norm)
        return norm

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """The optimizer of transformers, with the weights that are trained next to the policy in it."""
        fresh = self.optimizer is None
        optimizer = super().create_optimizer(model)
        if fresh:
            self.context.optimizer = optimizer
            self.source.auxiliary.extend_optimizer(optimizer)
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

    def _before_optimizer(self) -> None:
        """Before an optimizer step: let it change nothing where a loss or a gradient is not finite."""
        weights = [weight for group in self.optimizer.param_groups for weight in group["params"]]
        self._guard.check(weights, self.state.global_step, self.train_dataset)

    def _end_of_step(self) -> None:
        """After an optimizer step: remember the objective's state, unless the step changed nothing."""
        if not self._guard.skipped and not self.accelerator.optimizer_step_was_skipped:
            self.objective_state = self._pending_state
        self.source.end_of_step()
        self.state.epoch = self.source.epoch(self.state.epoch)

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
        sums = LossSums()

        def measure(part: MicroBatch, *_: int) -> None:
            scored = self.scorer.score_reference(self.policy, part)
            loss = self.objective(self.scorer.container(self.model, scored), state)
            self._means.add(self.source.metrics(loss))
            sums.add(loss)

        with self._means.apart():
            with torch.no_grad(), self.accelerator.autocast():
                prepared = (self._prepare_inputs(batch) for batch in dataloader)
                state = self.preparer.evaluation(prepared, self.objective_state)
                for batch in dataloader:
                    self._scored.each(self._prepare_inputs(batch), measure)
                    self.control = self.callback_handler.on_prediction_step(self.args, self.state, self.control)
            # Sampled prompts may have given no example.
            whole = sums.loss(gather_object)
            metrics = ({} if whole is None else {"loss": whole}) | self._drained()
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
            if self._guard.total:
                logs["skipped_steps"] = float(self._guard.total)
            # transformers takes a sum from itself to empty it, and nan − nan is nan: no later line would have a loss.
            if not math.isfinite(self._total_loss_scalar):
                self._tr_loss, self._total_loss_scalar = torch.zeros_like(self._tr_loss), self._logged_losses
            self._logged_losses = self._total_loss_scalar
        super().log(logs, start_time)

    # ---- saving and resuming -----------------------------------------------------------------------------------

    def train(
        self, resume_from_checkpoint: str | Path | bool | None = None, *, resume_anyway: bool = False, **options: Any
    ) -> Any:
        """Train.

        Args:
            resume_from_checkpoint: A checkpoint's folder, or True for the newest whole one in the output folder.
            resume_anyway: Resume from the checkpoint of another algorithm, adapter, base model or dataset.
            options: As in transformers.

        Raises:
            UsageError: There is no whole checkpoint, or another run wrote it; the output folder cannot be written to.
            Diverged: Losses or gradients are no longer finite.
        """
        saves = self.args.save_strategy != "no"
        if (saves or resume_from_checkpoint) and self._run is None:
            self._run = identity_of(self.algorithm, self.policy, self.args, self.train_dataset, self.context.data_seed)
        checkpoint = checkpoint_to_resume(resume_from_checkpoint, self.args.output_dir, self._run, anyway=resume_anyway)
        if checkpoint is not None:
            self.objective_state = load_state(checkpoint, self.args.device) or self.objective_state
            self.preparer.starts_equal = False
        if saves and self.args.should_save:
            prepare_folder(self.args.output_dir, self.policy.parameters(), fresh=checkpoint is None)
        result = super().train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint), **options)
        self._guard.end(self.state.global_step - self._initial_global_step)
        return result

    def _run_epoch(self, **options: Any) -> None:
        """An epoch of transformers; none after the last step, where a run may be resumed."""
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return
        super()._run_epoch(**options)

    def _get_output_dir(self, trial: Any) -> str:
        """The folder of the checkpoints; while one is written, a folder inside it."""
        folder = super()._get_output_dir(trial)
        return str(Path(folder) / UNFINISHED) if self._unfinished else folder

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Write a checkpoint where nobody takes it for a whole one, seal it, and give it its name."""
        target = Path(super()._get_output_dir(trial))
        name = f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        pushes, limit = self.args.push_to_hub, self.args.save_total_limit
        # What is pushed, and what is deleted for it, comes after the checkpoint has its name.
        self._unfinished, self.args.push_to_hub, self.args.save_total_limit = True, False, None
        try:
            super()._save_checkpoint(model, trial)
        except OSError as error:
            shutil.rmtree(target / UNFINISHED, ignore_errors=True)
            raise UsageError(
                f"the checkpoint of step {self.state.global_step} cannot be written to {target}: "
                f"{error.strerror or error}. Earlier checkpoints are whole: make room, then resume."
            ) from error
        finally:
            self._unfinished, self.args.push_to_hub, self.args.save_total_limit = False, pushes, limit
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            run = {**self._run, "step": self.state.global_step}
            finish_checkpoint(target, name, self.state, run, keep=limit)
        self.accelerator.wait_for_everyone()
        if pushes:
            self._push_from_checkpoint(str(target / name))

    def _save_rng_state(self, output_dir: str) -> None:
        """Called on every process for every checkpoint: besides random numbers, keep what the source must know."""
        super()._save_rng_state(output_dir)
        folder, rank = Path(output_dir), self.args.process_index
        self.source.save(folder, main=self.args.should_save)
        save_log(folder, rank, self._means, self._tr_loss.item(), self._globalstep_last_logged)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Called where a resumed run begins: the source and the log go on where the checkpoint was written."""
        super()._load_rng_state(checkpoint)
        if checkpoint is not None:
            self.source.load(Path(checkpoint))
            loss, self._globalstep_last_logged = load_log(
                Path(checkpoint), self.args.process_index, self._means, self._globalstep_last_logged
            )
            self._tr_loss += loss

    def _save(self, output_dir: str | Path | None = None, state_dict: dict | None = None) -> None:
        folder = Path(output_dir or self.args.output_dir)
        if not self.args.should_save:
            return
        folder.mkdir(parents=True, exist_ok=True)
        save_policy(self.policy, folder, state_dict=state_dict)
        self.processing_class.save_pretrained(folder)
        save_state(self.objective_state, folder)
        options = {"adapter": self._adapter_kind, "settings": self.data_settings, "dataset": self.train_dataset}
        write_record(folder, self.algorithm, self.args, step=self.state.global_step, **options)


class _Commit(TrainerCallback):
    """Tells the trainer where an optimizer step begins and ends."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer

    def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
        self.trainer._before_optimizer()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.trainer._end_of_step()
