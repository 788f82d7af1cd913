"""A device by name, if it is there."""

from __future__ import annotations

import torch

from clmeta.errors import bad


def as_device(device: torch.device | str) -> torch.device:
    """A torch device that is there; ``cuda`` without a number is the current one.

    Raises:
        BadArgument: if it is not there, or torch knows no such device.
    """
    try:
        found = torch.device(device)
        if found.type == "cuda" and found.index is None:
            found = torch.device("cuda", torch.cuda.current_device())
        torch.zeros(1, device=found).item()  # "meta" has tensors, but no numbers in them
    except NotImplementedError:
        bad("device", str(device), "this build of torch has no such device; use 'cpu'")
    except (RuntimeError, AssertionError, TypeError, ValueError) as problem:
        reason = (str(problem).strip() or type(problem).__name__).splitlines()[0]
        mend = "use 'cpu', or 'cuda' where it works"
        value = str(device) if isinstance(device, torch.device) else device
        bad("device", value, f"not available here ({reason[:300]}); {mend}")
    return found
