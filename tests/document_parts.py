"""Pages as their reader sees them: the sections, the blocks in each, the commands in a block."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path

from reader_parts import ROOT

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
NUMBER = re.compile(r"(?<![\w.])\d+(?:\.\d+)?(?:e[+-]?\d+)?")


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


def agrees(said: str, shown: str) -> bool:
    """Whether a page shows what was printed: words alike, numbers to a quarter."""
    words = [" ".join(NUMBER.sub("#", text).split()) for text in (said, shown)]
    numbers = [[float(number) for number in NUMBER.findall(text)] for text in (said, shown)]
    close = (abs(a - b) <= 0.25 * abs(b) for a, b in zip(*numbers, strict=False))
    return words[0] == words[1] and all(close)
