"""The losses of the installed TRL next to prefopt's, on the same log-probabilities, one row per loss.

TRL computes its losses inside trainers. Here their methods run on a stub that has the settings and, in the place of a
model, per-token log-probabilities. TRL's DPO and KTO trainers are read at 1.x; a method that is not there is reported
as such.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from types import SimpleNamespace
from typing import Any

import torch
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text
from torch import Tensor

from prefopt.core.batches import Batch, Completions, Pairs
from prefopt.core.errors import UsageError
from prefopt.core.loss import State
from prefopt.core.objective import Objective
from prefopt.objectives import get_objective
from prefopt.verify.cases import Seeded, draw
from prefopt.verify.evaluation import evaluate, loss_of, state_of

AGREE = 1e-6


@dataclass(frozen=True)
class Row:
    """One loss of TRL and one of prefopt: what each is called, how far apart they are, and what is known about it."""

    theirs: str
    ours: str
    value: float
    gradient: float
    note: str = ""

    @property
    def agrees(self) -> bool:
        """Whether value and gradient are the same to `AGREE`."""
        return self.value <= AGREE and self.gradient <= AGREE


@dataclass(frozen=True)
class Comparison:
    """All rows, and the versions that were compared."""

    versions: str
    rows: tuple[Row, ...]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Text(f"{self.versions}: by how much losses and gradients differ on the same log-probabilities")
        table = Table(box=None, padding=(0, 2, 0, 0))
        table.add_column("")
        table.add_column("TRL", overflow="fold")
        for title in ("prefopt", "value", "gradient"):
            table.add_column(title, justify="left" if title == "prefopt" else "right", no_wrap=True)
        for row in self.rows:
            mark = Text("=", style="green") if row.agrees else Text("≠", style="yellow")
            table.add_row(mark, row.theirs, row.ours, f"{row.value:.1e}", f"{row.gradient:.1e}")
        yield table
        yield Text("= the same to 1e-6, relative to the larger; ≠ another definition or another evaluation.")
        for row in self.rows:
            if row.note:
                yield Text(f"{row.ours}: {row.note}.")


@dataclass(frozen=True)
class Setting:
    """How one loss is asked for in both libraries."""

    theirs: str
    ours: str
    hyperparameters: dict[str, Any]
    options: dict[str, Any]
    run: Callable[[Batch, State, dict[str, Any]], Tensor]
    note: str = ""


def compare(names: Sequence[str] | None = None, batches: int = 8) -> Comparison:
    """Compare every loss that both libraries have, or those named (by prefopt's name or TRL's).

    Raises:
        UsageError: TRL is not installed, or it has none of the names.
    """
    try:
        versions = f"TRL {version('trl')}, prefopt {version('prefopt')}, torch {version('torch')}"
    except PackageNotFoundError as error:
        raise UsageError('this compares with the installed TRL: pip install "prefopt[compare]".') from error
    chosen = [one for one in settings() if not names or one.ours in names or one.theirs in names]
    if not chosen:
        known = ", ".join(dict.fromkeys(one.ours for one in settings()))
        raise UsageError(f"there is no loss {', '.join(names or ())} to compare; there are {known}.")
    return Comparison(versions, tuple(_row(one, batches) for one in chosen))


def settings() -> Iterator[Setting]:
    """All losses that are compared."""
    beta = {"beta": 0.1}
    yield _dpo("sigmoid", "dpo", beta)
    yield _dpo(
        "sigmoid",
        "cdpo",
        {**beta, "label_smoothing": 0.1},
        note="label_smoothing has no effect on TRL's sigmoid since 0.29",
        label_smoothing=0.1,
    )
    yield _dpo("robust", "robust_dpo", {**beta, "label_smoothing": 0.1}, label_smoothing=0.1)
    yield _dpo("ipo", "ipo", {"tau": 0.1}, note="TRL divides by the number of tokens; the paper sums")
    yield _dpo("ipo", "ipo(average=True)", {"tau": 0.1, "average": True})
    yield _dpo("hinge", "hinge", {"gamma": 0.1})
    yield _dpo("exo_pair", "exo_pair", {**beta, "label_smoothing": 0.001}, label_smoothing=0.001)
    yield _dpo("nca_pair", "nca_pair", beta)
    yield _dpo("bco_pair", "bco_pair", beta, note="TRL 1.16 has no shift δ")
    yield _dpo("sppo_hard", "sppo_hard", beta)
    yield _dpo("aot", "aot_paired", beta)
    yield _dpo("aot_unpaired", "aot_unpaired", beta)
    yield _dpo("apo_zero", "apo_zero", beta)
    yield _dpo("apo_down", "apo_down", beta)
    yield _dpo("discopop", "discopop", {"beta": 0.1, "tau": 0.05})
    yield _dpo("sigmoid_norm", "dpo_norm", beta)
    yield _dpo("sft", "sft", {})
    for theirs, ours in (("js_divergence", "js"), ("forward_kl", "forward_kl")):
        yield _dpo("sigmoid", f"fdpo({ours})", {**beta, "divergence": ours}, f_divergence_type=theirs)
    yield _dpo(
        "sigmoid",
        "fdpo(alpha)",
        {**beta, "divergence": "alpha", "alpha": 0.3},
        note="TRL's coefficient is 1 − α of the paper; here both are given 0.3",
        f_divergence_type="alpha_divergence",
        f_alpha_divergence_coef=0.3,
    )
    yield _dpo(
        "sigmoid",
        "fdpo(alpha)",
        {**beta, "divergence": "alpha", "alpha": 0.3},
        note="with a coefficient of 0.7 in TRL",
        f_divergence_type="alpha_divergence",
        f_alpha_divergence_coef=0.7,
    )
    yield _dpo("sigmoid", "ld_dpo", {**beta, "alpha": 0.4}, ld_alpha=0.4)
    yield _dpo("sigmoid", "wpo", beta, use_weighting=True)
    yield Setting("kto", "kto", beta, {}, _run_kto)
    yield Setting("cpo simpo", "simpo", {"beta": 2.0, "gamma": 0.5}, {"loss_type": "simpo"}, _run_cpo)
    yield Setting("orpo", "orpo", {"lam": 0.1}, {}, _run_orpo, "the odds-ratio part; TRL evaluates it in float32")


def _dpo(theirs: str, ours: str, hyperparameters: dict[str, Any], note: str = "", **options: Any) -> Setting:
    return Setting(theirs, ours, hyperparameters, {"loss_types": [theirs], **options}, _run_dpo, note)


def _row(setting: Setting, batches: int) -> Row:
    objective = get_objective(setting.ours.partition("(")[0], **setting.hyperparameters)
    worst_value = worst_gradient = 0.0
    for seed in range(batches):
        # TRL's alpha divergence knows the dtypes of training only.
        alpha = setting.options.get("f_divergence_type") == "alpha_divergence"
        batch = _batch(objective, seed, torch.float32 if alpha else torch.float64)
        state = state_of(objective, batch)
        ours = evaluate(_ours(setting, objective), batch, state)
        options = {**setting.options, **setting.hyperparameters}
        theirs = evaluate(lambda b, s, options=options: setting.run(b, s, options), batch, state)
        worst_value = max(worst_value, float((ours.value - theirs.value).abs() / ours.value.abs().clamp(min=1e-12)))
        for path in ours.gradient:
            if path.endswith("ref_logps") or not path.endswith("logps"):
                continue
            mask = ours.masks[path]
            a, b = ours.gradient[path][mask], theirs.gradient[path][mask]
            worst_gradient = max(worst_gradient, float((a - b).abs().max() / a.abs().max().clamp(min=1e-12)))
    same = worst_value <= AGREE and worst_gradient <= AGREE
    note = "" if same and not setting.note.startswith("with") else setting.note
    return Row(_label(setting), setting.ours, worst_value, worst_gradient, note)


def _label(setting: Setting) -> str:
    extra = {key: value for key, value in setting.options.items() if key not in ("loss_types", "loss_type")}
    words = (value if isinstance(value, str) else f"{key}={value}" for key, value in extra.items())
    return ", ".join([setting.theirs, *words])


def _ours(setting: Setting, objective: Objective) -> Callable[[Batch, State], Tensor]:
    if setting.ours != "orpo":
        return loss_of(objective)
    return lambda batch, state: objective(batch, state).terms["odds_ratio"].values.mean() * objective.lam


def _batch(objective: Objective, seed: int, dtype: torch.dtype) -> Batch:
    """Per-token log-probabilities of both models."""
    needs = replace(
        objective.needs, batch=Pairs, reference=True, lengths=True, tokens=True, statistics=frozenset({"log_sum_p2"})
    )
    if objective.name == "kto":
        needs = replace(needs, batch=objective.needs.batch)
    batch = draw(Seeded(seed), needs, regime="ordinary", rows=3).build(dtype=dtype, fill=0.0)
    if isinstance(batch, Pairs):
        batch = replace(batch, preference=None)
    return batch


def _same(x: Any, **_: Any) -> Any:
    return x


class _Stub(SimpleNamespace):
    """A trainer with settings and nothing else."""

    def __init__(self, **settings: Any) -> None:
        accelerator = SimpleNamespace(
            device=torch.device("cpu"),
            gather=lambda x: x,
            gather_for_metrics=lambda x, **_: x,
            unwrap_model=lambda x: x,
        )
        model = torch.nn.Module().eval()
        model.is_gradient_checkpointing = False
        super().__init__(
            accelerator=accelerator,
            model=model,
            args=SimpleNamespace(discopop_tau=settings.get("tau", 0.05), gradient_checkpointing_kwargs=None),
            _metrics=defaultdict(lambda: defaultdict(list)),
            aux_loss_enabled=False,
            precompute_ref_logps=True,
            _total_train_tokens=0,
            _tp_size=1,
        )
        vars(self).update(settings)


def _outputs(*parts: Completions) -> tuple[SimpleNamespace, Tensor]:
    """What TRL reads of a model's outputs, and the completion mask with a place for the prompt before it."""
    width = max(part.tokens.mask.shape[1] for part in parts)

    def column(name: str) -> Tensor:
        padded = []
        for part in parts:
            values = torch.where(part.tokens.mask, getattr(part.tokens, name), 0.0)
            padded.append(torch.nn.functional.pad(values, (0, width - values.shape[1])))
        return torch.cat(padded)

    masks = [torch.nn.functional.pad(part.tokens.mask, (0, width - part.tokens.mask.shape[1])) for part in parts]
    mask = torch.nn.functional.pad(torch.cat(masks), (1, 0)).long()
    logps = column("logps")
    nothing = torch.zeros_like(logps)
    has = parts[0].tokens.log_sum_p2 is not None
    return SimpleNamespace(
        log_probs=logps,
        entropy=nothing,
        mean_logits=nothing,
        is_top1=nothing.bool(),
        log_sum_sq_probs=column("log_sum_p2") if has else nothing,
    ), mask


def _run_dpo(batch: Pairs, state: State, options: dict[str, Any]) -> Tensor:
    from trl.trainer.dpo_trainer import DPOTrainer

    defaults = {
        "beta": options.get("tau", options.get("gamma", 0.1)),
        "label_smoothing": 0.0,
        "f_divergence_type": "reverse_kl",
        "f_alpha_divergence_coef": 0.5,
        "ld_alpha": None,
        "use_weighting": False,
        "loss_weights": [1.0],
    }
    stub = _Stub(**{**defaults, **options})
    outputs, mask = _outputs(batch.chosen, batch.rejected)
    # LD-DPO reweights the reference as well, which needs its tokens: give it as a model.
    stub.precompute_ref_logps = stub.ld_alpha is None
    stub.ref_model = _as_reference(batch)
    inputs = {
        "input_ids": torch.zeros_like(mask),
        "attention_mask": torch.ones_like(mask),
        "completion_mask": mask,
        "ref_chosen_logps": batch.chosen.ref_logps,
        "ref_rejected_logps": batch.rejected.ref_logps,
    }
    return DPOTrainer._compute_loss(stub, lambda **_: outputs, inputs, False)


def _as_reference(batch: Pairs) -> Callable[..., SimpleNamespace]:
    def swapped(rows: Completions) -> Completions:
        return replace(rows, tokens=replace(rows.tokens, logps=rows.tokens.ref_logps))

    outputs, _ = _outputs(swapped(batch.chosen), swapped(batch.rejected))
    return lambda **_: outputs


def _run_kto(batch: Any, state: State, options: dict[str, Any]) -> Tensor:
    from trl.trainer.kto_trainer import KTOTrainer

    own = batch.mismatched
    outputs, mask = _outputs(batch.completions)
    stub = _Stub(beta=options["beta"], loss_type="kto", calculate_KL=True, desirable_weight=1.0, undesirable_weight=1.0)
    stub._compute_kl_logps = lambda model, inputs: own.logps.detach()
    inputs = {
        "input_ids": torch.zeros_like(mask),
        "attention_mask": torch.ones_like(mask),
        "completion_mask": mask,
        "label": batch.desirable,
        "ref_logps": batch.completions.ref_logps,
        "ref_KL_logps": own.ref_logps,
    }
    return KTOTrainer._compute_loss(stub, lambda **_: outputs, inputs, False)


def _run_cpo(batch: Pairs, state: State, options: dict[str, Any]) -> Tensor:
    from trl.experimental.cpo.cpo_trainer import CPOTrainer

    stub = _Stub(
        beta=options["beta"],
        simpo_gamma=options["gamma"],
        loss_type=options["loss_type"],
        alpha=0.0,
        label_smoothing=0.0,
    )
    return CPOTrainer.cpo_loss(stub, batch.chosen.mean, batch.rejected.mean)[0].mean()


def _run_orpo(batch: Pairs, state: State, options: dict[str, Any]) -> Tensor:
    from trl.experimental.orpo.orpo_trainer import ORPOTrainer

    stub = _Stub(beta=options["lam"])
    # TRL adds −λ · mean to the NLL.
    return -ORPOTrainer.odds_ratio_loss(stub, batch.chosen.mean, batch.rejected.mean)[0].mean()
