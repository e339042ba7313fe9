"""The commands."""

from pathlib import Path
from typing import Annotated

import typer

from prefopt.cli.options import Said, said_about
from prefopt.core.version import VERSION
from prefopt.training.spec import PlanSpec, RunFile

app = typer.Typer(
    name="prefopt",
    help="Learning from preferences: every algorithm behind one trainer.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Model = Annotated[str, typer.Option("--model", "-m", help="Path or hub id of a model or adapter.")]
FREE_FLAGS = {"allow_extra_args": True, "ignore_unknown_options": True}
ALGORITHM = ("algorithm", "Name of the algorithm, or a weighted sum; `prefopt algorithms` lists the names.")
PLANNED = ("algorithm", "Name of the algorithm, or the YAML file of a run or a pipeline.")
DATA = ("data", "Path or hub id of the data; by default the training data of the YAML file.")
RESULT = ("out", "resume")
"""Arguments about the result of a run, which a plan has not."""


def _version(show: bool | None) -> None:
    if show:
        print(f"prefopt {VERSION}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool | None, typer.Option("--version", callback=_version, is_eager=True, help="Show it.")
    ] = None,
) -> None: ...


@app.command()
def algorithms() -> None:
    """List all algorithms with their data, whether they need a reference, and their paper."""
    import shutil

    from prefopt.algorithms.listing import list_algorithms

    # Titles are cut to the terminal's width; in a pipe or a file they are whole.
    for line in list_algorithms(shutil.get_terminal_size(fallback=(1000, 24)).columns):
        print(line)


@app.command()
def explain(name: Annotated[str, typer.Argument(help="An algorithm, as `prefopt algorithms` lists them.")]) -> None:
    """Print formula, data, evidence, recipe, hyperparameters with bounds, and where implementations differ."""
    from prefopt.algorithms.listing import explain as text

    print(text(name))


@app.command(context_settings=FREE_FLAGS)
@said_about(RunFile, ALGORITHM, which=lambda name: name != "algorithm")
def train(said: Said) -> None:
    """Train. Further flags are hyperparameters of the algorithm (--beta 0.2), training arguments
    (--learning-rate 5e-6), data settings (--max-length 512) or generation settings (--n 8)."""
    from prefopt.cli.train import run_training

    run_training(said)


@app.command(context_settings=FREE_FLAGS)
@said_about(RunFile, PLANNED, which=lambda name: name not in ("algorithm", "eval_dataset", *RESULT), own=PlanSpec)
def plan(said: Said) -> None:
    """Say what memory a run will need, which graphics cards it fits, and what to change for the others.

    It takes the flags of `prefopt train`, or its YAML file, or that of a pipeline, whose stages it plans one by one."""
    from prefopt.cli.plan import run_plan

    run_plan(said)


@app.command()
def run(
    file: Annotated[str, typer.Argument(help="YAML file with named stages, such as sft, reward, ppo, evaluation.")],
    out: Annotated[str | None, typer.Option("--out", "-o", help="Folder for the results of all stages.")] = None,
    from_: Annotated[
        str | None, typer.Option("--from", help="Run this stage and those after it anew; earlier results are kept.")
    ] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="stage.section.key=value, any key.")] = None,
    check: Annotated[bool, typer.Option("--check", help="Validate the file, say what would run, and stop.")] = False,
) -> None:
    """Run a pipeline: each stage's result is the next one's input. The same command again goes on where it stopped."""
    from prefopt.cli.run import run_file

    run_file(file, out, from_, set_ or [], check)


@app.command()
def generate(
    model: Model,
    prompt: Annotated[
        list[str] | None, typer.Option("--prompt", "-p", help="May be repeated; else lines of stdin.")
    ] = None,
    n: Annotated[int, typer.Option(help="Completions per prompt.")] = 1,
    max_new_tokens: Annotated[int, typer.Option(help="Tokens per completion at the most.")] = 256,
    temperature: Annotated[float, typer.Option(help="0 takes the most likely token.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Of the sampling.")] = 0,
    raw: Annotated[
        bool, typer.Option("--raw", help="Give prompts to the model as they are, without a template.")
    ] = False,
    prerendered: Annotated[
        bool, typer.Option("--prerendered", help="The same, for prompts that hold the template's tokens already.")
    ] = False,
) -> None:
    """Sample completions from a model or an adapter."""
    from prefopt.cli.talk import run_generate

    options = {"n": n, "max_new_tokens": max_new_tokens, "temperature": temperature}
    run_generate(model, prompt, raw, seed, prerendered=prerendered, **options)


@app.command()
def chat(
    model: Model,
    system: Annotated[str | None, typer.Option(help="System message.")] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Tokens per answer at the most.")] = 256,
    temperature: Annotated[float, typer.Option(help="0 takes the most likely token.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Of the sampling.")] = 0,
) -> None:
    """Talk to a model or an adapter. An empty line or Ctrl-D ends it; /new starts over."""
    from prefopt.cli.talk import run_chat

    run_chat(model, system, seed, max_new_tokens=max_new_tokens, temperature=temperature)


@app.command()
def export(
    adapter: Annotated[str, typer.Argument(help="Folder of a trained adapter.")],
    out: Annotated[str, typer.Option("--out", "-o", help="Folder for the merged model.")],
    dtype: Annotated[str, typer.Option(help="bfloat16, float16 or float32.")] = "bfloat16",
) -> None:
    """Merge an adapter into its base, write a plain model, and compare its log-probs with the trained one's."""
    from prefopt.cli.export import run_export

    run_export(adapter, out, dtype)


@app.command(context_settings=FREE_FLAGS)
@said_about(RunFile, DATA, which=lambda name: name in ("algorithm", "model", "eval_dataset", "trust_remote_code"))
def check(said: Said) -> None:
    """Say what of a dataset an algorithm (dpo, unless --algorithm names another) would keep, cut and drop, and show the
    first example as it is tokenized.

    Further flags are data settings (--max-length 512) or hyperparameters; the YAML file of a run will do."""
    from prefopt.cli.check import run_check

    run_check(said)


@app.command()
def evaluate(
    model: Annotated[str, typer.Argument(help="Path or hub id of a policy or a reward model, whole or an adapter.")],
    data: Annotated[
        str, typer.Option("--data", "-d", help="Held-out prompts, for a reward model pairs: path or hub id.")
    ],
    out: Annotated[str, typer.Option("--out", "-o", help="Folder for the report.")],
    reward: Annotated[list[str] | None, typer.Option(help="What judges a policy, as in `prefopt train`.")] = None,
    against: Annotated[
        str | None, typer.Option(help="The model that a policy started from: gain, win rate and KL.")
    ] = None,
    n: Annotated[int | None, typer.Option(help="Completions per prompt; default 4.")] = None,
    max_new_tokens: Annotated[int | None, typer.Option(help="Tokens per completion at the most; default 256.")] = None,
    temperature: Annotated[float | None, typer.Option(help="Of the sampling; default 1.")] = None,
    seed: Annotated[int, typer.Option(help="Of the sampling.")] = 0,
    split: Annotated[str, typer.Option(help="Where the data has several.")] = "train",
    max_length: Annotated[int | None, typer.Option(help="Tokens of prompt and completion together.")] = None,
    truncation: Annotated[str, typer.Option(help="drop, keep-start or keep-end.")] = "drop",
    trust_remote_code: Annotated[bool, typer.Option(help="Run code that comes with the model.")] = False,
) -> None:
    """Report on a policy under a reward (with --against: gain, win rate, KL), or on a reward model on held-out pairs
    (accuracy by length and margin, calibration, love of length)."""
    from prefopt.cli.evaluate import run_evaluate

    run_evaluate(
        reward or [],
        {"n": n, "max_new_tokens": max_new_tokens, "temperature": temperature},
        model=model,
        data=data,
        out=out,
        against=against,
        seed=seed,
        settings={"split": split, "max_length": max_length, "truncation": truncation},
        trust_remote_code=trust_remote_code,
    )


@app.command()
def verify(
    target: Annotated[str, typer.Argument(help="FILE.py:NAME or module:NAME, a function or an Objective.")] = "",
    as_: Annotated[str | None, typer.Option("--as", help="The loss that a function is meant to be.")] = None,
    against: Annotated[str | None, typer.Option(help="trl: compare the installed TRL, one row per loss.")] = None,
) -> None:
    """Is this loss that loss? Checks anyone's function of log-probs, an Objective, or the losses of another library."""
    from prefopt.core.errors import UsageError
    from prefopt.verify import main_verify

    if not target and against is None:
        raise UsageError("verify what? Give FILE.py:NAME with --as LOSS, module:Objective, or --against trl.")
    raise typer.Exit(main_verify(target, as_, against))


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the report.")] = Path("prefopt-demo"),
    full: Annotated[bool, typer.Option("--full", help="Three training seeds, with intervals over them.")] = False,
    overoptimization: Annotated[
        bool, typer.Option("--overoptimization", help="Instead: what optimizing against a reward model does.")
    ] = False,
) -> None:
    """Train every algorithm on an embedded world, compare them, and write a report."""
    from prefopt.lab.demo import run_demo
    from prefopt.lab.overoptimization import run_overoptimization

    if overoptimization:
        run_overoptimization(out)
    else:
        run_demo(out, full=full)
