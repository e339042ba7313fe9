"""Mutants that are the same loss, each with the reason: objective → text of the mutant → why nothing can tell it."""

GROUP = "a ranked batch counts its groups as its examples, so the two units are one"
EMPTY = "differs only for a completion without tokens, which has nothing to learn and is dropped as data"
SHIFT = "the targets are a softmax, which a constant per group does not change"
SHAPE = "only the length or the device of the tensor is read, and the two tensors share both"
DIGITS = "two ways to evaluate e^x − 1 that differ in the last digits of float32, less than rounding of the inputs does"
CONSTANT = "a constant in both implicit rewards, which their difference cancels"
SENTINEL = "any number above 1 sorts masked tokens behind the lots of the others, which lie between 0 and 1"
BRANCHES = "both branches are the same function, and both have all digits where the choice between them moves"
UNTAKEN = "the argument of a branch that is not taken"
PADDED = "any number will do where the mask is False, because nothing there is summed"
SERIES = "moves the estimate by less than 4e-12 of itself, and only where it is a rest of 5e-5 beside the surrogate"
ALONE = "every term of its three parts has the weight 1"
REFUSAL = "only which missing input is refused changes"

EXPM1 = {
    "_expm1: `torch.where(x > -1, torch.expm1(x), torch.exp(x) - 1)` becomes `torch.expm1(x)`": DIGITS,
    "_expm1: `torch.where(x > -1, torch.expm1(x), torch.exp(x) - 1)` becomes `torch.exp(x) - 1`": DIGITS,
    "_expm1: `x > -1` becomes `x < -1`": DIGITS,
    "_expm1: `x > -1` becomes `x > 1`": DIGITS,
    "_expm1: `x > -1` becomes `x > -2`": DIGITS,
}

POLICY_GRADIENT = {
    "kl_estimate: `x / 6` becomes `x / 7`": SERIES,
    "self.estimate: `torch.where(apart, reference - _inside(batch, batch.old_logps), 0.0)` becomes "
    "`torch.where(apart, reference - _inside(batch, batch.old_logps), 1.0)`": UNTAKEN,
    "self.estimate: `torch.where(apart, 0.0, estimate)` becomes `estimate`": UNTAKEN,
    "self.estimate: `torch.where(apart, 0.0, estimate)` becomes `torch.where(apart, 1.0, estimate)`": UNTAKEN,
    "_inside: `torch.where(batch.tokens.mask, values, 0.0)` becomes "
    "`torch.where(batch.tokens.mask, values, 1.0)`": PADDED,
    "kl_estimate: `torch.where(near, log_ratio, 0.0)` becomes `log_ratio`": UNTAKEN,
    "kl_estimate: `torch.where(near, log_ratio, 0.0)` becomes `torch.where(near, log_ratio, 1.0)`": UNTAKEN,
    "kl_estimate: `torch.where(near, 1.0, log_ratio)` becomes `log_ratio`": UNTAKEN,
    "kl_estimate: `torch.where(near, 1.0, log_ratio)` becomes `torch.where(near, 2.0, log_ratio)`": UNTAKEN,
}

LOG_PROBS = {
    "self.terms: `torch.where(batch.tokens.mask, batch.tokens.logps, 0.0)` becomes `batch.tokens.logps`": PADDED,
    "self.terms: `torch.where(batch.tokens.mask, batch.tokens.logps, 0.0)` becomes "
    "`torch.where(batch.tokens.mask, batch.tokens.logps, 1.0)`": PADDED,
}
APART = {"self.estimate: `log_ratio < -1` becomes `log_ratio < -2`": BRANCHES}

EQUIVALENT: dict[str, dict[str, str]] = {
    "alphapo": EXPM1,
    "fdpo": {
        **EXPM1,
        "self.reward: `math.log(2.0)` becomes `2.0`": CONSTANT,
        "self.reward: `math.log(2.0)` becomes `math.log(3.0)`": CONSTANT,
    },
    "beta_dpo": {
        "self._kept: `len(batch.chosen)` becomes `len(batch.rejected)`": SHAPE,
        "self._kept: `batch.chosen.logps.device` becomes `batch.chosen.ref_logps.device`": SHAPE,
        "self._kept: `batch.chosen.logps.device` becomes `batch.rejected.logps.device`": SHAPE,
    },
    "dpo_pl": {
        "self.terms: `Term(-logsigmoid(reward[winners] - below), 'group')` becomes "
        "`Term(-logsigmoid(reward[winners] - below))`": GROUP,
    },
    "exo": {
        "self.terms: `Term(torch.where(together, close, apart), 'group')` becomes "
        "`Term(torch.where(together, close, apart))`": GROUP,
        "self.terms: `torch.where(same, more.abs(), 0.0).amax(dim=1) < 0.5` becomes "
        "`torch.where(same, more.abs(), 0.0).amax(dim=1) < 1.5`": BRANCHES,
        "_first: `more.abs()` becomes `more`": BRANCHES,
        "_first: `more.abs() < 0.5` becomes `more.abs() < 1.5`": BRANCHES,
        "_first: `torch.where(small, more, 0.0)` becomes `torch.where(small, more, 1.0)`": UNTAKEN,
        "_first: `torch.where(near, moved, 0.0)` becomes `torch.where(near, moved, 1.0)`": UNTAKEN,
    },
    "reward_aware_rpo": {
        "_heads: `(q - p).abs() < 0.5` becomes `(q - p).abs() < 1.5`": BRANCHES,
        "_heads: `torch.where(near, q - p, 0.0)` becomes `torch.where(near, q - p, 1.0)`": UNTAKEN,
    },
    "infonca": {
        "self.terms: `Term(torch.where(first, -grouped_log_softmax(reward, batch.same), others), 'group')` becomes "
        "`Term(torch.where(first, -grouped_log_softmax(reward, batch.same), others))`": GROUP,
        "self.targets: `batch.scores - batch.scores[top]` becomes `batch.scores + batch.scores[top]`": SHIFT,
    },
    "nca": {
        "self.terms: `Term(values, 'group')` becomes `Term(values)`": GROUP,
        "self.targets: `batch.scores - batch.scores[top]` becomes `batch.scores + batch.scores[top]`": SHIFT,
        "_log_sigmoid_gain: `difference.abs() < 1` becomes `difference.abs() < 2`": BRANCHES,
        "_log_sigmoid_gain: `torch.where(close, difference, 0.0)` becomes "
        "`torch.where(close, difference, 1.0)`": UNTAKEN,
    },
    "pro": {
        "self.terms: `Term(-logsigmoid(gap.amax(dim=1) * mean[winners] - below), 'group')` becomes "
        "`Term(-logsigmoid(gap.amax(dim=1) * mean[winners] - below))`": GROUP,
    },
    "ld_dpo": {"self._ratio: `tokens.ref_logps is None` becomes `tokens.logps is None`": REFUSAL},
    "sampo": {
        "positions: `keyed_uniform(ids[:, None], draw, side, place).masked_fill(~tokens.mask, 2.0)` becomes "
        "`keyed_uniform(ids[:, None], draw, side, place).masked_fill(~tokens.mask, 3.0)`": SENTINEL,
        "positions: `(size[:, None] - 1).clamp(min=0)` becomes `size[:, None] - 1`": EMPTY,
    },
    "mpo": {"self.terms: `part.weight * term.weight` becomes `part.weight / term.weight`": ALONE},
    **{name: {**POLICY_GRADIENT, **APART} for name in ("ppo", "grpo", "dr_grpo", "dapo", "gspo")},
    **{name: {**POLICY_GRADIENT, **APART, **LOG_PROBS} for name in ("cispo", "reinforce")},
    "reward_kwise": {
        "self.terms: `Term(-logsigmoid(reward[better] - reward[worse]) / stated[better], 'group')` becomes "
        "`Term(-logsigmoid(reward[better] - reward[worse]) / stated[better])`": GROUP,
    },
    "reward_regression": {
        "self.terms: `Term((error[first] - error[second]) ** 2 / pairs.to(error.dtype), 'group')` becomes "
        "`Term((error[first] - error[second]) ** 2 / pairs.to(error.dtype))`": GROUP,
    },
    "reward_best_of_k": {
        "self.terms: `Term(-logsigmoid(reward[picked] - others) / ties[picked], 'group')` becomes "
        "`Term(-logsigmoid(reward[picked] - others) / ties[picked])`": GROUP,
    },
    "value": {
        "self.terms: `torch.where(batch.tokens.mask, x, 0.0)` becomes `torch.where(batch.tokens.mask, x, 1.0)`": PADDED
    },
    "wpo": {"_log_weight: `completions.lengths.clamp(min=1)` becomes `completions.lengths`": EMPTY},
    "wpo_weighted": {"_log_weight: `completions.lengths.clamp(min=1)` becomes `completions.lengths`": EMPTY},
}
