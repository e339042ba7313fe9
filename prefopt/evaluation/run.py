"""Evaluating a saved model: load it, measure it, write its report."""

from pathlib import Path

from torch import nn

from prefopt.core.console import results, say
from prefopt.core.errors import ModelError
from prefopt.core.version import VERSION
from prefopt.data import DataSettings, TokenizedDataset, prepare_dataset
from prefopt.evaluation import policy_page, reward_page
from prefopt.evaluation.policy_report import compare, divergence, score_policy
from prefopt.evaluation.reward_report import report_on, score_pairs
from prefopt.evaluation.spec import Evaluation
from prefopt.models import SavedModel, load_tokenizer, load_trained
from prefopt.models.origin import context_of
from prefopt.rewards.names import load_reward
from prefopt.rewards.reward import Reward, make_reward
from prefopt.rewards.reward_model import RewardModel, is_reward_model
from prefopt.rollouts import GenerationSettings


def evaluate(evaluation: Evaluation) -> Path:
    """Measure a model, print its report and write it into a folder.

    Returns:
        The path of the HTML file.

    Raises:
        UsageError, ModelError, DataError: see `Evaluation.check`; or a model or dataset that cannot be used.
    """
    rewards = is_reward_model(evaluation.model, trust_remote_code=evaluation.trust_remote_code)
    evaluation.check(rewards=rewards)
    path = _evaluate_reward_model(evaluation) if rewards else _evaluate_policy(evaluation)
    say(f"report in {path}")
    return path


def _evaluate_reward_model(given: Evaluation) -> Path:
    reward = RewardModel.load(given.model, trust_remote_code=given.trust_remote_code)
    settings = DataSettings.of({**reward.encoding, **given.settings})
    dataset = prepare_dataset(
        given.data, "pairs", reward.tokenizer, settings, context=reward.context, reader="evaluate"
    )
    _say_audit(dataset)
    report = report_on(score_pairs(reward, dataset))
    results().print(reward_page.printed(report))
    return reward_page.write_reward_report(report, _facts(given, dataset), Path(given.out))


def _evaluate_policy(given: Evaluation) -> Path:
    tokenizer = load_tokenizer(given.model, trust_remote_code=given.trust_remote_code)
    settings = DataSettings.of({**SavedModel.of(given.model).encoding, **given.settings})
    generation = GenerationSettings.of(dict(given.generation))
    reward = _reward(given)
    policy = _load(given.model, given.trust_remote_code)
    context = context_of(policy.config)
    prompts = prepare_dataset(given.data, "prompts", tokenizer, settings, context=context, reader="evaluate")
    _say_audit(prompts)
    own = score_policy(policy, tokenizer, prompts, reward, generation, given.seed)
    theirs, ratios = None, None
    if given.against is not None:
        start = _load(given.against, given.trust_remote_code)
        _same_tokens(policy, start, given)
        theirs = score_policy(start, tokenizer, prompts, reward, generation, given.seed + 1)
        ratios = divergence(policy, start, own, prompts.pad_token_id, generation)
        if ratios is None:
            say("no KL: the completions are not samples of the whole distribution (temperature, top_p, top_k).")
    report = compare(own, theirs, ratios)
    results().print(policy_page.printed(report))
    facts = _facts(given, prompts) | _policy_facts(given, generation)
    return policy_page.write_policy_report(report, own, theirs, facts, Path(given.out))


def _reward(given: Evaluation) -> Reward:
    return make_reward(given.reward, load=lambda name: load_reward(name, trust_remote_code=given.trust_remote_code))


def _load(name: str, trust_remote_code: bool) -> nn.Module:
    """A policy as it was trained: an adapter on a quantized base gets that base."""
    if is_reward_model(name, trust_remote_code=trust_remote_code):
        raise ModelError(f"{name} is a reward model, and what a policy is compared with must be a language model.")
    return load_trained(name, trust_remote_code=trust_remote_code)


def _same_tokens(policy: nn.Module, start: nn.Module, given: Evaluation) -> None:
    sizes = [model.get_input_embeddings().weight.shape[0] for model in (policy, start)]
    if sizes[0] != sizes[1]:
        raise ModelError(
            f"{given.model} knows {sizes[0]} tokens and {given.against} {sizes[1]}: only models with the same "
            "tokenizer can be compared."
        )


def _say_audit(dataset: TokenizedDataset) -> None:
    for line in [*dataset.notes, *dataset.audit.lines()]:
        say(line)


def _facts(given: Evaluation, dataset: TokenizedDataset) -> dict[str, str]:
    rows = dataset.audit.lines()[0]
    return {"model": given.model, "data": given.data, "rows": rows, "prefopt": VERSION}


def _policy_facts(given: Evaluation, generation: GenerationSettings) -> dict[str, str]:
    sampling = ", ".join(f"{name}={value}" for name, value in vars(generation).items() if name != "batch_size")
    compared = {} if given.against is None else {"start": given.against}
    rewards = given.reward if isinstance(given.reward, list) else [given.reward]
    return {"reward": ", ".join(map(str, rewards)), **compared, "sampling": f"{sampling}, seed={given.seed}"}
