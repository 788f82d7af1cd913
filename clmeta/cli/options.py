"""The options of ``clmeta run`` as types: what each is, its unit and its default.

Every option is None unless given, so that it can change a config read from a file; the default
that the help shows is RunConfig's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

DATA, LEARNER, STEPS, RUN = "Data", "Network and strategy", "Step sizes", "Run"
PAIR = "NAME=VALUE"


def _option(panel: str, text: str, default: str | None, *names: str, **more: Any) -> Any:
    shown = text if default is None else f"{text} Default: {default}."
    return typer.Option(*names, help=shown, show_default=False, rich_help_panel=panel, **more)


Pairs = list[str] | None
Text = str | None
Number = float | None
Flag = bool | None

Stream = Annotated[
    Text, _option(DATA, "Stream or preset; see clmeta list streams.", "permuted_inputs")
]
StreamOption = Annotated[
    Pairs,
    _option(
        DATA,
        "Option of the stream, e.g. -s tasks=5 -s steps_per_task=2000. Repeatable.",
        None,
        "--stream-option",
        "-s",
        metavar=PAIR,
    ),
]
Dataset = Annotated[
    Text,
    _option(
        DATA,
        "Data set, .npz file or image folder; see clmeta list datasets. A preset brings its own.",
        "digits",
    ),
]
DatasetOption = Annotated[
    Pairs,
    _option(DATA, "Option of the data set, e.g. image_size=32 (pixels).", None, metavar=PAIR),
]
DataRoot = Annotated[Text, _option(DATA, "Folder of named data sets.", "data")]
Download = Annotated[Flag, _option(DATA, "Fetch a data set that is missing.", "yes")]

Model = Annotated[
    Text,
    _option(LEARNER, "Network, or package.module:factory; see clmeta list models.", "mlp"),
]
ModelOption = Annotated[
    Pairs,
    _option(
        LEARNER,
        "Option of the network, e.g. -m hidden=128 (units). Repeatable.",
        None,
        "--model-option",
        "-m",
        metavar=PAIR,
    ),
]
Strategy = Annotated[
    Text, _option(LEARNER, "How to learn from it; see clmeta list strategies.", "plain")
]
StrategyOption = Annotated[
    Pairs, _option(LEARNER, "Option of the strategy. Repeatable.", None, metavar=PAIR)
]

Base = Annotated[
    Text,
    _option(STEPS, "Base update: a rule, or package.module:name of a torch optimiser.", "adamw"),
]
BaseOption = Annotated[
    Pairs,
    _option(
        STEPS, "Option of the base rule, e.g. accumulate=true. Repeatable.", None, metavar=PAIR
    ),
]
Meta = Annotated[
    Text, _option(STEPS, "Meta update: a rule, or none for a fixed step size.", "adam")
]
MetaOption = Annotated[
    Pairs, _option(STEPS, "Option of the meta rule. Repeatable.", None, metavar=PAIR)
]
Blocks = Annotated[
    Text,
    _option(
        STEPS,
        "Which weights share a step size: scalar, layer, head, tensor, node, weight, or "
        "parameter-name prefixes as body=features,classifier.1;head=classifier.3.",
        "scalar",
    ),
]
Alpha0 = Annotated[Number, _option(STEPS, "Step size at the start, above 0.", "1e-4")]
Eta = Annotated[Number, _option(STEPS, "Meta step size: of log alpha, per step.", "1e-3")]
Gamma = Annotated[
    Number, _option(STEPS, "Discount per step, in [0, 1]; 1 for stationary streams.", "0.999")
]
WeightDecay = Annotated[
    Number,
    _option(STEPS, "Decoupled: each step also shrinks weights by alpha times this.", "0"),
]
AlphaMin = Annotated[Number, _option(STEPS, "Smallest step size.", "none")]
AlphaMax = Annotated[Number, _option(STEPS, "Largest step size.", "none")]
Nonfinite = Annotated[
    Text,
    _option(STEPS, "An update that is not finite: raise ends the run, skip counts it.", "raise"),
]
Hessian = Annotated[
    Text,
    _option(STEPS, "Second derivatives in the trace: free (none), exact or diagonal.", "free"),
]

Config = Annotated[
    Path | None,
    _option(
        RUN,
        "Start from a run's config.json, or its folder; other options then change it.",
        None,
        "--config",
        "-c",
    ),
]
Seeds = Annotated[Text, _option(RUN, "One run for each seed, e.g. 0-4 or 0,1,7-9.", "0")]
Device = Annotated[Text, _option(RUN, "cpu, cuda, cuda:1, ...", "cpu")]
Threads = Annotated[
    int | None, _option(RUN, "CPU threads of a run; at batch size one, 1 is fastest.", "1")
]
Evaluate = Annotated[Flag, _option(RUN, "Measure test accuracy at each task's end.", "yes")]
Name = Annotated[
    Text, _option(RUN, "What tables and figures call the method.", "made of the rules")
]
Output = Annotated[
    Path | None,
    _option(
        RUN,
        "Folder that gets a run folder seed-N for each seed.",
        "in runs/, named after the options",
        "--output",
        "-o",
    ),
]
Jobs = Annotated[
    int, _option(RUN, "Runs at a time, each in its process.", "1", "--jobs", "-j", min=1)
]
Overwrite = Annotated[bool, _option(RUN, "Replace finished runs.", None, "--overwrite")]
SkipFinished = Annotated[
    bool, _option(RUN, "Keep finished runs and do the others.", None, "--skip-finished")
]
