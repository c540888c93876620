"""A reported run that several tests look at; none of them may change it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from simenv.conclusions.across import marked
from simenv.conclusions.judged import read_claims, write_claims
from tests.simenv.fake_run import write_run


@pytest.fixture(scope="session")
def reported_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with controls, claims and another regime, its report, and a comparison of the two regimes.

    In regime `always` the first decided claim is negligible, and all others are unclear.
    """
    from simenv import report

    folder = write_run(
        tmp_path_factory.mktemp("reported") / "run", arms=("random", "als", "oracle"), rounds=4, regimes=("always",)
    )
    ours = read_claims(folder)
    flipping = next(claim.name for claim in ours if claim.verdict != "unclear")
    other = folder / "regimes" / "always"
    theirs = [
        replace(claim, verdict="negligible" if claim.name == flipping else "unclear") for claim in read_claims(other)
    ]
    write_claims(other, theirs)
    write_claims(folder, marked(ours, regimes={"never": ours, "always": theirs}, user_models={}))
    report.build(folder)
    report.compare([folder, folder / "regimes" / "always"], folder / "compare.html")
    return folder
