"""Pages as their reader sees them: the sections, the blocks in each, the commands in a block."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
LIBRARIES = ("clmeta.cli", "typer", "clmeta.streams", "clmeta.analysis", "sklearn.datasets")
NUMBER = re.compile(r"(?<![\w.])\d+(?:\.\d+)?(?:e[+-]?\d+)?")

Step = list[str]


@dataclass
class Section:
    """What stands under one heading: its prose, and its blocks as (language, text)."""

    page: str
    heading: str
    prose: str = ""
    blocks: list[tuple[str, str]] = field(default_factory=list)

    def __str__(self) -> str:
        return f"{self.page}: {self.heading}"

    @property
    def code(self) -> str:
        """All Python in it."""
        return "\n".join(text for language, text in self.blocks if language == "python")

    @property
    def commands(self) -> list[list[str]]:
        """The words of each command in its console blocks."""
        blocks = [text for language, text in self.blocks if language == "console"]
        return [words for text in blocks for words in self.commands_of(text)]

    def commands_of(self, block: str) -> list[list[str]]:
        """The words of each command of a console block: ``$``, the command, a comment."""
        lines = block.replace("\\\n", " ").splitlines()
        wrong = [line for line in lines if not line.startswith("$ ")]
        assert not wrong, f"{self}: commands alone, after '$ ', are tried; not {wrong}"
        return [shlex.split(line[2:], comments=True) for line in lines]


def read(page: Path) -> list[Section]:
    """The sections of a page."""
    name = page.relative_to(ROOT).as_posix()
    found, language, block = [Section(name, "(top)")], None, ""
    for line in page.read_text(encoding="utf-8").splitlines(keepends=True):
        if line.startswith("```"):
            if language is not None:
                found[-1].blocks.append((language, block))
            language, block = (line[3:].strip(), "") if language is None else (None, "")
        elif language is not None:
            block += line
        elif line.startswith("#"):
            found.append(Section(name, line.strip("# \n")))
        else:
            found[-1].prose += line
    return found


SECTIONS = [section for page in PAGES for section in read(page)]


class Reader:
    """A running ``reader.py``; ``libraries`` are loaded once, for all that it reads."""

    def __init__(self, *libraries: str) -> None:
        command = [sys.executable, str(ROOT / "tests" / "reader.py"), *libraries]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
        )

    def __call__(self, folder: Path, steps: list[Step]) -> list[str]:
        """Do the steps in ``folder/here``; returns what each printed. Fails as they do."""
        for said_before in folder.glob("said-*.txt"):
            said_before.unlink()
        file = folder / "steps.json"
        file.write_text(json.dumps(steps), encoding="utf-8")
        assert self.process.stdin and self.process.stdout
        print(file, file=self.process.stdin, flush=True)
        status = self.process.stdout.readline().strip()
        outputs = [folder / f"said-{number}.txt" for number in range(len(steps))]
        said = [output.read_text(encoding="utf-8") for output in outputs if output.exists()]
        assert status == "0", f"status {status} of {steps[len(said) - 1]}:\n{said[-1]}"
        return said

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


def agrees(said: str, shown: str) -> bool:
    """Whether a page shows what was printed: words alike, numbers to a quarter."""
    words = [" ".join(NUMBER.sub("#", text).split()) for text in (said, shown)]
    numbers = [[float(number) for number in NUMBER.findall(text)] for text in (said, shown)]
    close = (abs(a - b) <= 0.25 * abs(b) for a, b in zip(*numbers, strict=False))
    return words[0] == words[1] and all(close)
