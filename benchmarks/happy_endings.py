"""A real pretrained model and a reward that is a function: every way of using it, reward against KL.

    python benchmarks/happy_endings.py --model PATH/tinystories-656k      # about 10 minutes on two CPU cores

Best-of-n without training, RAFT (rejection sampling), RLOO, GRPO and PPO make the model's stories end happily (the
reward of ``docs/examples/happy_endings.py``). Results go to ``benchmarks/results/happy_endings.json``, the picture to
``docs/happy-endings.svg``.
"""

import argparse
import math
import sys
import tempfile
from itertools import product
from pathlib import Path

import numpy as np
import record

from prefopt import Trainer, get_algorithm
from prefopt.data import prepare_dataset
from prefopt.lab.charts import reward_chart, standalone
from prefopt.lab.measure import Estimate, Measurement, Result, Samples, Yardstick
from prefopt.models import ModelSettings, load_policy, load_tokenizer

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "docs" / "examples"))
from happy_endings import happy_ending

WHO = ("a little girl named Lily", "a boy named Tim", "a small dog named Max", "an old bird", "a big red car", "a cat")
WHAT = (
    "went to the park",
    "found a box in the garden",
    "lost a toy",
    "wanted to help a friend",
    "saw a storm coming",
    "did not want to share",
    "was all alone at home",
    "heard a loud noise",
)
N, TOKENS, BATCH = 8, 96, 8
RUNS = {
    "rejection_sampling": (1e-3, {}),
    "rloo": (5e-4, {"kl_coef": 0.02}),
    "grpo": (5e-4, {"beta": 0.02}),
    "ppo": (5e-4, {"kl_coef": 0.02, "passes": 2}),
}


def prompts() -> tuple[list[str], list[str]]:
    """Beginnings of stories to train on, and others to measure on."""
    every = [
        f"Once upon a time, there was {who}. One day, {who.split()[-1]} {what}." for who, what in product(WHO, WHAT)
    ]
    order = np.random.default_rng(0).permutation(len(every))
    shuffled = [every[i] for i in order]
    return shuffled[:32], shuffled[32:]


def best_of(samples: Samples, n: int) -> Result:
    """Best-of-n of the start itself: the best of each block of n samples, at its KL bound log n − (n − 1)/n."""
    blocks = samples.rewards.reshape(len(samples.prompts), -1, n)
    best = blocks.max(axis=2).mean(axis=1)
    kl = np.full(len(best), math.log(n) - (n - 1) / n)
    picked = blocks.argmax(axis=2)
    lengths = np.take_along_axis(samples.lengths.reshape(blocks.shape), picked[..., None], axis=2)
    return Result.of(f"best of {n}", [Measurement(best, lengths.mean(axis=(1, 2)), kl=kl)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--algorithms", nargs="+", default=list(RUNS), choices=list(RUNS))
    parser.add_argument("--out", type=Path, default=HERE / "results" / "happy_endings.json")
    parser.add_argument("--picture", type=Path, default=HERE.parent / "docs" / "happy-endings.svg")
    chosen = parser.parse_args()
    train, held_out = prompts()
    tokenizer = load_tokenizer(chosen.model)
    pair = [{"prompt": held_out[0], "chosen": " The end.", "rejected": " And then."}] * 2
    yardstick = Yardstick(
        start=load_policy(chosen.model, ModelSettings()).eval(),
        tokenizer=tokenizer,
        prompts=held_out,
        pairs=prepare_dataset(pair, "pairs", tokenizer, context=512),
        reward=happy_ending,
        k=16,
        max_new_tokens=TOKENS,
    )
    start = Result.of("start", [yardstick.of_start()])
    results = [best_of(yardstick.start_samples, n) for n in (4, 16)]
    shown = {"start": yardstick.start_samples.groups[0][0].text}
    for name in chosen.algorithms:
        rate, settings = RUNS[name]
        trainer = Trainer(
            chosen.model,
            get_algorithm(name, **settings),
            [{"prompt": prompt} for prompt in train],
            reward=happy_ending,
            generation={"n": N, "max_new_tokens": TOKENS, "batch_size": 64},
            args={
                "output_dir": tempfile.mkdtemp(),
                "learning_rate": rate,
                "max_steps": chosen.steps,
                "per_device_train_batch_size": BATCH,
                "gradient_accumulation_steps": 1,
                "save_strategy": "no",
                "logging_steps": 5,
                "use_cpu": True,
            },
        )
        trainer.train()
        measured, samples = yardstick.measure(trainer.policy, get_algorithm("sft").objective)
        results.append(Result.of(name, [measured]))
        shown[name] = samples.groups[0][0].text
    for result in (start, *results):
        kl = result.kl.mean if result.kl else 0.0
        reward = result.reward
        print(f"{result.name:20} reward {reward.mean:.3f} [{reward.low:.3f}, {reward.high:.3f}]  KL {kl:.2f}")
    write(chosen, start, results, shown, held_out)


def write(chosen: argparse.Namespace, start: Result, results: list[Result], shown: dict, held_out: list[str]) -> None:
    """The numbers and the picture."""
    rows = [
        {
            "name": one.name,
            "reward": round(one.reward.mean, 4),
            "interval": [round(one.reward.low, 4), round(one.reward.high, 4)],
            "kl": round(one.kl.mean, 3) if one.kl else 0.0,
            "length": round(one.length.mean, 1),
        }
        for one in (start, *results)
    ]
    exact = [_without_width(result) for result in results]
    chart = reward_chart(start, exact)
    chart.axes[0].set_ylabel("reward: a happy ending")
    title = "Reward against KL of a small story model, for best-of-n and for training against a function"
    chosen.picture.write_text(standalone(chart, title))
    record.write(
        chosen.out,
        f"python benchmarks/happy_endings.py --model {Path(chosen.model).name} --steps {chosen.steps}",
        f"{BATCH} prompts × {N} samples of up to {TOKENS} tokens a step; measured on "
        f"{len(held_out)} other prompts × 16",
        settings={name: {"learning_rate": RUNS[name][0], **RUNS[name][1]} for name in chosen.algorithms},
        results=rows,
        first_sample_of_the_first_prompt={"prompt": held_out[0], **shown},
    )


def _without_width(result: Result) -> Result:
    return (
        result if result.kl else Result(result.name, result.seeds, result.reward, result.length, kl=Estimate(0, 0, 0))
    )


if __name__ == "__main__":
    main()
