"""What is disturbed: commands as users type them, with little to learn and many checkpoints."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

#: Steps that learners who train together do between two looks at the clock.
SEGMENT = 64


@dataclass(frozen=True)
class Case:
    """Something to start, and to start again.

    Attributes:
        kind, name: what it is called.
        step: as `reader.py` takes them; done in a folder in which all goes to ``out``.
        twice: steps that may be done twice after a kill; None where that is counted in seconds.
        slow: needs Avalanche.
        demo: makes the demo small.
    """

    kind: str
    name: str
    step: tuple[str, ...]
    twice: int | None
    slow: bool = False
    demo: bool = False


def stream(tasks: int, steps: int, **options: Any) -> list[str]:
    given = {"tasks": tasks, "steps_per_task": steps, **options}
    return [word for name, value in given.items() for word in ("-s", f"{name}={value}")]


def run(name: str, *words: str, every: int | str = 20, **options: Any) -> Case:
    """A case of ``clmeta run``."""
    options = {"tasks": 2, "steps": 150, **options}
    line = ["clmeta", "run", *stream(**options), "-m", "hidden=8", "--alpha0", "1e-3"]
    line += ["--skip-finished", "--checkpoint-every", str(every), *words, "-o", "out"]
    return Case("run", name, tuple(line), every if isinstance(every, int) else None)


def sweep(name: str, *words: str, chunk: int, every: int = 20) -> Case:
    line = ["clmeta", "sweep", *stream(2, 200), "-m", "hidden=8", "--checkpoint-every", str(every)]
    line += ["--chunk", str(chunk), *words, "-o", "out"]
    return Case("sweep", name, tuple(line), every + SEGMENT if chunk > 1 else every)


TOGETHER = """
from clmeta.replicas import run_replicas
from clmeta.runs.config import RunConfig

lengths = {lengths}
configs = [
    RunConfig(
        seed=seed,
        alpha0=1e-3 * (seed + 1),
        model_options={{"hidden": 8}},
        stream_options={{"tasks": 2, "steps_per_task": length}},
        checkpoint_every={every},
        {options}
    )
    for seed, length in enumerate(lengths)
]
folders = [f"out/run-{{number}}" for number in range(len(lengths))]
run_replicas(configs, folders, chunk={chunk}, along=True)
"""
LOOP = """
import torch
from torch import nn

from clmeta import Checkpoint, MetaOptimize, Recorder
from clmeta.record.runfolder import RunFolder
from clmeta.streams import {stream}, load_dataset

torch.manual_seed(3)
stream = {stream}(load_dataset("digits"), tasks=2, steps_per_task=150, seed=1)
model = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 10))
optimizer = {optimizer}
if not RunFolder("out/mine").finished:
    checkpoint = Checkpoint("out/mine", every={every}, model=model, optimizer=optimizer)
    with Recorder("out/mine", optimizer, resume=checkpoint) as recorder:
        for x, y, task, step in checkpoint.steps(stream):
            output = model(x)
            loss = nn.functional.cross_entropy(output, y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            recorder.record(task, loss, output.argmax(1) == y)
"""


def together(name: str, lengths: tuple[int, ...], chunk: int, options: str = "") -> Case:
    code = TOGETHER.format(lengths=lengths, chunk=chunk, options=options, every=20)
    return Case("replicas", name, ("python", code), 20 + SEGMENT)


def loop(name: str, stream: str, optimizer: str, every: int = 15) -> Case:
    code = LOOP.format(stream=stream, optimizer=optimizer, every=every)
    return Case("loop", name, ("python", code), every)


def avalanche(strategy: str, **options: Any) -> Case:
    line = ["clmeta", "run", "--strategy", strategy, *stream(3, 12), "-m", "hidden=8"]
    for name, value in options.items():
        line += ["--strategy-option", f"{name}={value}"]
    line += ["--skip-finished", "--checkpoint-every", "4", "--no-evaluate", "-o", "out"]
    return Case("avalanche", strategy, tuple(line), 4, slow=True)


MEMORY = {"mem_size": 8, "batch_size_mem": 2}
CASES = [
    run("adamw"),
    run("every step", every=1, steps=40),
    run("seconds", every="0.2s", steps=2000),
    run("two seeds", "--seeds", "0-1"),
    run("two processes", "--seeds", "0-1", "--jobs", "2"),
    run("kept", "--save-model", "--blocks", "layer"),
    run("lion, node", "--base", "lion", "--meta", "rmsprop", "--blocks", "node"),
    run("sgdm, weight, eager", "--base", "sgdm", "--blocks", "weight", "--engine", "eager"),
    run("head, augmented", "--blocks", "head", augment="crop-flip", batch_size=3, steps=90),
    run("diagonal", "--hessian", "diagonal", "--blocks", "tensor", steps=60),
    run("exact", "--hessian", "exact", steps=60),
    run("RAdam", "--base", "torch.optim:RAdam", "--blocks", "layer"),
    run("fixed", "--meta", "none", "--base", "rmsprop"),
    run("abrupt classes", "--stream", "abrupt_classes", "--blocks", "layer"),
    run("labels", "--stream", "permuted_labels", "--weight-decay", "0.1", "--nonfinite", "skip"),
    sweep("in chunks", "--grid", "alpha0=1e-3,2e-3", "--seeds", "0-1", "--jobs", "2", chunk=2),
    sweep("one by one", "--grid", "alpha0=1e-3,2e-3", "--jobs", "2", chunk=1),
    sweep("one process", "--grid", "blocks=scalar,layer", "--seeds", "0-1", "--jobs", "1", chunk=4),
    together("equal", (200, 200, 200), chunk=3),
    together("one ends sooner", (200, 80, 200, 200), chunk=4, options='blocks="layer",'),
    together("two chunks", (120, 120, 120, 120), chunk=2, options='base="lion",'),
    loop("MetaOptimize", "permuted_inputs", "MetaOptimize(model.named_parameters())"),
    loop("Adam", "permuted_labels", "torch.optim.Adam(model.parameters())"),
    Case("demo", "demo", ("clmeta", "demo", "--seeds", "0", "-o", "out"), 15, demo=True),
    avalanche("online"),
    avalanche("replay", **MEMORY),
    avalanche("er-ace", **MEMORY),
    avalanche("der", **MEMORY),
    avalanche("ewc"),
]
KINDS = sorted({case.kind for case in CASES})
