"""What speaks for each objective besides its transcription, strongest first, and the test that shows it.

A reference that was written from the same page as the code proves that the two agree, not that either is the paper's
loss. Three things do: a closed-form optimum or an identity that a wrong loss would miss, numbers computed by the
authors' own code, and an independent implementation. An identity that holds at one end of a parameter only, or an
inequality, does not count. An objective with none of the three is called transcribed.
"""

from typing import NamedTuple

OPTIMUM, PUBLISHED, PARITY = "optimum or identity", "authors' code", "independent implementation"
CLASSES = (OPTIMUM, PUBLISHED, PARITY)


class Evidence(NamedTuple):
    """One piece: its class, what it is, and the test in which it is checked."""

    kind: str
    what: str
    test: str


_OPTIMA = {
    "test_tilts_the_reference": {
        "dpo": "π_ref exp(r/β) under Bradley–Terry",
        "robust_dpo": "π_ref exp(r/β) from labels flipped with probability ε",
        "rdpo_length": "π_ref exp((r − α len)/β)",
        "rebel": "π_t exp(η r)",
        "reward_aware_rpo": "π_ref exp(η r/β)",
        "exo": "π_ref exp(r/(β_π β_r))",
        "infonca": "π_ref exp(r/(α β))",
        "dpo_pl": "π_ref exp(r/β) from Plackett–Luce rankings of subsets",
    },
    "test_ipo_follows_the_win_rate_against_mu": {"ipo": "π_ref exp(p(y ≻ μ)/τ) for preferences without a reward"},
    "test_bco_with_a_free_shift_is_the_ratio_of_marginals": dict.fromkeys(("bco", "bco_pair"), "π_ref (p⁺/p⁻)^(1/β)"),
    "test_sft_is_the_distribution_of_the_data": {"sft": "the distribution of the data, at its entropy"},
    "test_simpo_without_margin_ignores_the_reference": {"simpo": "π ∝ exp(r L/β), and the closed form with a margin"},
    "test_sppo_on_its_own_samples": {"sppo": "s = η (P(y ≻ π_t) − ½)"},
    "test_fdpo_is_the_regularised_optimum": dict.fromkeys(
        ("fdpo", "js_dpo", "forward_kl_dpo", "alpha_div_dpo"), "argmax E r − β D_f, for each f"
    ),
    "test_two_responses": {"cdpo": "h = logit((1−ε)p + ε(1−p))/β"},
    "test_cpo_of_two_one_token_responses_is_the_preference": {"cpo": "π(1) = p at β = 1"},
    "test_deterministic_preferences": {"exo_pair": "h = logit(1−ε)/β, where the loss is 0"},
    "test_nca_draws_rewards_to_log_k_t": {"nca": "β s = log(K t)"},
    "test_kto_is_bang_bang": {"kto": "bang-bang in the stated direction"},
    "test_apo_zero_is_bang_bang": {"apo_zero": "bang-bang in the stated direction"},
}
_IDENTITIES = {
    "test_i5_sppo_is_ipo_plus_the_square_of_the_sum": {"sppo_hard": "½ IPO + ½ (s_w + s_l)² (I5)"},
    "test_i11_pro_of_two_is_a_logistic_loss_of_the_gap": {"pro": "ℓ(d (m_1 − m_2)) for two responses (I11)"},
    "test_sums_of_known_losses": {
        "cpo_simpo": "SimPO plus α times the likelihood",
        "mpo": "0.8 DPO + 0.2 BCO + likelihood, each certified",
        "wpo_weighted": "WPO when its base is DPO",
        "cal_dpo": "logistic loss plus SPPO's squares",
    },
}
_ENUMERATED = {
    "test_the_expected_gradient_at_ratio_1_is_the_policy_gradient": dict.fromkeys(
        ("ppo", "dapo", "cispo", "reinforce"), "on its own samples the expected gradient is that of E r − β KL"
    ),
    "test_dr_grpo_is_k_minus_1_over_k_of_it": {"dr_grpo": "on its own groups (k−1)/k of the gradient of E r, over M"},
    "test_the_optimum_of_regularised_rl": {"ppo": "followed to its end: π_ref exp(r/β), of value β log Z"},
    "test_xpo_is_online_dpo_and_a_push_away_from_the_reference": {
        "xpo": "DPO minus α (KL(π_ref ‖ π) + H(π_ref)) on samples of both"
    },
}
"""Expectations over all completions of a small policy, groups of them included."""
_REWARD_MODELS = {
    "test_bradley_terry_preferences_give_the_reward_back_up_to_a_constant": {
        "reward": "r up to a constant, from Bradley–Terry pairs"
    },
    "test_the_minimiser_with_a_margin_has_a_closed_form": {
        "reward_margin": "the closed form of r_w − r_l under a margin"
    },
    "test_rankings_give_the_reward_back_up_to_a_constant": dict.fromkeys(
        ("reward_kwise", "reward_best_of_k"), "r up to a constant, from Plackett–Luce rankings"
    ),
    "test_regression_finds_the_mean_rating": {"reward_regression": "the mean rating"},
}
"""What minimises the objectives that train reward models."""

_PUBLISHED = {
    "tests/verify/test_author_code.py": {
        "dpo": "eric-mitchell/direct-preference-optimization",
        "simpo": "princeton-nlp/SimPO",
        "kto": "ContextualAI/HALOs",
        "orpo": "xfactlab/orpo",
    },
    "tests/objectives/test_pairwise_fixtures.py": {
        "cdpo": "eric-mitchell/direct-preference-optimization",
        "exo_pair": "haozheji/exact-optimization",
        "nca_pair": "thu-ml/Noise-Contrastive-Alignment",
        "sppo_hard": "uclaml/SPPO",
        "sppo": "uclaml/SPPO",
        "discopop": "SakanaAI/DiscoPOP",
        "cal_dpo": "tengxiao1/Cal-DPO",
        "fdpo": "alecwangcq/f-divergence-dpo",
        "reward_aware_rpo": "NVIDIA/NeMo-Aligner",
        "cpo": "fe1ixxu/ALMA",
        "rebel": "ZhaolinGao/REBEL",
    },
    "tests/objectives/test_ranked_fixtures.py": {
        "rrhf": "GanjinZero/RRHF",
        "pro": "AlibabaResearch/DAMO-ConvAI",
        "infonca": "thu-ml/Noise-Contrastive-Alignment",
        "nca": "thu-ml/Noise-Contrastive-Alignment",
        "exo": "haozheji/exact-optimization",
        "beta_dpo": "junkangwu/beta-DPO",
        "sampo": "LuJunru/SamPO",
        "tdpo1": "Vance0124/Token-level-Direct-Preference-Optimization",
        "tdpo2": "Vance0124/Token-level-Direct-Preference-Optimization",
        "wpo": "wzhouad/WPO",
    },
    "tests/objectives/test_policy_gradient.py": {"value": "openai/lm-human-preferences"},
    "tests/objectives/test_reward_objectives.py": {"reward_best_of_k": "openai/lm-human-preferences"},
}
"""Numbers computed by the authors' own code."""

_TRL = "tests/verify/test_against_trl.py"
_INDEPENDENT = {
    _TRL: dict.fromkeys(
        (
            *("dpo", "robust_dpo", "ipo", "hinge", "exo_pair", "nca_pair", "sppo_hard", "aot_paired", "aot_unpaired"),
            *("apo_zero", "apo_down", "discopop", "dpo_norm", "sft", "fdpo", "ld_dpo", "wpo", "kto", "simpo", "orpo"),
        ),
        "TRL 1.16",
    ),
    "tests/verify/test_author_code.py": {"ipo": "eric-mitchell/direct-preference-optimization, ContextualAI/HALOs"},
    "tests/objectives/test_pairwise_fixtures.py": {
        "hinge": "LuJunru/SamPO",
        "slic": "ContextualAI/HALOs",
        "rdpo_length": "LuJunru/SamPO",
        "dpop": "LuJunru/SamPO",
        "rpo_nll": "LuJunru/SamPO",
        "alphapo": "TRL at 04fd120",
    },
    "tests/objectives/test_policy_gradient.py": {
        "ppo": "verl-project/verl, openai/lm-human-preferences",
        **dict.fromkeys(("value", "grpo", "dr_grpo", "dapo", "gspo", "cispo"), "verl-project/verl"),
    },
    "tests/objectives/test_reward_objectives.py": {"reward": "ContextualAI/HALOs"},
}
"""The installed TRL, and numbers computed by code of others than the authors."""


def evidence(name: str) -> list[Evidence]:
    """All that speaks for an objective, strongest first."""
    found = [
        Evidence(OPTIMUM, cases[name], f"tests/{file}::{test}")
        for file, table in (
            ("verify/test_optima.py", _OPTIMA),
            ("verify/test_identities.py", _IDENTITIES),
            ("objectives/test_policy_gradient_exact.py", _ENUMERATED),
            ("objectives/test_reward_objectives.py", _REWARD_MODELS),
        )
        for test, cases in table.items()
        if name in cases
    ]
    for kind, tables in ((PUBLISHED, _PUBLISHED), (PARITY, _INDEPENDENT)):
        found += [Evidence(kind, cases[name], file) for file, cases in tables.items() if name in cases]
    return found


def verdict(name: str) -> str:
    """``"certified"``, or ``"transcribed"`` where nothing but the reference speaks for an objective."""
    return "certified" if evidence(name) else "transcribed"
