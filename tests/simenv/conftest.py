"""A reported run that several tests look at; none of them may change it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.simenv.fake_run import write_run


@pytest.fixture(scope="session")
def reported_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with controls, claims and another regime, its report, and a comparison of the two regimes.

    In regime `always` the first supported claim is decided the other way, and all others are open.
    """
    from simenv import report

    folder = write_run(
        tmp_path_factory.mktemp("reported") / "run", arms=("random", "als", "oracle"), rounds=4, regimes=("always",)
    )
    ours = json.loads((folder / "claims.json").read_text())
    flipping = next(claim["name"] for claim in ours if claim["verdict"] == "supported")
    path = folder / "regimes" / "always" / "claims.json"
    theirs = json.loads(path.read_text())
    for claim in theirs:
        claim["verdict"] = "not_supported" if claim["name"] == flipping else "inconclusive"
    path.write_text(json.dumps(theirs))
    report.build(folder)
    report.compare([folder, folder / "regimes" / "always"], folder / "compare.html")
    return folder
