"""Every parameter is in exactly one block."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clmeta import BadArgument
from clmeta.blocks import BLOCKS, layer_of, partition_names

LAYERS = ["features.0", "features.3", "classifier.1", "classifier.10"]
NAMES = [f"{layer}.{kind}" for layer in LAYERS for kind in ("weight", "bias")]

names = st.lists(
    st.lists(st.sampled_from("abcd"), min_size=1, max_size=4).map(".".join),
    min_size=1,
    max_size=12,
    unique=True,
)


@given(names=names, way=st.sampled_from(BLOCKS.names()))
def test_every_way_puts_each_parameter_in_exactly_one_block_in_order(names, way):
    try:
        blocks = partition_names(names, way)
    except BadArgument:
        assert way == "head"
        assert len({layer_of(name) for name in names}) == 1
        return
    assert sorted(n for members in blocks.values() for n in members) == sorted(names)
    for members in blocks.values():
        assert members == [name for name in names if name in members]
        assert members


def test_head_is_the_last_layer_and_body_the_rest():
    assert partition_names(NAMES, "head") == {"body": NAMES[:6], "head": NAMES[6:]}


def test_prefixes_match_whole_parts_of_a_name():
    blocks = partition_names(NAMES, {"one": "classifier.1", "rest": "*"})
    assert blocks["one"] == ["classifier.1.weight", "classifier.1.bias"]
    assert "classifier.10.weight" in blocks["rest"]


def test_several_prefixes_and_their_order():
    blocks = partition_names(NAMES, {"late": ["classifier"], "early": ["features.0", "features.3"]})
    assert list(blocks) == ["late", "early"]
    assert blocks["early"] == NAMES[:4]


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        ({"a": "features"}, r"parameters in no block: classifier\.1\.weight"),
        ({"a": "features", "b": "features.0", "c": "*"}, "is in block 'a' already"),
        ({"a": "feature", "b": "*"}, r"no parameter has this prefix; layers: features\.0"),
        ({"a": "*", "b": "*"}, "only one block may take the rest"),
        ({"a": ["features", "classifier"], "b": "*"}, "hold no parameter"),
        ({}, "name at least one block"),
        ("layers", "did you mean 'layer'"),
    ],
)
def test_bad_blocks_are_refused_with_the_mend(blocks, message):
    with pytest.raises(BadArgument, match=message):
        partition_names(NAMES, blocks)
