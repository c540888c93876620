"""The page in a real browser: no console errors, every image drawn, nothing wider than the window."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path

import pytest

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no chromium or chrome on PATH (apt-get install chromium)")

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-extensions",
    "--enable-logging=stderr",
    "--v=0",
)
PROBE = """<script>
addEventListener("load", () => {
  const images = [...document.images];
  const root = document.documentElement;
  const wide = [...document.querySelectorAll("main *")].filter((e) => !e.closest(".scroll > *, pre")
    && e.getBoundingClientRect().right > innerWidth + 1).map((e) => e.tagName + "." + e.className);
  const out = document.createElement("pre");
  out.id = "probe";
  out.textContent = JSON.stringify({
    images: images.length,
    undrawn: images.filter((i) => !i.complete || i.naturalWidth === 0).length,
    hidden: images.filter((i) => i.getBoundingClientRect().width < 50).length,
    window: innerWidth, page: root.scrollWidth, wide,
  });
  document.body.append(out);
});
</script>"""


def open_page(page: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(BROWSER), *FLAGS, f"--user-data-dir={folder / 'profile'}", *arguments, page.resolve().as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=90, check=True)


def framed(page: Path, folder: Path, width: int) -> Path:
    """A copy of the page with the probe, inside a frame of exactly `width` px (headless windows have a minimum)."""
    source = page.read_text()
    policy = re.search(r'<meta http-equiv="Content-Security-Policy"[^>]*>', source)
    assert policy, "the page should forbid scripts; the copy under test must be allowed one"
    probed = source.replace(policy[0], "").replace("</body>", PROBE + "</body>")
    (folder / "inner.html").write_text(probed)
    outer = folder / "outer.html"
    outer.write_text(
        f'<!DOCTYPE html><body style="margin:0"><iframe id="f" src="inner.html" width="{width}" height="900" '
        'style="border:0"></iframe><script>addEventListener("load", () => { document.body.append('
        'Object.assign(document.createElement("pre"), {id: "result", textContent: '
        'document.getElementById("f").contentDocument.getElementById("probe").textContent})); });</script></body>'
    )
    return outer


@pytest.mark.parametrize("width", [375, 1600])
@pytest.mark.parametrize("name", ["report.html", "compare.html"])
def test_every_image_is_drawn_and_nothing_overflows(reported_run, tmp_path, name, width):
    outer = framed(reported_run / name, tmp_path, width)
    done = open_page(outer, tmp_path, "--allow-file-access-from-files", "--window-size=1700,1000", "--dump-dom")
    found = re.search(r'<pre id="result">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found, done.stderr[-2000:]
    probe = json.loads(unescape(found[1]))
    assert probe["window"] == width
    assert probe["images"] == (reported_run / name).read_text().count("<img ")
    assert probe["images"] > 10
    assert probe["undrawn"] == probe["hidden"] == 0
    assert probe["page"] <= probe["window"]
    assert probe["wide"] == []


@pytest.mark.parametrize("name", ["report.html", "compare.html"])
def test_the_page_itself_opens_without_console_messages(reported_run, tmp_path, name):
    done = open_page(reported_run / name, tmp_path, "--dump-dom")
    assert "</html>" in done.stdout
    assert "CONSOLE" not in done.stderr


def test_the_console_check_sees_errors(tmp_path):
    page = tmp_path / "bad.html"
    page.write_text("<!DOCTYPE html><html><body><script>throw new Error('planted')</script></body></html>")
    assert "CONSOLE" in open_page(page, tmp_path, "--dump-dom").stderr
