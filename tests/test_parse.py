"""Words of the command line to values."""

from __future__ import annotations

import pytest

from clmeta.errors import BadArgument
from clmeta.runs.parse import parse_blocks, parse_options, parse_seeds, parse_value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5", 5),
        ("1e-3", 1e-3),
        (".5", 0.5),
        ("true", True),
        ("True", True),
        ("False", False),
        ("None", None),
        ("null", None),
        ("[64, 64]", [64, 64]),
        ("crop-flip", "crop-flip"),
    ],
)
def test_values_are_json_or_text(text, value):
    assert parse_value(text) == value
    assert parse_options("x", [f"some-name={text}"]) == {"some_name": value}


def test_blocks_are_names_or_prefixes():
    assert parse_blocks("blocks", "layer") == "layer"
    written = parse_blocks("blocks", "body=features, classifier.1; head=classifier.3")
    assert written == {"body": ["features", "classifier.1"], "head": ["classifier.3"]}
    assert parse_blocks("blocks", '{"body": "features", "head": "*"}') == {
        "body": "features",
        "head": "*",
    }
    for wrong in ("body=", "body=a;body=b", "=a", "body=a;b", "{body"):
        with pytest.raises(BadArgument, match="blocks="):
            parse_blocks("blocks", wrong)


def test_seeds_are_numbers_and_ranges():
    assert parse_seeds("seeds", "3") == [3]
    assert parse_seeds("seeds", "0-2, 7,9-10") == [0, 1, 2, 7, 9, 10]
    for wrong in ("", "a", "1-", "-1", "1,1", "0-2,1"):
        with pytest.raises(BadArgument, match="seeds="):
            parse_seeds("seeds", wrong)


def test_options_are_given_once_with_a_value():
    with pytest.raises(BadArgument, match="twice"):
        parse_options("stream-option", ["a=1", "a=2"])
