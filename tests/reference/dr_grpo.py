"""Dr. GRPO, Liu et al. 2025 (arXiv 2503.20783): a constant in the place of the lengths."""

from common import mean
from policy_gradient import both, sums, surrogates


def loss(examples, *, epsilon, max_length, beta, kl, kl_ratio):
    def tokens(ex):
        return both(ex, surrogates(ex, epsilon, epsilon), beta, kl, kl_ratio)

    return mean(total / (max_length or 256) for total in sums(examples, tokens))
