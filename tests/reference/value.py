"""The clipped squared error of PPO's critic (code of Ziegler et al. 2019, arXiv 1909.08593)."""

from policy_gradient import clip, token_mean


def loss(examples, *, epsilon_value):
    def one(v, old, target):
        near = clip(v, old - epsilon_value, old + epsilon_value)
        return max((v - target) ** 2, (near - target) ** 2) / 2

    return token_mean(examples, lambda ex: [one(*x) for x in zip(ex.values, ex.old_values, ex.returns, strict=True)])
