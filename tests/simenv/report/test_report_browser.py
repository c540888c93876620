"""The pages in a real browser, one for all tests: what is drawn, what each control does, who can read it."""

from __future__ import annotations

import json
import re
import shutil

import polars
import pytest

pytest.importorskip("playwright")
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import sync_playwright

from simenv.report.page import render
from simenv.report.watch import write_page
from tests.simenv.fake_run import HOSTILE

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no chromium or chrome on PATH (apt-get install chromium)")

FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking")
PAGES = ("report.html", "compare.html")
WIDE = """[...document.querySelectorAll("main *")].filter((e) =>
    !e.closest(".scroll > *, pre, .chart, [hidden], details:not([open]) *")
    && e.getBoundingClientRect().right > innerWidth + 1).map((e) => e.tagName + "." + e.className)"""


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=BROWSER, args=list(FLAGS))
        yield opened
        opened.close()


@pytest.fixture
def visit(browser):
    """Opens a page from disk; what the console says is in `page.said`."""
    contexts = []

    def opener(path, *, width=1280, **options):
        context = browser.new_context(viewport={"width": width, "height": 900}, **options)
        contexts.append(context)
        page = context.new_page()
        page.said = []
        page.on("console", lambda message: page.said.append(message.text))
        page.on("pageerror", lambda error: page.said.append(str(error)))
        page.on("request", lambda request: request.url.startswith(("file:", "data:")) or page.said.append(request.url))
        context.set_default_timeout(30_000)  # a machine may be busy
        page.goto(path.resolve().as_uri())
        return page

    yield opener
    for context in contexts:
        context.close()


@pytest.mark.parametrize("name", PAGES)
def test_every_image_is_drawn_nothing_overflows_and_the_console_is_silent(reported_run, visit, name):
    page = visit(reported_run / name, width=1600)
    assert page.locator("img").count() > 10
    assert page.evaluate("[...document.images].filter((i) => !i.complete || i.naturalWidth === 0).length") == 0
    for width in (1600, 1280, 375):
        page.set_viewport_size({"width": width, "height": 900})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate(WIDE) == []
    assert page.said == []


def test_what_goes_wrong_would_be_seen(visit, tmp_path):
    (tmp_path / "bad.html").write_text("<!DOCTYPE html><script>throw new Error('planted')</script>")
    assert "planted" in "".join(visit(tmp_path / "bad.html").said)


@pytest.mark.parametrize(
    ("name", "width", "scheme"),
    [("report.html", 1280, "light"), ("report.html", 375, "dark"), ("compare.html", 375, "dark")],
)
def test_axe_finds_nothing(reported_run, visit, name, width, scheme):
    page = visit(reported_run / name, width=width, color_scheme=scheme)
    page.evaluate("for (const one of document.querySelectorAll('details')) one.open = true")
    found = Axe().run(page).response["violations"]
    assert [(one["id"], one["nodes"][0]["html"][:200]) for one in found] == []


def test_the_page_without_scripts_has_its_figures_and_no_dead_controls(reported_run, visit):
    page = visit(reported_run / "report.html", java_script_enabled=False)
    assert not page.locator("#explore").is_visible()
    assert page.locator("noscript").inner_text().startswith("With scripts allowed")
    assert page.locator("figure img").first.is_visible()


def test_a_script_of_another_hand_is_not_run(reported_run, visit, tmp_path):
    whole = (reported_run / "report.html").read_text()
    (tmp_path / "planted.html").write_text(
        whole.replace("</main>", "<script>document.title = 'planted'</script></main>")
    )
    page = visit(tmp_path / "planted.html")
    assert page.title() != "planted"
    assert "Content Security Policy" in "".join(page.said)


def test_a_runs_own_tables_sort(reported_run, visit):
    page = visit(reported_run / "report.html")
    table = page.locator("#tables table").first
    head = table.locator("th.n").first
    column = head.evaluate("(head) => head.cellIndex")
    cells = table.locator(f"tbody td:nth-child({column + 1})")
    before = [float(cell.get_attribute("data-value")) for cell in cells.all()]
    assert len(set(before)) > 1
    for direction in (True, False):
        head.get_by_role("button").click()
        assert [float(cell.get_attribute("data-value")) for cell in cells.all()] == sorted(before, reverse=direction)
    assert page.said == []


def test_a_head_sorts_its_column(visit, tmp_path):
    values = {"b": 0.5, "a": 10.0, "c": None}
    rows = [
        {"run": name, "href": None, "experiment": "x", "options": [], "arm": "als", "seeds": 2}
        | {"cells": {} if value is None else {"Gini": (value, None)}}
        for name, value in values.items()
    ]
    shown = {
        "title": "Runs",
        "n_runs": 3,
        "compared": None,
        "table": {"options": [], "columns": ["Gini"], "rows": rows},
    }
    (tmp_path / "leaderboard.html").write_text(render("leaderboard.html.j2", shown, scripts=["sort.js"]))
    page = visit(tmp_path / "leaderboard.html", color_scheme="dark")
    assert Axe().run(page).response["violations"] == []

    def order():
        return [text[0] for text in page.locator("tbody td:first-child").all_inner_texts()]

    assert order() == ["b", "a", "c"]
    head = page.get_by_role("columnheader", name="Gini")
    head.get_by_role("button").focus()
    for key, direction, expected in (("Enter", "descending", "abc"), (" ", "ascending", "bac")):
        page.keyboard.press(key)
        assert (head.get_attribute("aria-sort"), "".join(order())) == (direction, expected)
    page.get_by_role("columnheader", name="Run").get_by_role("button").click()
    assert order() == ["a", "b", "c"]
    assert page.said == []


def test_a_page_of_a_running_experiment_reads_itself_again_until_told_not_to(visit, tmp_path):
    (tmp_path / "config.yaml").write_text("rounds: 2\n")
    page = visit(write_page(tmp_path, every=1))
    (tmp_path / "watch.html").write_text((tmp_path / "watch.html").read_text().replace("No round", "Never a round"))
    page.get_by_text("Never a round").wait_for()
    page.get_by_label("stop refreshing").check()
    (tmp_path / "watch.html").unlink()
    page.wait_for_timeout(1300)
    assert page.get_by_text("Never a round").is_visible()
    assert Axe().run(page).response["violations"] == []  # while the page stands still
    assert page.said == []


# -- the controls -------------------------------------------------------------------------------------------------


def lines(page, chart="x-course"):
    return page.locator(f"#{chart} path.mean").evaluate_all("paths => paths.map((path) => path.dataset.line)")


def drawn(page, chart):
    return page.locator(f"#{chart} svg").inner_html()


def test_switches_of_arms_and_controls(reported_run, visit):
    page = visit(reported_run / "report.html")
    everything = ["random", "als", "als / organic", "als / frozen", "oracle"]
    for chart in ("x-course", "x-lorenz", "x-tenths", "x-exposure"):
        assert lines(page, chart) == everything
    page.get_by_label("frozen", exact=True).uncheck()
    page.get_by_label("oracle", exact=True).uncheck()
    for chart in ("x-course", "x-lorenz", "x-tenths", "x-exposure"):
        assert lines(page, chart) == ["random", "als", "als / organic"]
    page.get_by_label("als", exact=True).uncheck()
    assert lines(page) == ["random"]
    assert page.said == []


def test_metric_users_seeds_and_values(reported_run, visit):
    metrics = polars.read_csv(reported_run / "metrics.csv")
    page = visit(reported_run / "report.html")
    before = drawn(page, "x-course")
    page.get_by_label("Metric").select_option(label="Gini of exposure")
    assert drawn(page, "x-course") != before
    page.get_by_text("The values of this round as a table").click()
    told = page.locator("#x-values tr", has=page.get_by_role("rowheader", name="als", exact=True)).inner_text()
    last = metrics.filter(metric="gini", arm="als", mode="loop", group="all", round=3)["value"].mean()
    assert float(re.findall(r"[\d.]+", told)[0]) == pytest.approx(last, abs=1e-3)

    page.get_by_label("each seed as a thin line").check()
    assert page.locator("#x-course path.seed").count() == 5 * 3
    assert page.locator("#x-course path.band").count() == 0
    page.get_by_label("Users").select_option("taste=minority")
    assert page.locator("#x-course path.seed").count() == 0
    told = page.locator("#x-values tr", has=page.get_by_role("rowheader", name="als", exact=True)).inner_text()
    last = metrics.filter(metric="gini", arm="als", mode="loop", group="taste=minority", round=3)["value"].mean()
    assert float(re.findall(r"[\d.]+", told)[0]) == pytest.approx(last, abs=1e-3)
    assert page.said == []


def test_the_slider_by_keyboard(reported_run, visit):
    page = visit(reported_run / "report.html")
    slider = page.get_by_role("slider")
    charts = [drawn(page, chart) for chart in ("x-course", "x-lorenz", "x-tenths")]
    slider.focus()
    page.keyboard.press("Home")
    assert page.locator("#x-now").inner_text() == "round 0"
    assert all(drawn(page, c) != old for c, old in zip(("x-course", "x-lorenz", "x-tenths"), charts, strict=True))
    page.keyboard.press("ArrowRight")
    assert slider.get_attribute("aria-valuetext") == "round 1"


def test_hovering_tells_the_value(reported_run, visit):
    page = visit(reported_run / "report.html")
    page.locator("#x-course svg").scroll_into_view_if_needed()
    box = page.locator("#x-course svg").bounding_box()
    page.mouse.move(box["x"] + box["width"] - 16, box["y"] + box["height"] / 2)
    tip = page.locator("#x-course .tip")
    assert re.fullmatch(r"\S.*, round 3: 0\.\d+ ± 0\.\d+", tip.inner_text())
    page.mouse.move(0, 0)
    assert not tip.is_visible()


def test_courses_of_users_and_items(reported_run, visit):
    page = visit(reported_run / "report.html")
    data = json.loads(page.locator("#data").text_content())
    page.get_by_label("User", exact=True).select_option(label=data["users"][0]["id"])
    page.get_by_label("in arm").select_option(label="als / organic")
    user = int(data["users"][0]["id"][1:])
    log = polars.read_parquet(reported_run / "events" / "seed=0-als-organic.parquet").filter(user=user)
    assert page.locator("#x-pages tr").count() == 4
    assert page.locator("#x-pages b").count() == log["clicked"].sum()
    clicks = page.locator("#x-pages tr td:nth-child(3)").all_inner_texts()
    assert [int(n) for n in clicks] == log.group_by("round").agg(polars.col("clicked").sum()).sort("round")[
        "clicked"
    ].to_list()

    before = drawn(page, "x-exposure")
    titles = page.locator("#x-item option").all_inner_texts()
    assert HOSTILE in titles
    page.get_by_label("Item", exact=True).select_option(label=HOSTILE)
    assert drawn(page, "x-exposure") != before
    assert page.said == []
    shown = data["items"][titles.index(HOSTILE)]["shown"][1]
    events = polars.read_parquet(reported_run / "events" / "seed=0-als-loop.parquet")
    item = polars.read_parquet(reported_run / "items.parquet").filter(seed=0, title=HOSTILE)["item"].item()
    counts = events.filter(item=item).group_by("round").len()
    assert shown == [counts.filter(round=r)["len"].sum() for r in range(4)]
