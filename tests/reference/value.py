"""The clipped squared error of PPO's critic (code of Ziegler et al. 2019, arXiv 1909.08593)."""

from policy_gradient import clip, token_mean


def smooth(examples, *, eps, epsilon_value):
    """Neither what is clipped nor which branch is the larger one may be a matter of rounding."""

    def one(v, old, target):
        near, least = clip(v, old - epsilon_value, old + epsilon_value), 8 * eps * (abs(v) + abs(old) + abs(target))
        at_the_edge = abs(abs(v - old) - epsilon_value) <= least
        return not at_the_edge and (near == v or abs(abs(v - target) - abs(near - target)) > least)

    return all(one(*x) for ex in examples for x in zip(ex.values, ex.old_values, ex.returns, strict=True))


def loss(examples, *, epsilon_value):
    def one(v, old, target):
        near = clip(v, old - epsilon_value, old + epsilon_value)
        return max((v - target) ** 2, (near - target) ** 2) / 2

    return token_mean(examples, lambda ex: [one(*x) for x in zip(ex.values, ex.old_values, ex.returns, strict=True)])
