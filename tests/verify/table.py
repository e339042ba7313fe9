"""Write `docs/certification.md`: ``python tests/verify/table.py`` from the repository's root.

Runs the checks of every objective and its mutants, on all cores, and lists what speaks for it. With names, only they
and objectives that the page lacks are run; the rows of the others stay as they are.
"""

import re
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from os import cpu_count
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

import torch
from equivalent import EQUIVALENT
from mutation import survivors
from references import reference

from prefopt import objectives
from prefopt.core.evidence import CLASSES, verdict
from prefopt.core.registry import REGISTRY
from prefopt.verify.contract import CONTRACT, finite
from prefopt.verify.mathematics import check_gradient, check_value
from prefopt.verify.search import Trial, corners, search, trial

PAGE = "docs/certification.md"
EXAMPLES = 25

HEAD = """# Certification

Written by `python tests/verify/table.py`; do not edit.

Every registered objective is compared, value and gradient, with its equation in scalar arithmetic of 50 digits
(`tests/reference`), put through the contract (padding, row order, micro-batches, undeclared inputs, purity, shapes) and
required to be finite for margins up to 1e4. What else speaks for it is listed by class, strongest first:

1. **optimum or identity**: the minimiser of its population loss on a small policy is the closed form, to 1e-8, its
   expected gradient on its own samples is the exact policy gradient, or an identity holds that a wrong loss would miss;
2. **authors' code**: numbers computed by running the code that its authors published;
3. **independent implementation**: TRL computes the same loss and gradient, or numbers computed by code of others agree.

An objective with any of these is *certified*; one with none is *transcribed*: its code and its reference agree, and
both were written from the same page.

*Mutants* are small wrong versions of the loss: how many the checks tell from it, of those that are not argued to be the
same loss; the loss itself survives them all. `make certify` runs all checks with at least 1,000 inputs a property, the
same at every run, `make certify PREFOPT_CERTIFY=random` with others.

"""


def column(name: str) -> dict[str, bool]:
    """Whether each group of checks passes."""
    entry = REGISTRY[name]
    mathematics = reference(entry.cls.name)

    def passes(check, **options) -> bool:
        made = lambda source: trial(source, entry.cls, entry.fixed, **options)  # noqa: E731
        return bool(search("", check, made, corners(entry.cls, entry.fixed, **options), examples=EXAMPLES))

    def finite_both(one: Trial):
        return finite(one, torch.float32).worse(finite(one, torch.bfloat16))

    return {
        "value": all(
            passes(lambda one, d=dtype: check_value(mathematics, one, d)) for dtype in (torch.float64, torch.float32)
        ),
        "gradient": passes(lambda one: check_gradient(mathematics, one), longest=6),
        "contract": all(passes(check, tokens=key == "padding" or None) for key, check in CONTRACT.items()),
        "finite": passes(finite_both, regime="extreme") and passes(finite_both, regime="certain"),
    }


def mutants_of(name: str) -> tuple[int, int, list[str]]:
    """How many were killed, of how many that are not argued to be equivalent, and the survivors among these."""
    known = EQUIVALENT.get(name, {})
    results = [(text, survivor) for text, survivor in survivors(name) if text not in known]
    alive = [text for text, survivor in results if survivor]
    return len(results) - len(alive), len(results), alive


Row = tuple[list[str], str, list[str]]
"""Marks, mutants killed, and survivors of one objective."""


def row(name: str) -> Row:
    """Run everything for one objective."""
    torch.set_num_threads(1)
    objectives.load()
    began = time.perf_counter()
    found = _row(name)
    lines = "\n    ".join([f"{name}: {found[1]}, {time.perf_counter() - began:.0f} s", *found[2]])
    print(lines, file=sys.stderr, flush=True)
    return found


def _row(name: str) -> Row:
    marks = ["✓" if ok else "✗" for ok in column(name).values()]
    if REGISTRY[name].fixed:
        return marks, "as its base", []
    try:
        killed, tried, alive = mutants_of(name)
    except AssertionError as error:  # the others are not lost for it
        return marks, "not counted", [f"- `{name}`, not counted: {error}"]
    return marks, f"{killed} of {tried}" if tried else "made of others", [f"- `{name}`, {text}" for text in alive]


def on_the_page() -> dict[str, Row]:
    """The rows as they were written last."""
    page = Path(PAGE).read_text()
    survivors_ = page.partition("## Survivors")[2].partition("\n## ")[0].splitlines()
    found = {}
    for line in page.splitlines():
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        if len(cells) == 8 and cells[0].startswith("`"):
            name = cells[0].strip("`")
            found[name] = cells[2:6], cells[6], [one for one in survivors_ if one.startswith(f"- `{name}`,")]
    return found


def in_parallel(names: Sequence[str]) -> dict[str, Row]:
    """The rows of objectives, each made by one process on one core."""
    began = time.perf_counter()
    with ProcessPoolExecutor(cpu_count(), mp_context=get_context("spawn")) as pool:
        found = dict(zip(names, pool.map(row, names), strict=True))
    print(f"{len(names)} objectives, {(time.perf_counter() - began) / 60:.0f} minutes", file=sys.stderr)
    return found


def main(asked: list[str]) -> None:
    names = objectives.names()
    if unknown := set(asked) - set(names):
        raise SystemExit(f"no objective is called {', '.join(sorted(unknown))}.")
    known = {name: found for name, found in on_the_page().items() if name not in asked} if asked else {}
    rows = known | in_parallel([name for name in names if name not in known])
    rows = {name: rows[name] for name in names}
    lines = ["| objective | arXiv | value | gradient | contract | finite | mutants killed | evidence |"]
    lines.append("| --- " * 8 + "|")
    for name, (marks, mutants, _) in rows.items():
        evidence = REGISTRY[name].evidence
        kinds = [kind for kind in CLASSES if any(one.kind == kind for one in evidence)]
        classes = f"{verdict(evidence)}: {', '.join(kinds)}" if kinds else verdict(evidence)
        arxiv = REGISTRY[name].cls.about.arxiv or "—"
        lines.append(f"| `{name}` | {arxiv} | {' | '.join(marks)} | {mutants} | {classes} |")
    counts = [re.fullmatch(r"(\d+) of (\d+)", mutants) for _, mutants, _ in rows.values()]
    killed, tried = (sum(int(count[i]) for count in counts if count) for i in (1, 2))
    argued = sum(len(texts) for texts in EQUIVALENT.values())
    rate = 100 * killed / max(tried, 1)
    total = f"\n{killed} of {tried} mutants are killed ({rate:.1f} %); {argued} more are the same loss.\n"
    open_ = [survivor for _, _, survivors_ in rows.values() for survivor in survivors_]
    alive = "\n## Survivors\n\n" + ("\n".join(open_) or "None.") + "\n"
    Path(PAGE).write_text(HEAD + "\n".join(lines) + "\n" + total + alive + arguments() + details(names))


def details(names: list[str]) -> str:
    parts = ["\n## What speaks for each\n"]
    for name in names:
        parts.append(f"\n**`{name}`**\n")
        found = REGISTRY[name].evidence
        parts += [f"- {one.kind}: {one.what} (`tests/{one.test}`)" for one in found]
        if not found:
            parts.append("- its reference alone")
    return "\n".join(parts) + "\n"


def arguments() -> str:
    parts = ["\n## Mutants that are the same loss\n"]
    for name, mutants in sorted(EQUIVALENT.items()):
        parts += [f"- `{name}`, {text}: {reason}." for text, reason in mutants.items()]
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    main(sys.argv[1:])
