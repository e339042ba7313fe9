"""LD-DPO, Liu et al. 2024 (arXiv 2409.06411): tokens beyond the shorter response's length count by α."""

from common import logsigmoid, mean
from mpmath import fsum


def loss(examples, *, beta, alpha, reweight_reference):
    def one(ex):
        public = min(len(ex.chosen.logps), len(ex.rejected.logps))

        def desensitised(logps):
            return fsum(logps[:public]) + alpha * fsum(logps[public:])

        def log_ratio(completion):
            reference = desensitised if reweight_reference else fsum
            return desensitised(completion.logps) - reference(completion.ref_logps)

        return -logsigmoid(beta * (log_ratio(ex.chosen) - log_ratio(ex.rejected)))

    return mean(one(ex) for ex in examples)
