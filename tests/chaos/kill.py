"""Kill everything that trains, start it again, and compare what it leaves with a run never killed.

    python tests/chaos/kill.py --kills 1000 [--kinds run,sweep,...] [--seed 0] [--only 17]

Runs, sweeps, replicas, one's own loop, the demo and Avalanche's strategies are started, each as
processes of their own, and killed: all of them, the first one or a worker, by SIGKILL or SIGTERM,
at random moments or in the middle of a write; or their disk is full, their folder closed, or their
files may not grow. The same command is started again until it ends by itself.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

from cases import CASES, KINDS, Case  # noqa: E402
from reader_parts import LIBRARIES, Reader  # noqa: E402
from trial import KILLS, WAYS, Place, Result, Trial, Undisturbed  # noqa: E402

WRONG = ("unreadable", "unequal", "lost", "leftovers", "stuck", "hangs", "tracebacks")
#: Most disturbances of one case before it is left to end.
MOST = 12


class Chaos:
    """Does trial after trial; each is known by its number and the seed."""

    def __init__(self, reader: Reader, cases: list[Case], folder: Path, seed: int) -> None:
        self.reader, self.cases, self.folder, self.seed = reader, cases, folder, seed
        self.known: dict[Case, Undisturbed] = {}

    def undisturbed(self, case: Case) -> Undisturbed:
        if case not in self.known:
            place = self.folder / "undisturbed" / str(len(self.known))
            self.known[case] = Place(self.reader, case, place, []).undisturbed()
        return self.known[case]

    def trial(self, number: int, most: int = MOST) -> tuple[Case, Result]:
        """The trial of a number, with so many kills at most: the cases take turns."""
        case = self.cases[number % len(self.cases)]
        undisturbed = self.undisturbed(case)
        place = Place(self.reader, case, self.folder / str(number), undisturbed.runs)
        chance = random.Random(f"{self.seed} {number}")
        return case, Trial(place, undisturbed, chance, WAYS).do(chance.randint(1, most))


def table(found: dict[str, list[Result]]) -> str:
    """A line a kind, and one of all."""
    ways = [*KILLS, *(way for way in WAYS if way not in KILLS)]
    head = ["", "trials", "starts", *ways, "twice", *WRONG]
    rows = [head]
    every = [each for results in found.values() for each in results]
    for name, results in {**found, "all": every}.items():
        done = sum((each.done for each in results), Counter())
        wrong = [sum(len(each.wrong.get(kind, ())) for each in results) for kind in WRONG]
        twice = max((each.twice for each in results), default=0)
        starts = sum(each.starts for each in results)
        row = [len(results), starts, *(done[way] for way in ways), f"{twice:.0f}", *wrong]
        rows.append([name, *map(str, row)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(c.rjust(w) for c, w in zip(r, widths, strict=True)) for r in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=1000, help="how many at least")
    parser.add_argument("--kinds", default=",".join(KINDS), help="of these, with commas between")
    parser.add_argument("--seed", type=int, default=0, help="another one: other moments")
    parser.add_argument("--only", type=int, help="the trial of this number alone")
    parser.add_argument("--minutes", type=float, default=1e9, help="no trial begins after these")
    parser.add_argument("--folder", type=Path, help="kept; by default a temporary one")
    options = parser.parse_args()
    kinds = options.kinds.split(",")
    unknown = set(kinds) - set(KINDS)
    if unknown:
        parser.error(f"--kinds {options.kinds}: {', '.join(unknown)}: choose from {KINDS}")
    cases = [case for case in CASES if case.kind in kinds]
    slow = ["avalanche_parts"] if any(case.slow for case in cases) else []
    found: dict[str, list[Result]] = {}
    started, killed, number = time.monotonic(), 0, options.only or 0
    reader = Reader(*LIBRARIES, *slow)
    folder = Path(tempfile.mkdtemp(prefix="chaos-")) if options.folder is None else options.folder
    print(f"seed {options.seed}; what goes wrong stays in {folder}", flush=True)
    try:
        chaos = Chaos(reader, cases, folder.resolve(), options.seed)
        while killed < options.kills and time.monotonic() - started < 60 * options.minutes:
            case, result = chaos.trial(number)
            found.setdefault(case.kind, []).append(result)
            killed += result.kills
            for kind, all_of_it in result.wrong.items():
                print(f"--only {number} ({case.kind}, {case.name}): {kind}", flush=True)
                print(*(f"    {each}" for each in all_of_it[:5]), sep="\n", flush=True)
            if options.only is not None:
                break
            number += 1
    finally:
        reader.close()
    print(table(found))
    print(f"{killed} kills in {(time.monotonic() - started) / 60:.1f} minutes")
    sys.exit(any(each.wrong for results in found.values() for each in results))


if __name__ == "__main__":
    main()
