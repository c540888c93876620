"""The command `simenv`: each word reaches its command, and what is wrong is said in one line."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from simenv import __main__ as command
from simenv import doctor
from simenv.errors import DataError, did_you_mean
from simenv.registration import resolve

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("name", command.COMMANDS)
def test_every_command_is_there_and_helps(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert callable(resolve(command.COMMANDS[name][0]))
    with contextlib.suppress(SystemExit):  # argparse
        assert command.main([name, "--help"]) == 0
    assert f"simenv {name}" in capsys.readouterr().out


def test_help_names_every_command_and_is_light() -> None:
    script = "import sys; from simenv.__main__ import main; main([]); assert 'hydra' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()[2:-2]] == list(command.COMMANDS)


def test_what_is_wrong_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["rnu"]) == 2
    assert capsys.readouterr().err.startswith(
        "error: simenv rnu: unknown command (did you mean 'run'?); expected one of"
    )
    assert command.main(["data", "fetch", "ml100k"]) == 2
    assert "did you mean 'ml-100k'?" in capsys.readouterr().err
    assert command.main(["report", "/nowhere"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_closed_pipe_is_no_failure() -> None:
    command = [sys.executable, "-m", "simenv", "data"]
    environment = {name: value for name, value in os.environ.items() if name != "SIMENV_DATA"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, cwd=ROOT, env=environment, **pipes) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0


def test_data_says_what_is_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SIMENV_DATA", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "ml-latest-small").mkdir()
    for name in ("ratings.csv", "movies.csv"):
        (tmp_path / "ml-latest-small" / name).touch()
    assert command.main(["data"]) == 0
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert lines["ml-latest-small"] == str(tmp_path / "ml-latest-small")
    assert lines["ml-1m"] == "not here: simenv data fetch ml-1m"
    assert lines["SIMENV_DATA"] == str(tmp_path)


def test_data_says_what_a_file_would_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = tmp_path / "plays.csv"
    table.write_text("who,item,stars\na,x,4\na,y,5\nb,x,1\n")
    assert command.main(["data", "check", str(table), "user=who", "dataset.rating=stars"]) == 0
    assert "3 interactions of 2 users with 2 items" in capsys.readouterr().out
    assert command.main(["data", "check", str(table), "user=who", "rating"]) == 2
    assert "expected KEY=VALUE" in capsys.readouterr().err
    assert command.main(["data", "check", str(table), "colour=blue"]) == 2
    assert "colour" in capsys.readouterr().err


def test_doctor_tells_what_is_missing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    installed = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda name: {"numpy": None, "scipy": "1.0"}.get(name, installed(name)))

    def refuse() -> list[str]:
        raise DataError("two folders")

    monkeypatch.setattr(doctor, "overview", refuse)
    assert command.main(["doctor"]) == 0
    printed = capsys.readouterr().out
    assert "numpy missing, expected numpy>=2.0" in printed
    assert "scipy 1.0, expected scipy>=1.15" in printed
    assert "  two folders" in printed
    assert "extras\n" in printed


def test_did_you_mean() -> None:
    assert did_you_mean("ALs", ["als", "bpr"]) == " (did you mean 'als'?)"
    assert did_you_mean("xyz", ["als", "bpr"]) == ""
