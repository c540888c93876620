"""A judged claim: its numbers, its test, its verdict; and `claims.json`, the file of them.

The verdict reads the interval against the margin, the largest effect that counts as none. The module does not know how
the numbers were computed, nor how a claim is put into words.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

from simenv.errors import DataError, RunDirectoryError
from simenv.files import write_whole

Test = Literal["supported", "not_supported", "inconclusive"]
Verdict = Literal["raised", "lowered", "negligible", "unclear"]
Status = Literal["holds", "flips", "open"]
TESTS: tuple[Test, ...] = get_args(Test)
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
FILE = "claims.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedClaim:
    """One entry of `claims.json`; a number that does not exist is None.

    Attributes:
        control: what the arm is compared with, e.g. `als/frozen`.
        estimate: in the unit of the metric, with `ci_low` and `ci_high`.
        p: unadjusted; `p_adjusted` among all claims of the run.
        margin: the largest effect that counts as none; `tost_p` of the test that the effect is smaller.
        mde: the effect that a single test of this many seeds finds with 80 % power.
        test: what the adjusted test says of "there is an effect".
        verdict: what the interval says against the margin.
        seeds_needed: about how many seeds would decide, where it is unclear.
        regime_status: how the verdict fares in the run's other consumption regimes (`simenv.conclusions.across`), and
            `user_model_status` with its other user models; None = not repeated. The notes say it in words.
        label: names the row of a figure where arm and control do not.
    """

    name: str
    arm: str = ""
    metric: str | None = None
    control: str = ""
    regime: str | None = None
    primary: bool = False
    estimate: float | None = None
    ci_low: float | None = None
    ci_high: float | None = None
    p: float | None = None
    p_adjusted: float | None = None
    n_seeds: int = 0
    margin: float | None = None
    tost_p: float | None = None
    mde: float | None = None
    test: Test
    verdict: Verdict
    seeds_needed: int | None = None
    sentence: str = ""
    regime_status: Status | None = None
    regime_note: str = ""
    user_model_status: Status | None = None
    user_model_note: str = ""
    label: str | None = None

    @property
    def kind(self) -> str:
        """The part of the name before the first colon."""
        return self.name.split(":")[0]

    @property
    def flips(self) -> bool:
        """Another regime or user model decides the other way."""
        return "flips" in (self.regime_status, self.user_model_status)

    def to_json(self) -> dict[str, Any]:
        """The entry of `claims.json`."""
        return asdict(self)

    @classmethod
    def from_json(cls, entry: object) -> JudgedClaim:
        """The claim of an entry; keys it does not know are left out.

        An entry without `test` has the test's word under `verdict`, as runs before version 0.2 wrote it; the verdict is
        then read from interval and margin.

        Raises:
            DataError: it is no object, has no name, or a word or number of it is none.
        """
        if not isinstance(entry, Mapping) or not isinstance(entry.get("name"), str):
            raise DataError("expected a list of claims, each an object with a name")
        held = {f.name: entry[f.name] for f in fields(cls) if entry.get(f.name) is not None}
        for number in ("estimate", "ci_low", "ci_high", "p", "p_adjusted", "margin", "tost_p", "mde"):
            if number in held and (isinstance(held[number], bool) or not isinstance(held[number], int | float)):
                raise DataError(f"{held['name']} has {number} {held[number]!r}; expected a number or null")
        if "test" not in held:
            held["test"] = held.pop("verdict", None)
            bounds = (held.get(key) for key in ("ci_low", "ci_high", "margin", "p_adjusted"))
            held["verdict"] = verdict_of(*bounds)
        for key, words in (("test", TESTS), ("verdict", VERDICTS)):
            if held.get(key) not in words:
                raise DataError(f"{held['name']} has {key} {held.get(key)!r}; expected {', '.join(words)}")
        return cls(**held)


def verdict_of(
    low: float | None,
    high: float | None,
    margin: float | None,
    p_adjusted: float | None = None,
    *,
    alpha: float = 0.05,
) -> Verdict:
    """The word for an interval: `raised` or `lowered` beyond the margin, `negligible` inside it, else `unclear`.

    Args:
        low: lower end of the interval; None = there is none.
        high: its upper end.
        margin: the largest effect that counts as none; None = 0, so that nothing is negligible.
        p_adjusted: of "no effect" among all claims; an effect must pass it too. None = the interval alone decides.
        alpha: level of that test.
    """
    if low is None or high is None:
        return "unclear"
    edge = margin or 0.0
    if -edge < low and high < edge:
        return "negligible"
    if p_adjusted is None or p_adjusted <= alpha:
        if low > edge:
            return "raised"
        if high < -edge:
            return "lowered"
    return "unclear"


def write_claims(folder: Path, claims: Iterable[JudgedClaim]) -> None:
    """Write `claims.json` of a run directory."""
    write_whole(folder / FILE, json.dumps([claim.to_json() for claim in claims], indent=1) + "\n")


def read_claims(folder: Path | str) -> list[JudgedClaim]:
    """The claims of a run directory.

    Raises:
        RunDirectoryError: there is no `claims.json`, or it is damaged.
    """
    path = Path(folder) / FILE
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunDirectoryError(f"{path}: damaged ({error}); expected JSON") from error
    if not isinstance(entries, list):
        raise RunDirectoryError(f"{path}: expected a list of claims, each an object with a name")
    try:
        return [JudgedClaim.from_json(entry) for entry in entries]
    except DataError as error:
        raise RunDirectoryError(f"{path}: {error}") from error
