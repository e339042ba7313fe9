"""Conservative DPO, Mitchell 2023 ("A note on DPO with noisy preferences"), eq. 3, and with soft labels.

The cross-entropy between the label of a pair, a coin that shows heads with probability 1 − ε (or the preference that is
known for it), and the model's σ(β h).
"""

from common import logsigmoid, mean, ratio
from mpmath import isnan


def loss(examples, *, beta, label_smoothing):
    def one(ex):
        unknown = ex.preference is None or isnan(ex.preference)
        heads = 1 - label_smoothing if unknown else ex.preference
        tails = label_smoothing if unknown else 1 - ex.preference
        h = ratio(ex.chosen) - ratio(ex.rejected)
        return -(heads * logsigmoid(beta * h) + tails * logsigmoid(-beta * h))

    return mean(one(ex) for ex in examples)
