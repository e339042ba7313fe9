"""GRPO, Shao et al. 2024 (arXiv 2402.03300), eq. 3: a mean inside each completion, then over completions."""

from policy_gradient import both, sequence_mean, surrogates


def loss(examples, *, epsilon, beta, kl, kl_ratio):
    return sequence_mean(examples, lambda ex: both(ex, surrogates(ex, epsilon, epsilon), beta, kl, kl_ratio))
