"""The answer of `verify`: a table of checks, the worst error, the smallest counterexample, and a guess at the cause."""

from collections.abc import Iterable
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from prefopt.verify.results import Finding


@dataclass(frozen=True)
class Report:
    """What was found about one loss.

    Attributes:
        subject: what was verified.
        claim: what it is held against.
        findings: one for each check.
        cause: a mistake that explains the difference, or an empty string.
        unproved: what remains to be shown if every check passed, and how; an empty string if nothing does.
    """

    subject: str
    claim: str
    findings: tuple[Finding, ...]
    cause: str = ""
    unproved: str = ""

    @property
    def passed(self) -> bool:
        """Whether every check held."""
        return all(finding.passed for finding in self.findings)

    def __bool__(self) -> bool:
        return self.passed

    @property
    def counterexample(self) -> str:
        """The smallest input on which the first failing check with one fails, as text; empty if all passed."""
        return next((finding.counterexample for finding in self.findings if finding.counterexample), "")

    def __str__(self) -> str:
        console = Console(width=110, no_color=True, highlight=False)
        with console.capture() as captured:
            console.print(self)
        return captured.get()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        verdict = "is" if self.passed else "is not"
        yield Text(f"{self.subject} {verdict} {self.claim}", style="bold green" if self.passed else "bold red")
        yield _table(self.findings)
        if self.cause:
            yield Text(f"Likely cause: {self.cause}.", style="bold")
        details: dict[str, list[str]] = {}
        for finding in self.findings:
            if not finding.passed:
                details.setdefault(finding.detail, []).append(finding.check)
        first, *others = [f"{', '.join(checks)}: {detail}" for detail, checks in details.items()] or [""]
        if first:
            yield Text(first)
        if self.counterexample:
            yield Text("Smallest counterexample:")
            yield Text(_indented(self.counterexample))
        for other in others:
            yield Text(other)
        if self.passed and self.unproved:
            yield Text(self.unproved)


def _indented(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.splitlines())


def _table(findings: Iterable[Finding]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("")
    table.add_column("check")
    table.add_column("worst error", justify="right")
    table.add_column("batches", justify="right")
    for finding in findings:
        mark = Text("✓", style="green") if finding.passed else Text("✗", style="red")
        # A check of settings rather than of batches has neither.
        worst, tried = (f"{finding.worst:.1e}" if finding.worst else ""), (str(finding.tried) if finding.tried else "")
        table.add_row(mark, finding.check, worst, tried)
    return table
