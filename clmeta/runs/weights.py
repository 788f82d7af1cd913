"""The network that a run ends with: kept in its folder, and given back."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from clmeta.errors import BadArgument, RunFolderError
from clmeta.lookup import is_path
from clmeta.models import MODELS, make_model
from clmeta.record.files import write_atomically
from clmeta.record.runfolder import RunFolder
from clmeta.runs.config import FACTS, RunConfig
from clmeta.runs.imports import import_modules
from clmeta.runs.trust import check_trusted

#: Of what model.pt holds.
VERSION = 1


def save_model(folder: str | os.PathLike[str], model: nn.Module) -> None:
    """Write a network's weights and buffers as the run folder's ``model.pt``.

    Raises:
        RunFolderError: if it cannot be written.
    """
    # Copies, since a view would be written with all the memory that it is a view of.
    tensors = {
        name: value.detach().cpu().clone() if isinstance(value, torch.Tensor) else value
        for name, value in model.state_dict().items()
    }
    content = {"version": VERSION, "weights": tensors}
    write_atomically(RunFolder(folder).model_file, lambda file: torch.save(content, file))


def load_model(folder: str | os.PathLike[str], *, trust: bool = False) -> nn.Module:
    """The network that a run with ``save_model`` ended with, on the CPU and in evaluation mode.

    It is built as the run's ``config.json`` says and gets the weights of ``model.pt``, which is
    read as tensors only. Call ``.train()`` to go on learning, which dropout and the like notice.

    Args:
        folder: of the run.
        trust: load code that its config names (``package.module:name``, ``imports``), which may be
            a stranger's.

    Raises:
        RunFolderError: if a part is missing or cannot be read, or the weights don't fit.
        BadArgument: for a network that is not known here, or code that is not trusted.
    """
    run = RunFolder(folder)
    config, shape, n_classes = _network(run)
    weights = _weights(run)
    if not (config.model in MODELS and not is_path(config.model)):
        named = {"model": config.model, "imports": list(config.imports)}
        check_trusted("folder", os.fspath(folder), named, trust)
        import_modules(config.imports)
    # Seeded, so that the caller's generator stays where it is.
    model = make_model(config.model, shape, n_classes, config.model_options, seed=config.seed)
    try:
        model.load_state_dict(weights)
    except (RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        mend = "the network has changed since, or while it learnt; build it and load them yourself"
        raise RunFolderError(f"{run.model_file} does not fit: {reason}: {mend}") from None
    return model.eval()


def _network(run: RunFolder) -> tuple[RunConfig, tuple[int, ...], int]:
    """The run's options, and the network's input shape and number of classes."""
    content = run.config
    try:
        config = RunConfig.from_dict(content)
        stream = content[FACTS]["stream"]
        return config, tuple(stream["data"]["image_shape"]), stream["n_classes"]
    except (BadArgument, KeyError, TypeError) as error:
        reason = str(error) if isinstance(error, BadArgument) else "nothing of network and stream"
        mend = "give the folder of a run of the command line, of a sweep or of run()"
        raise RunFolderError(f"{run.config_file}: {reason}: {mend}") from None


def _weights(run: RunFolder) -> Mapping[str, Any]:
    file = run.model_file
    if not file.is_file():
        mend = "run it with --save-model (save_model=True), to its end"
        raise RunFolderError(f"{file} is missing: {mend}")
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
        version, weights = content["version"], content["weights"]
    except Exception as error:  # a damaged archive fails in many ways
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise RunFolderError(f"{file} cannot be read ({reason}): repeat the run") from error
    if version != VERSION:
        mend = f"this clmeta reads version {VERSION}; load it with the clmeta that wrote it"
        raise RunFolderError(f"{file} has version {version!r}: {mend}")
    return weights
