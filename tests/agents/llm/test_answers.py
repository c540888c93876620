"""The parse ladder's first two rungs: what is taken, what is mended, what is neither."""

from __future__ import annotations

import json
import string

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.llm.answers import page_schema, parse_page
from simenv.errors import ConfigError
from simenv.language_models.quoting import opaque_ids
from simenv.language_models.repair import ParseError, without_wrapping

GOOD = '{"items":{"A":{"interest":72,"rating":4},"B":{"interest":5,"rating":1}},"satisfaction":3}'


def test_an_answer_by_the_schema():
    scores = parse_page(GOOD, ("A", "B"))
    np.testing.assert_array_equal(scores.interest, [72, 5])
    np.testing.assert_array_equal(scores.rating, [4, 1])
    assert scores.satisfaction == 3
    assert not scores.repaired


def test_scores_come_in_the_order_asked_for():
    np.testing.assert_array_equal(parse_page(GOOD, ("B", "A")).interest, [5, 72])


def test_expectations_are_numbers_too():
    scores = parse_page('{"items":{"A":{"interest":63.2,"rating":3.7}},"satisfaction":2.5}', ("A",))
    assert (scores.rating[0], scores.repaired) == (np.float32(3.7), False)


@pytest.mark.parametrize(
    "text",
    [
        f"<think>A is a {{fine}} film.</think>{GOOD}",
        f"The template opened the tag.</think>\n{GOOD}",
        f"```json\n{GOOD}\n```",
        f"```\n{GOOD}",
        f"  {GOOD}\n\n",
    ],
)
def test_wrapping_is_no_part_of_an_answer(text):
    assert not parse_page(text, ("A", "B")).repaired


@pytest.mark.parametrize(
    "text",
    [
        f"Sure! Here you are: {GOOD} Anything else?",
        GOOD.replace("}},", "},},"),
        GOOD.replace('"', "'"),
        GOOD.replace('"', ""),
        GOOD.replace('"', "“", 1).replace('"', "”", 1),
        GOOD[:-1],
        GOOD[:-1] + ",",
        GOOD.replace('"A"', '"a"').replace('"B"', '" b"'),
        GOOD.replace("72", '"72"').replace(":4", ':"4/5"').replace(":5,", ':"5%",'),
        GOOD.replace('{"A"', '{"C":{"interest":1,"rating":1},"A"'),
        '{"items":[{"id":"A","interest":72,"rating":4},{"id":"B","interest":5,"rating":1}],"satisfaction":3}',
    ],
    ids=[
        "prose",
        "trailing comma",
        "single quotes",
        "bare keys",
        "curly quotes",
        "unclosed",
        "cut at a comma",
        "lower case",
        "strings",
        "extra id",
        "list",
    ],
)
def test_what_can_be_mended(text):
    scores = parse_page(text, ("A", "B"))
    assert scores.repaired
    np.testing.assert_array_equal(scores.interest, [72, 5])
    np.testing.assert_array_equal(scores.rating, [4, 1])
    assert scores.satisfaction == 3


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no_json"),
        ("I cannot help with that.", "no_json"),
        ("<think>and then it was cut", "no_json"),
        ("[1, 2]", "no_json"),
        ("{}", "no_items"),
        (GOOD.replace('"B"', '"Z"'), "missing_items"),
        (GOOD[:40], "missing_items"),
        (GOOD[:60], "bad_json"),
        (GOOD[: GOOD.index(":5") + 2], "no_number"),
        (GOOD.replace(',"satisfaction":3', ""), "no_number"),
        (GOOD.replace("72", "720"), "out_of_range"),
        (GOOD.replace("72", "-1"), "out_of_range"),
        (GOOD.replace(":4}", ":0}"), "out_of_range"),
        (GOOD.replace("72", "null"), "no_number"),
        (GOOD.replace("72", "true"), "no_number"),
        (GOOD.replace("72", "NaN"), "no_number"),
        (GOOD.replace("72", '"a lot"'), "no_number"),
        (GOOD.replace('"B"', '"A"'), "duplicate"),
        (GOOD.replace('"B"', '"a"'), "duplicate"),
        (GOOD.replace('{"interest":5,"rating":1}', "5"), "no_scores"),
        (GOOD.replace("},", "]},", 1), "bad_json"),
        (GOOD.replace("72", "7 2"), "bad_json"),
    ],
)
def test_what_cannot_is_an_error_with_a_reason(text, reason):
    with pytest.raises(ParseError) as caught:
        parse_page(text, ("A", "B"))
    assert caught.value.reason == reason


@given(st.text(alphabet="{}[]\"':,AB0159.-interstagfc \n`", max_size=200))
def test_nonsense_is_an_error_and_nothing_worse(text):
    with pytest.raises(ParseError):
        parse_page(text, ("A", "B", "C"))


@given(st.integers(0, len(GOOD)))
def test_a_truncated_answer_is_whole_or_refused(end):
    """Cutting an answer never changes a score: what is left says the same, or is an error."""
    try:
        scores = parse_page(GOOD[:end], ("A", "B"))
    except ParseError:
        return
    assert (scores.interest.tolist(), scores.rating.tolist(), scores.satisfaction) == ([72, 5], [4, 1], 3)


@given(st.integers(1, 60))
def test_ids_are_distinct_and_fill_the_schema(k):
    ids = opaque_ids(k)
    assert len(set(ids)) == k
    assert all(set(name) <= set(string.ascii_uppercase) and len(name) == len(ids[0]) for name in ids)
    schema = page_schema(ids)["properties"]["items"]
    assert schema["required"] == list(ids)
    assert schema["additionalProperties"] is False


def test_pages_too_long_for_ids():
    with pytest.raises(ConfigError, match="676"):
        opaque_ids(677)


def test_only_reasoning_goes():
    assert without_wrapping("<think>x</think>I liked it.") == "I liked it."
    assert without_wrapping("I liked it.") == "I liked it."
    assert json.loads(without_wrapping("```JSON\n{}\n```")) == {}
