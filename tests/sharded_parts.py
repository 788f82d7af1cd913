"""Networks sharded over two processes, each compared with the whole network beside it."""

from __future__ import annotations

import importlib
import os
import traceback
import warnings

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from contract_parts import KINDS, SETTINGS
from torch import nn
from torch.distributed.fsdp import fully_shard

from clmeta import MetaOptimize

WORLD = 2


def net():
    """Rows that two processes share unevenly, and a bias that one of them has nothing of."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 1))


def sharded():
    model = net()
    for layer in (model[0], model[2]):
        fully_shard(layer)
    return fully_shard(model)


def optimizer_of(model, kind, **changes):
    return MetaOptimize(model.named_parameters(), **{**SETTINGS, **KINDS[kind], **changes})


def learn(model, optimizer, steps=4, seed=1):
    inputs = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(8, 4, generator=inputs)).square().mean().backward()
        optimizer.step()


def full(x):
    return x.full_tensor() if hasattr(x, "full_tensor") else x


def same(first, second, **how):
    """Whether two (network, optimiser) pairs have the same numbers, wherever they are."""
    for p, q in zip(first[0].parameters(), second[0].parameters(), strict=True):
        torch.testing.assert_close(full(p.detach()), full(q.detach()), **how)
    for reading in ("step_sizes", "meta_gradients", "trace_norms"):
        ours, theirs = (getattr(pair[1], reading)() for pair in (first, second))
        assert ours.keys() == theirs.keys()
        for name in ours:
            a, b = torch.tensor(ours[name]), torch.tensor(theirs[name])
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def _work(rank, laws, folder):
    # Errors of warnings are the tests' own process's.
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=WORLD)
    for name, (law, *args) in laws.items():
        said = "holds"
        try:
            law(rank, *args)
        except BaseException:
            said = traceback.format_exc()
        (folder / f"{name} {rank}").write_text(said)
        if said != "holds":  # the other process is not to wait for this one
            os._exit(1)
    dist.barrier()
    dist.destroy_process_group()


def in_two_processes(reader, module, folder):
    """What became of each of a module's ``laws(folder)`` in two processes, by name.

    A law is ``law(rank, *args)``; "holds" if it does, in both.
    """
    code = f"""
import sys
sys.path.insert(0, {os.path.dirname(__file__)!r})
from pathlib import Path
import sharded_parts
sharded_parts.start({module!r}, Path({str(folder)!r}))
"""
    task = reader.do(folder, ["python", code])
    found = {}
    for name in importlib.import_module(module).laws(folder):
        files = [folder / f"{name} {rank}" for rank in range(WORLD)]
        said = [file.read_text() if file.exists() else task.err() for file in files]
        found[name] = "holds" if said == ["holds"] * WORLD else "\n".join(said)
    return found


def start(module, folder):
    """Two processes that try all laws of a module; this one has the libraries already."""
    laws = importlib.import_module(module).laws(folder)
    mp.start_processes(_work, (laws, folder), nprocs=WORLD, start_method="fork")
