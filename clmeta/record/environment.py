"""What a run ran on: versions, platform and git revisions, for ``environment.json``."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

from clmeta.native import cc as _cc

PACKAGES = (
    "clmeta",
    "torch",
    "torchvision",
    "avalanche-lib",
    "numpy",
    "pandas",
    "pyarrow",
    "scikit-learn",
)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _output(*command: str) -> str | None:
    """What a command prints, or None if it fails or takes too long."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def git_revision(folder: str | os.PathLike[str]) -> dict[str, Any] | None:
    """Commit of the git checkout that holds ``folder``, and whether tracked files differ from it.

    None outside of a checkout or without git.
    """
    commit = _output("git", "-C", str(folder), "rev-parse", "HEAD")
    if commit is None:
        return None
    changes = _output("git", "-C", str(folder), "status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "modified": None if changes is None else bool(changes)}


def _cpu() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _c_compiler() -> str | None:
    """The compiler that steps on the CPU are built with; without one they round otherwise."""
    command = _cc.compiler()
    said = _output(*command, "--version") if command else None
    return said.splitlines()[0] if said else None


def describe_environment() -> dict[str, Any]:
    """Versions, platform, processors, devices, git revisions, command line and UTC time."""
    import torch

    versions = {package: _version(package) for package in PACKAGES}
    versions["torch"] = str(torch.__version__)  # names the build too, as in 2.6.0+cu124
    devices = []
    if torch.cuda.is_available():
        devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": sys.argv,
        "python": platform.python_version(),
        "versions": versions,
        "platform": platform.platform(),
        "cpu": _cpu(),
        "cpu_count": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "c_compiler": _c_compiler(),
        "cuda": torch.version.cuda,
        "cuda_devices": devices,
        "git": {
            "clmeta": git_revision(Path(__file__).resolve().parent),
            "working_folder": git_revision(Path.cwd()),
        },
    }
