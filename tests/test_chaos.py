"""Whatever is killed at random goes on when it is started again: `chaos/kill.py` in little."""

from __future__ import annotations

import pytest
from cases import CASES
from kill import Chaos

#: One of each way to train that needs no Avalanche; killed so often at most.
NAMES = ("adamw", "one by one", "one ends sooner", "MetaOptimize")
KILLS = 3


@pytest.fixture
def chaos(reader, tmp_path):
    cases = [case for case in CASES if case.name in NAMES]
    return Chaos(reader, cases, tmp_path, seed=1)


def test_what_is_killed_leaves_what_it_would_have(chaos):
    results = [chaos.trial(number, KILLS)[1] for number in range(len(NAMES))]
    assert [result.wrong for result in results] == [{}] * len(NAMES)
    assert sum(result.kills for result in results) >= len(NAMES)


def test_a_file_that_was_changed_is_found(chaos):
    case = chaos.cases[0]
    folder = chaos.undisturbed(case).folder
    (part,) = folder.rglob("part-00000.parquet")
    part.write_bytes(part.read_bytes()[:-1])
    (folder / "left.tmp").touch()
    _, result = chaos.trial(0, 1)
    assert result.wrong.keys() == {"unequal"}
    assert sorted(result.wrong["unequal"]) == [
        "left.tmp is missing",
        "seed-0/trajectory/part-00000.parquet differs",
    ]
