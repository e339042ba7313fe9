"""CISPO, MiniMax 2025 (arXiv 2506.13585): log-likelihood under clipped weights that are constants."""

from policy_gradient import both, bounded_exp, clip, token_mean


def loss(examples, *, epsilon_low, epsilon_high, beta, kl, kl_ratio):
    def surrogates(ex):
        constants = zip(ex.completion.detached.logps, ex.detached.old_logps, strict=True)
        weights = [clip(bounded_exp(new - old), 1 - epsilon_low, 1 + epsilon_high) for new, old in constants]
        return [-w * a * x for w, a, x in zip(weights, ex.advantages, ex.completion.logps, strict=True)]

    return token_mean(examples, lambda ex: both(ex, surrogates(ex), beta, kl, kl_ratio))
