"""What the two reports share: the HTML page around their contents, which asks nothing of the network, and its files."""

import json
from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path
from typing import Any


def write_files(out: Path, numbers: Mapping[str, Any], html: str) -> Path:
    """Write ``report.json`` and ``report.html`` into a folder, which is made if it is not there.

    Returns:
        The path of the HTML file.
    """
    out.mkdir(parents=True, exist_ok=True)
    (out / "report.json").write_text(json.dumps(numbers, indent=2) + "\n", encoding="utf-8")
    path = out / "report.html"
    path.write_text(html, encoding="utf-8")
    return path


def document(title: str, lead: str, warnings: Iterable[str], body: str, facts: Mapping[str, str]) -> str:
    """The HTML file.

    Args:
        title: text.
        lead: the result in a sentence, as HTML.
        warnings: lines of text, which come before the rest.
        body: HTML.
        facts: what was evaluated on what, as text.
    """
    worries = "".join(f'<p class="warning"><b>Warning.</b> {escape(_sentence(line))}</p>\n' for line in warnings)
    named = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in facts.items())
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n"
        f'<h1>{escape(title)}</h1>\n<p class="lead">{lead}</p>\n{worries}{body}'
        f"<h2>What was evaluated</h2>\n<dl>{named}</dl>\n</main>\n</body>\n</html>\n"
    )


def _sentence(line: str) -> str:
    return line[:1].upper() + line[1:]


STYLE = """:root { --paper: #fefefe; --ink: #1b1b1c; --soft: #5c5c61; --rule: #dcdce0; --mark: #0067a5; --warn: #8a3b00;
  --warn-paper: #fff4ea; color-scheme: light dark; }
@media (prefers-color-scheme: dark) { :root { --paper: #17181a; --ink: #ececee; --soft: #a7a8ad; --rule: #3a3b40;
  --mark: #4fa8df; --warn: #f5b27a; --warn-paper: #33261a; } }
body { margin: 0; background: var(--paper); color: var(--ink); font: 1.0625rem/1.55 system-ui, -apple-system,
  "Segoe UI", sans-serif; }
main { max-width: 46rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; overflow-x: auto; }
h1 { font-size: clamp(1.6rem, 5vw, 2.2rem); line-height: 1.15; margin: 0 0 0.75rem; }
h2 { font-size: 1.25rem; margin: 2.5rem 0 0.75rem; }
.lead { font-size: 1.15rem; }
.warning { background: var(--warn-paper); color: var(--warn); padding: 0.6rem 0.9rem; border-radius: 0.4rem; }
figure { margin: 0 0 1.5rem; }
figcaption, .soft { color: var(--soft); font-size: 0.875rem; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: 0.95rem; }
th, td { text-align: left; padding: 0.35rem 0.75rem 0.35rem 0; border-bottom: 1px solid var(--rule); font-weight: 400; }
thead th { font-size: 0.875rem; color: var(--soft); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 0.35rem 1.25rem; margin: 0; font-size: 0.95rem; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
.number { white-space: nowrap; }
.plot { width: 100%; max-width: 27rem; height: auto; display: block; margin: 0 0 0.5rem; }
.bar { width: 7.5rem; height: 0.9rem; display: block; }
svg text { fill: var(--soft); font: 12px system-ui, -apple-system, "Segoe UI", sans-serif; }
svg .rule { stroke: var(--rule); } svg .ideal { stroke: var(--soft); stroke-dasharray: 4 3; }
svg .range { stroke: var(--mark); stroke-width: 2; } svg .dot { fill: var(--mark); stroke: var(--paper); }
svg .count { fill: var(--mark); opacity: 0.35; }
.said { margin: 0 0 1.75rem; table-layout: fixed; }
.said th, .said td { vertical-align: top; overflow-wrap: anywhere; white-space: pre-wrap; }
.said th:first-child { width: 4rem; } .said th:last-child { width: 4.5rem; }
"""
