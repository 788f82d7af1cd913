"""Memory of a mode of the general engine, estimated from shapes before anything is allocated."""

from __future__ import annotations

from clmeta.errors import bad
from clmeta.ground.forward import Tree, leaves
from clmeta.ground.machine import GIB


def sizes(x: Tree, y: Tree, k: int) -> dict[str, int]:
    """The counts that the functions below take, from the states x and y and k tangents."""

    def total(tree: Tree) -> int:
        return sum(each.numel() for each in leaves(tree))

    return {
        "n": total(x[0]),
        "n_state": total(x[1]),
        "m": total(y["beta"]),
        "m_state": total(y["state"]),
        "k": k,
    }


def kept_numbers(
    n: int, n_state: int, m: int, m_state: int, k: int, approximation: str
) -> dict[str, int]:
    """Numbers that are kept between steps, by what they are.

    Args:
        n: weights.
        n_state: numbers in the base rule's state.
        m: learned meta-parameters (entries of beta).
        m_state: numbers in the meta rule's state.
        k: tangents (m, or the number of learned kinds where the trace is condensed).
        approximation: ``"full"``, ``"2x2"`` or ``"L"``.
    """
    propagates_y = approximation != "L"
    return {
        "x": n + n_state,
        "y": m + m_state,
        "X": k * (n + n_state),
        "Y": k * (m + m_state if propagates_y else m),
        "Q": k * m * n if approximation == "full" else 0,
    }


def peak_numbers(
    n: int,
    n_state: int,
    m: int,
    m_state: int,
    k: int,
    approximation: str,
    hessian: str,
    chunk: int | None = None,
    samples: int | None = None,
) -> int:
    """Numbers alive at the worst moment of a step, apart from the loss's own activations.

    Old and new state are both alive; a product along c tangents at once holds intermediate
    results in the size of what it moves, a number of them that was measured with Adam, the rule
    with most (benchmarks/general_modes.py).
    """
    kept = kept_numbers(n, n_state, m, m_state, k, approximation)
    c, cm = min(k, chunk or k), min(m, chunk or m)
    free = hessian == "free"
    work = (10 * c + 16) * n
    if approximation == "full":
        work = max(work, (12 if free else 18) * c * cm * n + 44 * n)
    if hessian == "diagonal":
        work = max(work, (6 * min(samples or n, chunk or 64) + 16) * n)
    return 2 * sum(kept.values()) + work


def require_fit(needed: int, limit: int | None, approximation: str, mend: str) -> None:
    """Raise BadArgument if ``needed`` bytes exceed ``limit``."""
    if limit is not None and needed > limit:
        bad(
            "approximation",
            approximation,
            f"a step would need about {needed / GIB:.3g} GiB and {limit / GIB:.3g} GiB are "
            f"available; {mend}",
        )
