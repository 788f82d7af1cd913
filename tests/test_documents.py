"""Whoever types what README and docs show gets what they say, the second time too.

The second time of pages other than README is in the slow set.

A section is done as a whole, in order, in one folder: its Python in one process, its commands by
the command line; a block that begins with the name of a file, as a comment, is saved under that
name instead. A ``text`` block shows what the step before it prints.
"""

from __future__ import annotations

import configparser
import importlib.util
import inspect
import re
import subprocess
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from document_parts import PAGES, SECTIONS, Section, agrees
from reader_parts import ROOT, Reader, Step, Task

import clmeta

#: Commands that take minutes are planned only.
PLANNED = ("sweep", "reproduce")
#: Sections that go on where an earlier one ends, and are done with it.
AFTER = {
    "README.md: Recording your own loop": "README.md: clmeta",
    "README.md: Going on after a kill": "README.md: clmeta",
}
#: Runs that a section finds in a folder, in little.
SMALL_RUNS = """
from clmeta.replicas import run_replicas
from clmeta.runs.config import RunConfig

small = {{"stream_options": {{"tasks": 2, "steps_per_task": 20}}}}
runs = [(method, seed) for method in {methods} for seed in range({seeds})]
configs = [RunConfig(**small, **method, seed=seed) for method, seed in runs]
run_replicas(configs, [f"{folder}/{{n}}" for n in range(len(runs))], overwrite=True)
"""
FIXED = [{"meta": "none", "alpha0": 1e-4}, {"meta": "none", "alpha0": 1e-3}]
DEMO = [{"meta": "none", "alpha0": 2e-3, "name": "fixed 0.002"}, {"blocks": "layer"}]
PHOTOS = """
import numpy as np

x, y = np.random.randint(0, 256, (200, 32, 32, 3), np.uint8), np.arange(200) % 100
np.savez({name!r}, x_train=x, y_train=y, x_test=x, y_test=y)
"""
BEFORE = {
    "README.md: Going on after a kill": 'import shutil; shutil.rmtree("runs/long", True)\n',
    "README.md: Sweeps": SMALL_RUNS.format(methods=FIXED, seeds=8, folder="runs/fixed"),
    "README.md: Analysis": SMALL_RUNS.format(methods=DEMO, seeds=2, folder="demo/runs"),
    "README.md: The paper's experiment": PHOTOS.format(name="photos.npz"),
    "docs/reproduction.md: The paper's Figure 4, on other photographs": PHOTOS.format(
        name="tinyimagenet100.npz"
    ),
    "docs/sweeps.md: Choosing the best": SMALL_RUNS.format(
        methods=FIXED, seeds=5, folder="runs/fixed"
    ),
}


def together() -> list[list[Section]]:
    """Sections with something to do, those that go on behind those that they follow."""
    found = {str(section): [section] for section in SECTIONS if any(steps_of(section))}
    for later, earlier in AFTER.items():
        found[earlier] += found.pop(later)
    return list(found.values())


def steps_of(section: Section) -> tuple[list[Step], dict[int, str]]:
    """What a reader of a section does, and what the page says that steps print."""
    steps: list[Step] = []
    shown = {}
    if str(section) in BEFORE:
        steps.append(["python", BEFORE[str(section)]])
    for language, text in section.blocks:
        file = re.match(r"# (\w+\.(?:py|toml))\n", text)
        if file:
            steps.append(["file", file[1], text])
        elif language == "python":
            steps.append(["python", text])
        elif language == "console":
            steps += filter(None, map(step_of, section.commands_of(text)))
        else:
            assert language == "text", f"{section}: say here how to try {language or 'this'}"
            shown[len(steps) - 1] = text
    return steps, shown


def step_of(words: list[str]) -> Step | None:
    """How a command is tried; None where that takes a network, a cluster or minutes.

    That such a command knows the options shown is tested as well, as of all commands.
    """
    program, first, *others = words
    assert program in ("clmeta", "python", "make", "pip", "ls"), f"say here how to try {words}"
    if program == "ls":
        return ["python", f"import glob; print(*sorted(glob.glob('*', root_dir={first!r})))"]
    downloads = first == "reproduce" and "--dataset" not in others
    if program != "clmeta" or first == "demo" or downloads or "slurm" in others:
        return None
    return [*words, "--dry-run"] if first in PLANNED else words


def often(things: Iterable[Any]) -> Iterator[Any]:
    """Each thing with how often it is done, by its name: README twice, others once for now."""
    for each in things:
        name = ", ".join(map(str, each)) if isinstance(each, list) else each.name
        if not name.startswith("README.md"):
            yield pytest.param(each, 1, id=name)
            yield pytest.param(each, 2, id=f"{name}, twice", marks=pytest.mark.slow)
        else:
            yield pytest.param(each, 2, id=f"{name}, twice")


@pytest.mark.parametrize(("sections", "times"), [*often(together())])
def test_pages_do_what_they_say(sections, times, readers, tmp_path):
    parts = [steps_of(section) for section in sections]
    code = "".join(section.code for section in sections)
    slow = ["avalanche_parts"] if re.search(r"avalanche|clmeta\.strategies", code) else []
    for _ in range(times):
        task = do(readers(*slow), tmp_path, *(step for steps, _ in parts for step in steps))
        first = 0
        for steps, shown in parts:
            for at, text in shown.items():
                said = task.out(first + at)
                assert agrees(said, text), f"a page shows\n{text}\nand prints\n{said}"
            first += len(steps)


def do(reader: Reader, folder: Path, *steps: Step) -> Task:
    """Do the steps, none of which may fail."""
    task = reader.do(folder, *steps)
    assert task.status == 0, f"status {task.status} of {steps[task.done - 1]}:\n{task.failure}"
    return task


def mentioned() -> set[tuple[str, ...]]:
    """Every command of the pages, in blocks and within sentences, as words."""
    found = {tuple(words) for section in SECTIONS for words in section.commands}
    for section in SECTIONS:
        for code in re.findall(r"`([^`]+)`", section.prose):
            words = tuple(code.split())
            if words[0] in ("clmeta", "make", "python") and len(words) > 1:
                found.add(words)
    return found


def test_commands_and_their_options_are_known(reader, tmp_path):
    scripts = [words for words in mentioned() if words[0] == "python" and words[1][-3:] == ".py"]
    commands = sorted([*scripts, *(words for words in mentioned() if words[0] == "clmeta")])
    steps = [
        ["clmeta", words[1], "--help"] if words[0] == "clmeta" else ["script", words[1], "--help"]
        for words in commands
    ]
    task = do(reader, tmp_path, *steps)
    unknown = [
        (*words, option)
        for words, text in zip(commands, map(task.out, range(len(steps))), strict=True)
        for option in re.findall(r"(?<!\S)--?[a-z][\w-]*", " ".join(words))
        if not re.search(rf"(?<![\w-]){option}(?![\w-])", text)
    ]
    assert not unknown


@pytest.mark.parametrize("words", sorted(w for w in mentioned() if w[0] == "make"), ids=" ".join)
def test_make_knows_its_targets(words):
    done = subprocess.run([words[0], "-n", *words[1:]], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_what_pip_installs_is_declared():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    asked = [words[-1] for words in mentioned() if words[:2] == ("pip", "install")]
    extras = set(chain(*(re.findall(r"\[(.*)\]", what)[:1] for what in asked)))
    assert asked and extras <= set(setup["options.extras_require"])


EXAMPLES = sorted((ROOT / "docs" / "examples").glob("*.py"))


@pytest.mark.parametrize(("example", "times"), [*often(EXAMPLES)])
def test_an_example_runs(example, times, reader, tmp_path):
    for _ in range(times):
        words = [f"docs/examples/{example.name}", "--steps", "5", "--out", "figure.png"]
        do(reader, tmp_path, ["script", *words])
        assert (tmp_path / "figure.png").stat().st_size


# ---- what pages point at -----------------------------------------------------------------------


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CHANGELOG.md"], ids=lambda page: page.name)
def test_links_and_figures_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        file, _, anchor = target.partition("#")
        if "://" in file:
            continue
        found = (page.parent / file).resolve() if file else page
        assert found.exists() and found.is_relative_to(ROOT), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", found.read_text(encoding="utf-8"), re.M)
            assert anchor in [re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in headings]


def test_the_first_page_leads_to_all_others():
    links = re.findall(r"\]\(([\w/]+\.md)\)", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert {ROOT / link for link in links} >= set(PAGES[1:])


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CHANGELOG.md"], ids=lambda page: page.name)
def test_names_and_files_in_sentences_exist(page):
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    for code in re.findall(r"`([^`]+)`", text):
        for name in re.findall(r"(?<![\w./~])clmeta(?:\.[A-Za-z_]\w*)+", code):
            assert resolves(name), name
        for path in re.findall(
            r"(?<![\w./~])(?:clmeta|streams|strategies|analysis|docs|tests|benchmarks)/[\w./]*",
            code,
        ):
            assert (ROOT / path).exists(), path


def resolves(name: str) -> bool:
    """Whether a dotted name leads somewhere; its last part is not loaded, which may be slow."""
    home, _, last = name.rpartition(".")
    if not home:
        return True
    if not resolves(home):
        return False
    try:
        found: Any = importlib.import_module(home)
    except ModuleNotFoundError:  # a class or function
        found = getattr(importlib.import_module(home.rpartition(".")[0]), home.rpartition(".")[2])
        return last in dir(found)
    return last in dir(found) or importlib.util.find_spec(name) is not None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_name_only_pages_that_readers_have(page):
    named = re.findall(r"[\w./-]*\w\.md\b", page.read_text(encoding="utf-8"))
    assert [name for name in named if not (page.parent / name).exists()] == []


def test_the_optimiser_has_what_is_said_of_it():
    (section,) = (each for each in SECTIONS if str(each) == "README.md: The optimiser")
    call = re.search(r"`MetaOptimize\(([^)]*)\)`", section.prose)
    rows = re.findall(r"^\| `(\w+)` \|", section.prose, re.M)
    known = inspect.signature(clmeta.MetaOptimize).parameters
    assert call and set(rows) <= set(call[1].split(", ")) <= set(known)
    for method in re.findall(r"`(\w+)\(\)`", section.prose):
        assert callable(getattr(clmeta.MetaOptimize, method)), method


def test_the_first_screen_is_a_sentence_the_installation_and_code():
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    blocks = [number for number, line in enumerate(lines) if line.startswith("```")]
    assert [lines[number] for number in blocks[0:4:2]] == ["```console", "```python"]
    assert blocks[3] < 34
