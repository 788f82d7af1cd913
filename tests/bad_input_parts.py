"""What goes wrong in people's input: words, values and files."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st

from clmeta.cli.app import app
from clmeta.runs.config import OPTIONS

#: Options that do not stop at looking: they fetch data, or start training.
LEFT_OUT = {"download", "dry_run", "help", "version"}

# ---- words ---------------------------------------------------------------------------------

NUMBERS = [
    *("0", "-1", "1", "2", "1.5", "1e-3", ".5", "1e400", "-inf", "nan", "inf", "1e30", "1e-60"),
    *("9" * 20, "9" * 400, "9" * 5000, "-" + "9" * 5000, "0x10", "1_000", "\u0663", "2 ** 3"),
    *(str(2**63), str(2**63 - 1), str(10**12), "1000000000000000000"),
]
NAMES = [
    *("mlp", "layer", "adam", "none", "plain", "auto", "native", "digits", "stationary", "cpu"),
    *("adamx", "MLP", "replay", "meta", "cuda", "cuda:99", "cpu:-1", "mps", "xla:0", "true"),
    *("nowhere:net", "math:pi", "math:sqrt", "json:JSONDecoder", "clmeta.rules:nothing", ":", "a:"),
    *("torch.optim:AdamW", "torch.optim:nothing", "torch.nn:Linear", "a:b:c", "string", "json"),
]
TEXTS = [
    *("", " ", "=", "a=", "=a", "a=1", "a=1,a=2", ",", ";", "a=b;c", "[/]", "\x1b[2J", "\udcff"),
    *("~nouser/x", "~", ".", "/dev/null", "nowhere.npz", "broken.npz", "file", "*", "["),
    *("[" * 100_000, "{" * 5000, '{"a":' * 2000, "[1,2", '{"a": 1}', '"x', "null", "\x00", "a\nb"),
    *("x" * 5000, "\U0001f600" * 300, "0-", "-3", "4-1", "0-99999999999", "1,1", "0-4", "3:2:1:0"),
]
words = st.one_of(
    st.sampled_from([*NUMBERS, *NAMES, *TEXTS]),
    st.text(max_size=12),
    st.builds("{}={}".format, st.sampled_from([*OPTIONS, "tasks"]), st.sampled_from(NUMBERS)),
    st.builds("{}={}".format, st.text(max_size=6), st.sampled_from([*NAMES, *TEXTS])),
)
#: Options of things, which take keywords: the names of all that we fill in ourselves among them.
keywords = st.builds(
    "{}={}".format,
    st.sampled_from(
        [
            *("tasks", "steps_per_task", "batch_size", "epochs", "repeats", "augment", "head"),
            *("seed", "device", "data", "name", "hidden", "channels", "classes_per_task", "model"),
            *("data_root", "download", "dataset", "image_size", "params", "lr", "rho", "lam"),
            *("optimizer", "stream", "recorder", "mem_size", "self", "input_shape", "n_classes"),
        ]
    ),
    st.sampled_from([*NUMBERS, *NAMES, *TEXTS[:12], "[64,64]", "[0]", "[[1]]", '"x"', "{}"]),
)


@st.composite
def lines(draw: st.DrawFn) -> list[str]:
    """A command with some of its options, each with any words; what would train only looks."""
    name = draw(st.sampled_from(["run", "run", "sweep", "sweep", "best", "plot", "list", "demo"]))
    line = [name]
    options = [p for p in app.commands[name].params if p.name not in LEFT_OUT]
    for option in draw(st.lists(st.sampled_from(options), min_size=1, max_size=3)):
        of_a_thing = str(option.name).endswith("_options")
        word = draw(keywords if of_a_thing and draw(st.integers(0, 3)) else words)
        if option.param_type_name == "argument":
            line.append(draw(st.sampled_from(["done", "file.json", "file.toml", word])))
        elif getattr(option, "is_flag", False):
            line.append(draw(st.sampled_from([*option.opts, *option.secondary_opts])))
        else:
            line.append(f"{draw(st.sampled_from(option.opts))}={word}")
    if name in ("run", "sweep"):
        line += ["--dry-run", "--no-download"]
    elif name == "demo":
        line += ["--seeds", draw(st.sampled_from(["", "x", "4-1", "9" * 5000]))]
    return line


# ---- values --------------------------------------------------------------------------------


class Odd:
    """Neither number nor text, and it cannot even be shown."""

    def __repr__(self) -> str:
        raise RuntimeError("no")


def nested(depth: int) -> Any:
    """A list in a list, so often."""
    inside: Any = 1
    for _ in range(depth):
        inside = [inside]
    return inside


VALUES: list[Any] = [
    *(None, True, False, 0, -1, 1, 2, 3.5, 1e-3, math.nan, math.inf, -math.inf, 1e300, 1e-300),
    *(10**20, 10**400, -(10**400), 10**5000, 2**63, 2**63 - 1, 1j, np.int64(3), np.float32(0.5)),
    *("", " ", "x", "adam", "layer", "digits", "nowhere:net", "math:pi", "\0", "\x1b[2J", "\udcff"),
    *("~nouser/x", "x" * 5000, b"x", Path("x"), Path("~nouser"), [], [1], ["a"], (1, 2), {}, set()),
    *({"a": 1}, {1: 2}, {"a": math.nan}, {"": ""}, {"x": {"y": [None]}}, {"name": 0}, {"data": 1}),
    *(nested(60), nested(5000), {"a": nested(900)}, range(3), Odd(), object(), len, int, print),
    *(np.zeros(3), np.zeros((2, 2)), np.array(["a"]), torch.zeros(()), torch.zeros(3), iter([])),
]
values = st.integers(0, len(VALUES) - 1).map(lambda at: VALUES[at])

json_values = st.recursive(
    st.sampled_from([None, True, False, 0, -1, 1, 2, 3.5, 1e-3, 1e300, 1e-300, 10**20, 10**400])
    | st.sampled_from([*NAMES, *TEXTS]),
    lambda inside: (
        st.lists(inside, max_size=3)
        | st.dictionaries(st.sampled_from(["tasks", "name", "data", "a", "*"]), inside, max_size=2)
    ),
    max_leaves=4,
)
ENTRIES = [*OPTIONS, "resolved", "method", "run", "grid", "runs", "seeds", "slurm", "output", "x"]
contents = st.dictionaries(st.sampled_from(ENTRIES), json_values, min_size=1, max_size=3)
files = st.one_of(
    contents.map(lambda content: json.dumps(content).encode("utf-8", "surrogatepass")),
    contents.map(lambda run: json.dumps({"run": run}).encode("utf-8", "surrogatepass")),
    st.sampled_from(
        [
            *(b"[" * 100_000, b'{"a":' * 90_000, b"a = " + b"[" * 9000, b"{", b"", b"\xff\xfe"),
            *(b"null", b"3", b'{"resolved": 1}', b'{"resolved": {"stream": 0}}', b"a.b.c = 1"),
            *(b'dataset = "a\\u0000b"', b"alpha0 = " + b"9" * 5000, b'{"seed": ' + b"9" * 5000),
            *(b'{"alpha0": ' + b"9" * 400 + b"}", b"[[runs]]\n[[runs]]", b"seeds = [[0]]"),
        ]
    ),
    st.binary(max_size=40),
)
