"""WPO's weights (Zhou et al. 2024, arXiv 2406.11827) on another loss of pairs, at the defaults of that loss."""

import dpo
import ipo
import simpo
from common import mean
from mpmath import mpf
from wpo import pair_weight

BASES = {
    "ipo": lambda ex: ipo.loss([ex], tau=mpf(0.1), average=False),
    "dpo": lambda ex: dpo.loss([ex], beta=mpf(0.1)),
    "simpo": lambda ex: simpo.loss([ex], beta=mpf(2.0), gamma=mpf(1.0)),
}


def loss(examples, *, base, clamp):
    return mean(pair_weight(ex, clamp) * BASES[base](ex) for ex in examples)
