"""DAPO, Yu et al. 2025 (arXiv 2503.14476): two bounds, a mean over all tokens."""

from policy_gradient import both, surrogates, token_mean


def loss(examples, *, epsilon_low, epsilon_high, beta, kl, kl_ratio):
    return token_mean(examples, lambda ex: both(ex, surrogates(ex, epsilon_low, epsilon_high), beta, kl, kl_ratio))
