"""PPO, Schulman et al. 2017 (arXiv 1707.06347), eq. 7: the clipped surrogate, averaged over all tokens."""

from policy_gradient import both, surrogates, token_mean


def loss(examples, *, epsilon, beta, kl, kl_ratio):
    return token_mean(examples, lambda ex: both(ex, surrogates(ex, epsilon, epsilon), beta, kl, kl_ratio))
