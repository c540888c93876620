"""The report: what the page says, that it is rebuilt from files alone, and how damage is told."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import polars as pl
import pytest

from simenv.conclusions.judged import read_claims, write_claims
from simenv.errors import RunDirectoryError
from simenv.report import page as report
from simenv.report.figures import SPECS
from simenv.report.run_data import read_run
from tests.simenv.fake_run import HOSTILE, write_run

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A run of one arm and seed, without controls or claims, reported."""
    folder = write_run(
        tmp_path_factory.mktemp("plain") / "run", arms=("als",), controls=(), n_seeds=1, rounds=2, claims=False
    )
    report.build(folder)
    return folder


@pytest.fixture
def copy(plain, tmp_path):
    return Path(shutil.copytree(plain, tmp_path / "run"))


class _Page(HTMLParser):
    """Visible words, elements by name, and attributes of one page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.words, self.tags, self.attributes = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def page_of(folder: Path, name: str = "report.html") -> _Page:
    return _Page((folder / name).read_text(encoding="utf-8"))


def undrawn(folder: Path) -> _Page:
    """The page as it would be with no figure drawn."""
    return _Page(report.render("report.html.j2", report._report_page(read_run(folder), [])))


# -- what the page says -------------------------------------------------------------------------------------------


def test_every_claim_is_on_the_page_with_its_verdict(reported_run):
    text = page_of(reported_run).text
    claims = json.loads((reported_run / "claims.json").read_text())
    assert len(claims) > 3
    for claim in claims:
        assert claim["sentence"] in text
    for verdict in ("raised", "unclear"):
        chips = page_of(reported_run).attributes.count(("span", {"class": f"chip {verdict}"}))
        assert chips >= sum(claim["verdict"] == verdict for claim in claims)


def test_the_first_screen_answers_and_each_cell_leads_to_its_evidence(reported_run):
    page = page_of(reported_run)
    text = page.text
    claims = read_claims(reported_run)
    told = json.loads((reported_run / "report.json").read_text())
    assert 2 <= len(told["answer"]) <= 4
    places = [text.index(sentence) for sentence in told["answer"]]
    assert max(places) < text.index("Lines are means over 3 seeds") < text.index("All claims", places[-1])
    cells = [dict(at) for tag, at in page.attributes if tag == "a" and at.get("href", "").startswith("#claim-")]
    shown = {claim.sentence: claim for claim in claims}
    ids = [at["id"] for _, at in page.attributes if "id" in at]
    assert len(cells) == len({claim.metric for claim in claims})  # one arm, one column a metric
    for cell in cells:
        assert ids.count(cell["href"][1:]) == 1
        assert int(cell["href"].split("-")[1]) == claims.index(shown[cell["title"]])


def test_the_primary_claim_stands_before_the_other_claims(reported_run):
    text = page_of(reported_run).text
    claims = json.loads((reported_run / "claims.json").read_text())
    places = {claim["name"]: text.index(claim["sentence"]) for claim in claims}
    primary = next(claim["name"] for claim in claims if claim["primary"])
    assert places[primary] == min(places.values())
    assert text.index("★ primary") < places[primary]


def test_markdown_json_and_latex_say_what_the_page_says(reported_run):
    claims = read_claims(reported_run)
    markdown = (reported_run / "report.md").read_text()
    told = json.loads((reported_run / "report.json").read_text())
    latex = (reported_run / "claims.tex").read_text()
    for sentence in told["answer"]:
        assert sentence in markdown
    assert all(claim.sentence in markdown for claim in claims)
    assert told["claims"] == [claim.to_json() for claim in claims]
    pictures = re.findall(r"!\[\w+\]\((.*?)\)", markdown)
    assert pictures == told["figures"]
    assert all((reported_run / picture).is_file() for picture in pictures)
    assert latex.count(r" \\") == len(claims) + 1
    assert r"arp\_pct & als & als/organic" in latex
    assert all(line.count(" & ") == 6 for line in latex.splitlines() if " & " in line)


def test_a_flip_between_regimes_is_marked_once_and_lost_power_is_none(reported_run):
    text = page_of(reported_run).text
    assert text.count("The verdict flips: ") == 1
    assert "Repeated under always: 1 verdict flips." in text


def test_the_page_says_what_the_file_says_of_flips(reported_run, tmp_path):
    """It computes none of its own: a status in claims.json is on the page whatever the other runs hold."""
    folder = tmp_path / "run"
    shutil.copytree(reported_run, folder, ignore=shutil.ignore_patterns("regimes", "events", "figures"))
    claims = [replace(claim, regime_status=None, regime_note="") for claim in read_claims(folder)]
    claims[0] = replace(claims[0], user_model_status="flips", user_model_note="the verdict flips: as the file has it")
    write_claims(folder, claims)
    shutil.copytree(folder, folder / "user_models" / "content")
    text = undrawn(folder).text
    assert text.count("The verdict flips: as the file has it.") == 1
    assert "Repeated with the user models content: 1 verdict flips." in text
    assert "user_models/content/" in text


def test_too_few_seeds_are_said_at_the_top(reported_run):
    text = page_of(reported_run).text
    assert "3 seeds cannot show an effect" in text
    claims = read_claims(reported_run)
    assert text.index("3 seeds cannot show an effect") < min(text.index(claim.sentence) for claim in claims)


def test_page_is_self_contained(reported_run):
    source = (reported_run / "report.html").read_text()
    page = page_of(reported_run)
    assert not {"link", "iframe", "object"} & set(page.tags)
    assert not any("src" in attributes for tag, attributes in page.attributes if tag == "script")
    assert not re.search(r'(?:src|href|action)="(?:https?:)?//', source)
    assert "@import" not in source
    assert "url(" not in source
    sources = [attributes["src"] for tag, attributes in page.attributes if tag == "img"]
    assert len(sources) >= 15
    assert all(src.startswith("data:image/png;base64,") for src in sources)


def test_figures_have_alt_texts_and_captions_and_lie_beside_the_page(reported_run):
    page = page_of(reported_run)
    alts = [attributes["alt"] for tag, attributes in page.attributes if tag == "img"]
    assert len(set(alts)) == len(alts) == page.tags.count("figcaption") - 2  # two are drawn by the reader
    assert all(len(alt) > 20 for alt in alts)
    files = {path.stem for path in (reported_run / "figures").glob("*.png")}
    assert len(files) == len(alts)
    assert {"claims", "popularity", "amplification", "regimes", "lorenz", "groups", "tradeoff"} <= files


def test_titles_are_data(reported_run):
    source = (reported_run / "report.html").read_text()
    assert HOSTILE not in source
    assert html.escape(HOSTILE, quote=False).replace("'", "&#39;") in source
    assert HOSTILE in page_of(reported_run).text


def test_question_card_gates_tables_links_and_command(reported_run):
    page = page_of(reported_run)
    assert "h1" in page.tags
    for words in (
        "Does retraining on its own feedback",
        "mansoury identity largest error 2.2e-16",
        "python run.py +experiment=bias_loop n_seeds=3",
        "commit 0123456789abcdef, run run, seeds 0 to 2",
        "numpy 2.4.0",
        "0.0711",
        "n_seeds: 3",
    ):
        assert words in page.text
    links = [attributes["href"] for tag, attributes in page.attributes if tag == "a"]
    files = [link for link in links if not link.startswith("#")]
    assert {"metrics.csv", "claims.json", "tables/leaderboard.csv", "events/", "regimes/always/"} <= set(files)
    assert all((reported_run / link).exists() for link in files)


def test_without_claims_or_controls_the_page_says_so(plain):
    text = page_of(plain).text
    assert "No claims were evaluated" in text
    assert "One seed: no interval can be given" in text
    assert "Would another seed say the same (metrics: rank stability needs at least two seeds and two arms)" in text
    assert not (plain / "figures" / "amplification.png").exists()
    assert (plain / "figures" / "popularity.png").exists()


def test_rebuilding_gives_the_same_bytes_and_removes_stale_figures(copy):
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    stale = copy / "figures" / "amplification.png"
    stale.write_bytes(b"old")
    report.build(copy)
    after = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    assert before == after


def test_language_model_accounting_is_shown_where_there_is_one(copy):
    card = json.loads((copy / "run_card.json").read_text())
    card["llm"] = {"calls": 1200, "cached": 900, "cost_usd": 0.42, "parse_ladder": {"schema": 1190, "repair": 10}}
    card["recommender_llm"] = {"calls": 7}
    card["same_model"] = True
    (copy / "run_card.json").write_text(json.dumps(card))
    text = undrawn(copy).text
    assert "Asked as users calls 1200 cached 900 cost usd 0.4200 parse ladder schema 1190, repair 10" in text
    assert "Asked as recommenders calls 7" in text
    assert "played by the same model" in text


def test_a_bare_run_card_with_a_table_is_enough(tmp_path):
    (tmp_path / "tables").mkdir()
    (tmp_path / "run_card.json").write_text("{}")
    pl.DataFrame({"figure": ["popularity at t = 99"], "ours": [0.2173], "pass": [True]}).write_csv(
        tmp_path / "tables" / "replication.csv"
    )
    report.build(tmp_path)
    text = page_of(tmp_path).text
    assert "popularity at t = 99 0.2173 true" in text.replace("True", "true")
    assert "The run card does not hold the command" in text


def test_gates_in_any_form(copy):
    for listed, words in (
        ({"identity": "2e-16"}, "passed identity 2e-16"),
        (["identity"], "passed identity"),
        ([{"name": "identity", "passed": False, "by": 0.25}], "failed identity by 0.2500"),
    ):
        card = json.loads((copy / "run_card.json").read_text()) | {"gates": listed}
        (copy / "run_card.json").write_text(json.dumps(card))
        assert words in undrawn(copy).text


def test_figures_come_as_svg_on_request(copy, monkeypatch):
    monkeypatch.setattr("simenv.report.figures.SPECS", [spec for spec in SPECS if spec.name == "concentration"])
    report.build(copy, svg=True)
    first = (copy / "figures" / "concentration.svg").read_bytes()
    report.build(copy, svg=True)
    assert first == (copy / "figures" / "concentration.svg").read_bytes()
    assert b"coverage</text>" in first  # text is text


# -- comparison ---------------------------------------------------------------------------------------------------


def test_comparison_joins_claims_and_marks_disagreement(reported_run):
    page = page_of(reported_run, "compare.html")
    claims = json.loads((reported_run / "claims.json").read_text())
    assert all(claim["name"] in page.text for claim in claims)
    assert page.text.count("runs disagree") == 1
    assert "Comparison of runs: run, always" in page.text
    assert "Popularity percentile of what is shown" in page.text
    own = page_of(reported_run).tags.count("img")
    assert page.tags.count("img") > 4 + own
    assert page.tags.count("script") == 1  # heads that sort


def test_runs_of_one_name_are_told_apart(tmp_path):
    folders = [tmp_path / "a" / "run", tmp_path / "b" / "run"]
    assert report._distinct_names(folders) == ["a/run", "b/run"]
    assert report._distinct_names([folders[0], tmp_path / "other"]) == ["run", "other"]
    with pytest.raises(RunDirectoryError, match="given twice"):
        report._distinct_names([folders[0], folders[0]])


# -- damage -------------------------------------------------------------------------------------------------------


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _replace(name: str, text: str):
    return lambda folder: (folder / name).write_text(text)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (shutil.rmtree, "no such directory; expected a run directory"),
        (lambda folder: (folder / "run_card.json").unlink(), "not a run directory; expected a run_card.json"),
        (_replace("run_card.json", "{"), r"run_card.json: damaged"),
        (_replace("run_card.json", "[]"), "run_card.json: holds a list; expected an object"),
        (_replace("metrics.csv", "seed,arm\n0,als\n"), "metrics.csv: no column 'mode'"),
        (_replace("metrics.csv", "seed,arm,mode,round,group,metric,value\n0,als,loop,0,all,gini,much\n"), "damaged"),
        (_replace("metrics.csv", ""), "metrics.csv: damaged"),
        (lambda folder: _truncate(folder / "metrics.csv"), "metrics.csv: damaged"),
        (_replace("claims.json", "{}"), "claims.json: expected a list of claims"),
        (_replace("claims.json", '[{"name": "a", "verdict": "sure"}]'), "a has test 'sure'; expected supported"),
        (lambda folder: _truncate(folder / "items.parquet"), "items.parquet: damaged"),
        (lambda folder: _truncate(next((folder / "events").iterdir())), r"\.parquet: damaged"),
        (lambda folder: pl.DataFrame({"seed": [0]}).write_parquet(folder / "events" / "x.parquet"), "no column 'arm'"),
        (lambda folder: (folder / "config.yaml").write_bytes(b"\xff\xfe\xfa"), "config.yaml: cannot be read"),
    ],
)
def test_damage_is_one_line_and_exit_2(copy, damage, message, capsys):
    damage(copy)
    with pytest.raises(RunDirectoryError, match=message):
        report.build(copy)
    assert report.main([str(copy)]) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(r"error: [^\n]+\n", error)


def test_a_page_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "report.html").mkdir()
    with pytest.raises(RunDirectoryError, match=r"report\.html: cannot be written"):
        report.write_files({tmp_path / "report.html": b"text"})


def test_command_line_writes_the_page_and_prints_its_path(copy):
    (copy / "report.html").unlink()
    command = [sys.executable, "-m", "simenv.report", str(copy)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert Path(done.stdout.strip()) == copy / "report.html"
    assert (copy / "report.html").is_file()


def test_debug_shows_the_traceback(tmp_path, monkeypatch):
    monkeypatch.setenv("SIMENV_DEBUG", "1")
    with pytest.raises(RunDirectoryError, match="not a run directory"):
        report.main([str(tmp_path)])


def test_out_is_for_comparisons_only(copy, capsys):
    assert report.main([str(copy), "--out", "x.html"]) == 2
    assert "--out is for a comparison" in capsys.readouterr().err


def test_numbers_as_readers_want_them():
    shown = [report.views.number(v) for v in (None, float("nan"), 0.0, 0.05, 3.14159, 0.0001234, 7, True, "text")]
    assert shown == ["–", "–", "0", "0.0500", "3.142", "1.23e-04", "7", "True", "text"]
