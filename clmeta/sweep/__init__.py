"""Many runs: every combination of some options over seeds, here or on a cluster."""

from clmeta.sweep.run import LocalLauncher, run_sweep
from clmeta.sweep.spec import SweepSpec

__all__ = ["LocalLauncher", "SweepSpec", "run_sweep"]
