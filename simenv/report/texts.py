"""The report for other readers: Markdown for a repository, JSON for a script, a LaTeX table of the claims for a paper.

They say what the page says, from the same parts. The module does not know how a page looks.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from simenv.conclusions.judged import JudgedClaim
from simenv.conclusions.words import trim
from simenv.report.views import signed

MARKS = {"raised": "▲", "lowered": "▼", "negligible": "≈", "unclear": "?"}


def markdown(page: Mapping[str, Any], figures: Sequence[str]) -> str:
    """`report.md`: question, answer, grid, claims, figures by relative path, how to reproduce.

    Args:
        page: what the page's template is given (`simenv.report.page`).
        figures: names of the files in `figures/`, in the page's order.
    """
    lines = [f"# {_line(page['title'])}", "", _facts(page), ""]
    if page["warning"]:
        lines += [f"**{page['warning']}**", ""]
    for sentence in page["answer"]:
        lines += [_line(sentence), ""]
    columns, rows = page["grid"]["columns"], page["grid"]["rows"]
    if columns:
        heads = [f"{c.label}{f' ({c.gap})' if c.groups else ''} against {c.control}" for c in columns]
        lines += [_row(["", *heads]), _row(["---"] * (len(heads) + 1))]
        lines += [_row(["margin", *("–" if c.margin is None else f"±{trim(c.margin)}" for c in columns)])]
        lines += [_row([arm, *map(_cell, cells)]) for arm, cells in rows.items()]
        lines += ["", "▲ raised, ▼ lowered, ≈ negligible, ? unclear.", ""]
    if page["claims"]:
        lines += ["## Claims", ""]
        for claim in page["claims"]:
            star = "★ " if claim.primary else ""
            notes = "".join(f" {note.capitalize()}." for note in (claim.regime_note, claim.user_model_note) if note)
            lines.append(f"- {star}**{claim.verdict}**: {_line(claim.sentence)}{_line(notes)}")
        lines.append("")
    if figures:
        lines += ["## Figures", "", *(f"![{name}](figures/{name}.png)" for name in figures), ""]
    if page["command"]:
        lines += ["## Reproduce", "", f"    {_line(page['command'])}", ""]
    return "\n".join([*lines, f"{page['citation']}.", ""])


def as_json(page: Mapping[str, Any], figures: Sequence[str]) -> str:
    """`report.json`: the same as one object, with every number of the claims."""
    columns, rows = page["grid"]["columns"], page["grid"]["rows"]
    told = {
        "question": page["title"],
        "answer": page["answer"],
        "warning": page["warning"],
        "arms": page["arms"],
        "n_seeds": page["seeds"],
        "regime": page["regime"],
        "verdicts": page["counts"],
        "grid": {
            "columns": [
                {"metric": c.metric, "label": c.label, "control": c.control, "groups": c.groups, "margin": c.margin}
                for c in columns
            ],
            "rows": {arm: [None if cell is None else cell.name for cell in cells] for arm, cells in rows.items()},
        },
        "claims": [claim.to_json() for claim in page["claims"]],
        "figures": [f"figures/{name}.png" for name in figures],
        "command": page["command"],
        "citation": page["citation"],
    }
    return json.dumps(told, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def latex(claims: Sequence[JudgedClaim]) -> str:
    """`claims.tex`: a tabular of the claims, for `\\input`; needs no package."""
    lines = [
        r"\begin{tabular}{lllrrrl}",
        r"\hline",
        r"Metric & Arm & Against & Estimate & 95\,\% interval & $p$ adjusted & Verdict \\",
        r"\hline",
    ]
    for claim in claims:
        cells = [
            _tex(claim.metric or claim.label or claim.name),
            _tex(claim.arm),
            _tex(claim.control),
            _math(claim.estimate),
            "--" if claim.ci_low is None else f"[{_math(claim.ci_low)}, {_math(claim.ci_high)}]",
            "--" if claim.p_adjusted is None else f"{claim.p_adjusted:.3f}",
            claim.verdict + (r"$^\star$" if claim.primary else ""),
        ]
        lines.append(" & ".join(cells) + r" \\")
    return "\n".join([*lines, r"\hline", r"\end{tabular}", ""])


def _facts(page: Mapping[str, Any]) -> str:
    parts = [f"Arms {', '.join(page['arms'])}"] if page["arms"] else []
    parts += [f"{page['seeds']} seed{'' if page['seeds'] == 1 else 's'}"] if page["seeds"] else []
    parts += [f"consumption regime {page['regime']}"] if page["regime"] else []
    return "; ".join([*parts, f"run {page['run']}"]) + "."


def _cell(claim: JudgedClaim | None) -> str:
    return "–" if claim is None else f"{MARKS[claim.verdict]} {signed(claim.estimate)}{' ★' if claim.primary else ''}"


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(_line(cell).replace("|", "\\|") for cell in cells) + " |"


def _line(text: str) -> str:
    """One line, in which nothing is markup but what is meant."""
    return re.sub(r"([<>\[\]`])", r"\\\1", " ".join(str(text).split()))


def _math(value: float | None) -> str:
    return "--" if value is None else f"${value:+.3f}$"


def _tex(text: str) -> str:
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    return "".join(special.get(c, f"\\{c}" if c in "&%$#_{}" else c) for c in text)
