"""The report: figures and one self-contained page, rebuilt from a run directory alone.

``python -m simenv.report DIR`` writes ``DIR/figures/*.png`` and ``DIR/report.html``; with several directories it writes
a page that compares them. The page carries its images and style, needs no network; the same
directory gives the same bytes. The module does not know how a run was made or how a figure is drawn.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2
import polars as pl
from markupsafe import Markup

from simenv.conclusions.answer import answer, grid
from simenv.conclusions.judged import VERDICTS
from simenv.conclusions.words import trim, undecidable
from simenv.errors import DataError, RunDirectoryError, SimenvError
from simenv.figures import plot_against_option, plot_runs
from simenv.figures.style import png_bytes, same_styles, sort_arms
from simenv.files import write_whole
from simenv.report import side_by_side, views
from simenv.report import texts as texts_of
from simenv.report.explore import as_json, explore
from simenv.report.figures import SPECS, Drawn, draw_figures
from simenv.report.run_data import RunData, read_run
from simenv.report.side_by_side import Option

COMPARED_METRICS = {
    "arp_pct": "Popularity percentile of what is shown",
    "gini": "Gini of exposure",
    "true_utility": "Utility of what was shown",
    "jaccard": "Overlap between users",
}
OWN_SECTIONS = (
    "question",
    "command",
    "gates",
    "llm",
    "recommender_llm",
    "same_model",
)  # of the run card, shown outside its table
MOST_OPTIONS = 8  # columns of differing options
MOST_DRAWN = 4  # runs whose own figures are set side by side
TEMPLATES = Path(__file__).parent / "templates"
_NOTHING = "'none'"
LEADS = ("amplification", "popularity")  # figures that may stand on the first screen, where an experiment drew none


def build(folder: Path | str, *, svg: bool = False) -> Path:
    """Draw the figures of a run directory and write its report; returns the path of `report.html`.

    Beside the page lie `report.md`, `report.json` and, where there are claims, `claims.tex`.

    Args:
        folder: the run directory.
        svg: write the report's figures as `figures/*.svg` too.

    Raises:
        RunDirectoryError: if `folder` is not a run directory, or a file in it is damaged or cannot be written.
    """
    run = read_run(folder)
    drawn = list(draw_figures(run, svg=svg))
    page = run.folder / "report.html"
    images: dict[Path, bytes | None] = {run.folder / "figures" / f"{spec.name}.png": None for spec in SPECS}
    images |= {run.folder / "figures" / f"{d.spec.name}.png": d.png for d in drawn}
    images |= {run.folder / "figures" / f"{d.spec.name}.svg": d.svg for d in drawn if d.svg is not None}
    shown = _report_page(run, drawn)
    own = [path.stem for path in sorted((run.folder / "figures").glob("*.json"))]
    names = own + [path.stem for path, png in images.items() if png is not None and path.suffix == ".png"]
    scripts = ["explore.js"] * bool(shown["data"]) + ["sort.js"] * bool(shown["tables"])
    texts: dict[Path, str | None] = {
        page: render("report.html.j2", shown, scripts=scripts),
        run.folder / "report.md": texts_of.markdown(shown, names),
        run.folder / "report.json": texts_of.as_json(shown, names),
        run.folder / "claims.tex": texts_of.latex(run.claims) if run.claims else None,
    }
    write_files(images | {path: None if text is None else text.encode() for path, text in texts.items()})
    return page


def compare(folders: Sequence[Path | str], out: Path | str | None = None) -> Path:
    """Write a page that sets several runs side by side: claims joined, key metrics overlaid, figures in pairs.

    Args:
        folders: two or more run directories.
        out: the page; default `compare.html` in the first directory.

    Raises:
        RunDirectoryError: if one of them is not a run directory, or the page cannot be written.
    """
    runs = dict(zip(_distinct_names(folders), [read_run(folder) for folder in folders], strict=True))
    page = Path(out) if out is not None else Path(folders[0]) / "compare.html"
    write_files({page: render("compare.html.j2", _compare_page(runs, page.parent), scripts=["sort.js"]).encode()})
    return page


def build_folder(folder: Path | str) -> Path:
    """Write `leaderboard.html` over all finished runs of a folder, a sweep's for instance, and `compare.html` with the
    option in which they differ as an axis; returns the path of `leaderboard.html`.

    Raises:
        RunDirectoryError: the folder has no finished run, one is damaged, or a page cannot be written.
    """
    folder = Path(folder)
    runs = side_by_side.read_folder(folder)
    options = side_by_side.differing(runs)[:MOST_OPTIONS]
    several = len(runs) > 1
    shown = {
        "title": f"Runs of {folder.resolve().name}",
        "n_runs": len(runs),
        "table": _linked(side_by_side.leaderboard(runs, options), runs, folder),
        "compared": "compare.html" if several else None,
    }
    page = folder / "leaderboard.html"
    pages: dict[Path, bytes | None] = {page: render("leaderboard.html.j2", shown, scripts=["sort.js"]).encode()}
    if several:
        compared = _compare_page(runs, folder)
        pages[folder / "compare.html"] = render("compare.html.j2", compared, scripts=["sort.js"]).encode()
    write_files(pages)
    return page


def _linked(table: dict[str, Any], runs: Mapping[str, RunData], beside: Path) -> dict[str, Any]:
    """The table with each row's way to the run's own page."""
    for row in table["rows"]:
        own = runs[row["run"]].folder / "report.html"
        row["href"] = quote(Path(os.path.relpath(own, beside)).as_posix()) if own.is_file() else None
    return table


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="simenv report", description="Rebuild or compare reports of runs.")
    parser.add_argument(
        "folders",
        nargs="+",
        type=Path,
        metavar="DIR",
        help="run directory; several are compared; a folder of runs, such as a sweep's, is one, too",
    )
    parser.add_argument("--out", type=Path, help="where to write the comparison (default: FIRST_DIR/compare.html)")
    parser.add_argument("--svg", action="store_true", help="figures of one run as figures/*.svg, too")
    options = parser.parse_args(argv)
    try:
        if len(options.folders) > 1:
            page = compare(options.folders, options.out)
        elif options.out is not None:
            raise RunDirectoryError("--out is for a comparison; expected two or more run directories with it")
        elif options.folders[0].is_dir() and not (options.folders[0] / "run_card.json").is_file():
            page = build_folder(options.folders[0])
        else:
            page = build(options.folders[0], svg=options.svg)
    except SimenvError as error:
        if os.environ.get("SIMENV_DEBUG") == "1":
            raise
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(page)
    return 0


# -- pages ----------------------------------------------------------------------------------------------------


def _report_page(run: RunData, drawn: Sequence[Drawn]) -> dict[str, Any]:
    """Everything the template of one run shows."""
    card = run.card
    claims = run.claims or []
    columns, rows = grid(claims)
    own = _own_figures(run)
    figures = {d.spec.name: _shown(d) for d in drawn if d.png is not None}
    first = next((figures.pop(name) for name in LEADS if name in figures), None)
    lead = own.pop(0) if own else first
    rest = [*own, *([first] if first is not None and lead is not first else []), *figures.values()]
    return {
        "title": card.get("question") or f"Run {run.name}",
        "run": run.name,
        "regime": run.regime,
        "played": run.metrics is not None,
        "seeds": run.n_seeds or len(card.get("seeds") or []),
        "arms": sort_arms(run.arms),
        "evaluated": run.claims is not None,
        "primary": [claim for claim in claims if claim.primary],
        "kinds": views.by_kind([claim for claim in claims if not claim.primary]),
        "counts": {verdict: sum(claim.verdict == verdict for claim in claims) for verdict in VERDICTS},
        "regime_flips": sum(claim.regime_status == "flips" for claim in claims),
        "user_model_flips": sum(claim.user_model_status == "flips" for claim in claims),
        "elsewhere": views.elsewhere(claims, run),
        "warning": undecidable(run.n_seeds) if run.claims and run.metrics is not None else None,
        "answer": answer(claims, run.metrics, n_seeds=run.n_seeds),
        "grid": {"columns": columns, "rows": rows},
        "anchors": {claim.name: f"claim-{place}" for place, claim in enumerate(claims)},
        "marks": texts_of.MARKS,
        "lead": lead,
        "flips": sum(claim.flips for claim in claims),
        "claims": claims,
        "regimes": list(run.regimes),
        "user_models": list(run.user_models),
        "data": explore(run),
        "figures": rest,
        "not_drawn": []
        if run.metrics is None
        else [{"title": d.spec.title, "reason": d.reason} for d in drawn if d.png is None],
        "most_shown": views.most_shown(run),
        "tables": [views.table_view(name, frame) for name, frame in run.tables.items()],
        "gates": views.gates(card),
        "llm": {
            side: views.card_rows(card[name])
            for side, name in (("users", "llm"), ("recommenders", "recommender_llm"))
            if isinstance(card.get(name), Mapping)
        },
        "same_model": card.get("same_model") is True,
        "card": views.card_rows({key: value for key, value in card.items() if key not in OWN_SECTIONS}),
        "command": views.command(card),
        "rebuild": f"python -m simenv.report {shlex.quote(run.name)}",
        "citation": views.citation(run),
        "config": run.config,
        "links": views.links(run),
    }


def _shown(drawn: Drawn) -> dict[str, str]:
    assert drawn.png is not None
    return views.figure_view(drawn.spec.title, drawn.spec.caption, drawn.spec.alt, drawn.png)


def _own_figures(run: RunData) -> list[dict[str, str]]:
    """What the experiment drew itself: every `figures/NAME.png` with a `NAME.json` of title and caption beside it.

    Raises:
        RunDirectoryError: such a pair is damaged.
    """
    found = []
    for path in sorted((run.folder / "figures").glob("*.json")):
        try:
            words = json.loads(path.read_text(encoding="utf-8"))
            png = path.with_suffix(".png").read_bytes()
            found.append(views.figure_view(words["title"], words["caption"], f"Figure: {words['title']}.", png))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RunDirectoryError(f"{path}: damaged ({error}); expected a title, a caption and a picture") from error
    return found


def _compare_page(runs: Mapping[str, RunData], beside: Path) -> dict[str, Any]:
    """Everything the comparison shows, on a page in the folder `beside`."""
    options = side_by_side.differing(runs)
    overlays, axis = [], []
    with same_styles(arm for run in runs.values() for arm in run.arms):
        for metric, title in COMPARED_METRICS.items():
            frames = {name: run.metrics for name, run in runs.items() if run.metrics is not None}
            held = {name: frame for name, frame in frames.items() if (frame["metric"] == metric).any()}
            if options and len(held) > 1:
                axis += _along(options[0], held, metric, title)
            if 1 < len(held) <= MOST_DRAWN:
                caption = (
                    "One panel per arm in mode loop, one line per run; bands are 95 % intervals over each run's seeds. "
                    "Runs share luck only where they share seeds, data set and sizes."
                )
                alt = f"Line chart: {title}, one line per run."
                overlays.append(views.figure_view(title, caption, alt, png_bytes(plot_runs(held, metric))))
    pictures: dict[str, dict[str, bytes]] = {}
    for name, run in runs.items() if len(runs) <= MOST_DRAWN else ():
        for drawn in draw_figures(run):
            if drawn.png is not None:
                pictures.setdefault(drawn.spec.name, {})[name] = drawn.png
    pairs = [
        {
            "title": spec.title,
            "caption": spec.caption,
            "figures": [
                views.figure_view(name, "", f"{spec.alt} Run {name}.", png) for name, png in pictures[spec.name].items()
            ],
        }
        for spec in SPECS
        if spec.name in pictures
    ]
    return {
        "title": "Comparison of runs",
        "runs": [views.run_view(name, run) for name, run in runs.items()],
        "names": list(runs),
        "claims": views.joined_claims(runs),
        "options": options,
        "axis": axis,
        "table": _linked(side_by_side.leaderboard(runs, options[:MOST_OPTIONS]), runs, beside),
        "overlays": overlays,
        "pairs": pairs,
    }


def _along(option: Option, held: Mapping[str, pl.DataFrame], metric: str, title: str) -> list[dict[str, str]]:
    """The figure of a metric along the option; none where fewer than two of its values were measured."""
    points = [(option.values[name] if option.numeric else option.text(name), frame) for name, frame in held.items()]
    try:
        png = png_bytes(plot_against_option(points, metric, option.name))
    except DataError:
        return []
    caption = (
        f"Left: {title[0].lower()}{title[1:]} in the last round of mode loop against {option.name}, one line per arm. "
        "Right, where the runs have controls: what feedback added to it since round 0 beyond the primary control. "
        "Points are means over seeds, bands 95 % t intervals."
    )
    return [views.figure_view(title, caption, f"Line chart: {title} against {option.name}, one line per arm.", png)]


def render(template: str, page: Mapping[str, Any], scripts: Sequence[str] = ()) -> str:
    """A page whose policy allows its own style and scripts by their hashes, pictures inside it, and nothing else."""
    style, *sources = (Markup((TEMPLATES / name).read_text(encoding="utf-8")) for name in ("page.css", *scripts))
    policy = [
        "default-src 'none'",
        "img-src data:",
        f"style-src {_hashed(style)}",
        f"script-src {' '.join(map(_hashed, sources)) or _NOTHING}",
        "base-uri 'none'",
        "form-action 'none'",
    ]
    data = page.get("data")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = views.number
    environment.filters["signed"] = views.signed
    environment.filters["trim_number"] = trim
    return environment.get_template(template).render(
        page,
        style=style,
        scripts=sources,
        policy="; ".join(policy),
        data_json=Markup(as_json(data)) if data else None,
    )


def _hashed(source: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()}'"


def write_files(files: Mapping[Path, bytes | None]) -> None:
    """Write files; one of None is removed, lest it stay from an earlier state of the run."""
    path = Path()
    try:
        for path, data in files.items():
            path.parent.mkdir(exist_ok=True)
            if data is None:
                path.unlink(missing_ok=True)
            else:
                write_whole(path, data)
    except OSError as error:
        raise RunDirectoryError(f"{error.filename or path}: cannot be written ({error.strerror})") from error


def _distinct_names(folders: Sequence[Path | str]) -> list[str]:
    """The folders' names, with as much of the path before them as tells them apart."""
    paths = [Path(folder).resolve() for folder in folders]
    if len(set(paths)) < len(paths):
        raise RunDirectoryError(f"{next(p for p in paths if paths.count(p) > 1)}: given twice; expected different runs")
    depth = 1
    while len({path.parts[-depth:] for path in paths}) < len(paths):
        depth += 1
    return ["/".join(path.parts[-depth:]) for path in paths]
