"""The coefficient of the KL in the reward, fixed and adaptive, against the formula of Ziegler et al. (2019)."""

import pytest

from prefopt.rollouts.kl_controller import KLController, KLPenalty


def test_without_a_penalty_or_without_a_target_it_stays() -> None:
    for controller, expected in ((KLController(None), 0.0), (KLController(KLPenalty(0.1)), 0.1)):
        controller.update(50.0, 1000)
        assert controller.coefficient == expected


@pytest.mark.parametrize(
    ("kl", "factor"),
    [
        (6.0, 1.0),
        (6.6, 1 + 0.1 * 64 / 100),
        (60.0, 1 + 0.2 * 64 / 100),
        (5.7, 1 - 0.05 * 64 / 100),
        (0.0, 1 - 0.2 * 0.64),
    ],
)
def test_an_adaptive_one_follows_the_kl_up_to_a_fifth(kl: float, factor: float) -> None:
    controller = KLController(KLPenalty(0.5, target=6.0, horizon=100))
    controller.update(kl, 64)
    assert controller.coefficient == pytest.approx(0.5 * factor)
    controller.update(kl, 64)
    assert controller.coefficient == pytest.approx(0.5 * factor**2)


def test_it_never_turns_negative() -> None:
    controller = KLController(KLPenalty(0.5, target=6.0, horizon=10))
    controller.update(0.0, 64)
    assert controller.coefficient == 0.0
