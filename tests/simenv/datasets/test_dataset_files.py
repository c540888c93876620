"""Where files are found, and the download with its checksum, against a server on the loopback."""

import hashlib
import io
import threading
import zipfile
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from simenv.datasets import load
from simenv.errors import DataError

RATINGS = "userId,movieId,rating,timestamp\n1,1,4.0,100\n"
MOVIES = "movieId,title,genres\n1,Heat (1995),Crime\n"


@pytest.fixture
def publisher(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A server that offers what lies in its folder: (base URL, folder)."""
    folder = tmp_path / "publisher"
    folder.mkdir()

    class Handler(SimpleHTTPRequestHandler):
        def __init__(self, *args: object) -> None:
            super().__init__(*args, directory=str(folder))  # type: ignore[arg-type]

        def log_message(self, *args: object) -> None:
            """Keep the test's output clean."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", folder
        server.shutdown()
        thread.join()


def zipped(files: dict[str, str]) -> bytes:
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w") as bundle:
        for name, text in files.items():
            bundle.writestr(name, text)
    return memory.getvalue()


def offer(folder: Path, content: bytes, md5: str | None = None) -> None:
    (folder / "ml-latest-small.zip").write_bytes(content)
    md5 = hashlib.md5(content).hexdigest() if md5 is None else md5
    (folder / "ml-latest-small.zip.md5").write_text(f"MD5 (ml-latest-small.zip) = {md5}\n")


GOOD = zipped({"ml-latest-small/ratings.csv": RATINGS, "ml-latest-small/movies.csv": MOVIES})


def test_download_is_checked_unpacked_and_kept(publisher, tmp_path, capsys):
    url, folder = publisher
    offer(folder, GOOD)
    assert load("ml-latest-small", base_url=url).catalog.titles == ("Heat (1995)",)
    assert "100%" in capsys.readouterr().err, "a progress bar is shown"
    cached = next((tmp_path / "cache").rglob("ml-latest-small"))
    assert sorted(path.name for path in cached.iterdir()) == ["movies.csv", "ratings.csv"]
    (folder / "ml-latest-small.zip").unlink()
    assert load("ml-latest-small", base_url=url).n_users == 1, "the second time comes from the cache"


@pytest.mark.parametrize(
    ("content", "md5", "message"),
    [
        (GOOD, "0" * 32, "does not match the known hash"),
        (GOOD[:-40], hashlib.md5(GOOD).hexdigest(), "does not match the known hash"),
        (GOOD, "none today", "holds no md5 checksum"),
        (b"no zip", None, "not a zip file"),
    ],
    ids=["changed", "cut off", "no checksum", "no zip"],  # an archive's hash changes with the clock
)
def test_a_download_that_is_not_what_was_published_leaves_nothing_behind(publisher, tmp_path, content, md5, message):
    url, folder = publisher
    offer(folder, content, md5)
    with pytest.raises(DataError, match=message) as caught:
        load("ml-latest-small", base_url=url)
    assert "ratings.csv and movies.csv" in str(caught.value)
    assert not list((tmp_path / "cache").rglob("*.csv"))
    assert "\n" not in str(caught.value)


def test_a_fixed_checksum_is_held_against_the_archive(publisher):
    url, folder = publisher
    (folder / "ml-100k.zip").write_bytes(GOOD)
    with pytest.raises(DataError, match="does not match the known hash"):
        load("ml-100k", base_url=url)


def test_an_archive_without_the_files_is_named(publisher):
    url, folder = publisher
    offer(folder, zipped({"ml-latest-small/ratings.csv": RATINGS}))
    with pytest.raises(DataError, match=r"has no movies.csv; expected ratings.csv and movies.csv there"):
        load("ml-latest-small", base_url=url)


@pytest.mark.parametrize(
    ("name", "files"),
    [
        ("ml-100k", "u.data, u.item, u.user and u.genre"),
        ("ml-1m", "ratings.dat, movies.dat and users.dat"),
        ("ml-latest-small", "ratings.csv and movies.csv"),
    ],
)
def test_without_network_and_files_the_message_says_what_to_put_where(name, files):
    with pytest.raises(DataError, match=rf"download of .*{name}.zip failed .* put {files} into a folder") as caught:
        load(name, base_url="http://127.0.0.1:9")
    assert "dataset.root=FOLDER" in str(caught.value)
    assert "SIMENV_DATA" in str(caught.value)


def test_amazon_has_no_download():
    with pytest.raises(
        DataError, match=r"amazon: no files and no direct download; put \*.txt or reviews.jsonl or .* into a folder"
    ):
        load("amazon")


def test_root_alone_counts_when_it_is_given(write, tmp_path, monkeypatch):
    shelf = write({"ratings.csv": RATINGS, "movies.csv": MOVIES}, "ml-latest-small").parent
    monkeypatch.setenv("SIMENV_DATA", str(shelf))
    assert load("ml-latest-small").n_users == 1
    with pytest.raises(DataError, match=r"dataset.root names .*absent, which is no folder"):
        load("ml-latest-small", root=str(tmp_path / "absent"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty has no ratings.csv and movies.csv"):
        load("ml-latest-small", root=str(tmp_path / "empty"))


def test_the_shelf_may_hold_one_edition_under_a_longer_name(write, monkeypatch):
    shelf = write({"ratings.csv": RATINGS, "movies.csv": MOVIES}, "ml-latest-small-2018").parent
    monkeypatch.setenv("SIMENV_DATA", str(shelf))
    assert load("ml-latest-small").n_users == 1
    write({"ratings.csv": RATINGS}, "ml-latest-small-2016")
    with pytest.raises(DataError, match=r"holds ml-latest-small-2016 and ml-latest-small-2018; expected"):
        load("ml-latest-small")
