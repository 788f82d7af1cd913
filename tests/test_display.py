"""How numbers are shown to people."""

from __future__ import annotations

from clmeta.cli.display import alphas, duration
from clmeta.cli.tables import percent, span


def test_numbers_are_shown_shortly():
    assert alphas({"all": 1.234e-3}) == "alpha 1.2e-03"
    assert alphas(dict.fromkeys("abcd", 1e-3) | {"e": 1e-5}) == "alpha 1.0e-05..1.0e-03"
    assert [duration(s) for s in (8.4, 125, 3725)] == ["8 s", "2 min 05 s", "1 h 02 min"]
    assert percent([0.5]) == "50.0%"
    assert percent([None]) == "-"
    assert span([{"a": 1e-4, "b": 1e-2}, {"a": 1e-2, "b": 1e-2}]) == "1.0e-03 to 1.0e-02"


def test_intervals_are_students():
    """Three values 1, 2, 3 percent: half-width 4.303 / sqrt(3) = 2.48 (t with 2 freedoms)."""
    assert percent([0.01, 0.02, 0.03]) == "2.0% ± 2.5"
