"""A plain reference twin of Algorithm 3 in the paper's letters; every engine is checked against it.

One number at a time, one line per equation, nothing shared with clmeta.
"""

from __future__ import annotations

import math

import torch


def direction(rule, g, s, t):
    """u and the next state of a rule, as in Algorithm 3, from its parameters alone."""
    name = type(rule).__name__
    if name == "SGD":
        return g, s
    if name == "SGDm":
        m = rule.rho * s["m"] + (g if rule.accumulate else (1 - rule.rho) * g)
        return (s["m"] if rule.stale else m), {"m": m}
    if name in ("Lion", "SoftLion"):
        x = rule.c * s["m"] + (1 - rule.c) * g
        u = (x > 0) - (x < 0) if name == "Lion" else x / math.sqrt(x * x + rule.eps)
        return u, {"m": rule.rho * s["m"] + (1 - rule.rho) * g}
    v = rule.lam * s["v"] + (1 - rule.lam) * g**2
    v_hat = v / (1 - rule.lam**t)
    if name == "RMSprop":
        return g / math.sqrt(v_hat + rule.eps), {"v": v}
    if rule.accumulate:
        m = rule.rho * s["m"] + g
        m_hat = m
    else:
        m = rule.rho * s["m"] + (1 - rule.rho) * g
        m_hat = m / (1 - rule.rho**t)
    return m_hat / math.sqrt(v_hat + rule.eps), {"m": m, "v": v}


class Twin:
    """Algorithm 3 with one beta per block.

    Args:
        w: tensors of weights, each kept as a list of numbers.
        blocks: lists of indices into ``w``.
        low, high: bounds of alpha.
    """

    def __init__(self, w, blocks, base, meta, alpha0, eta, gamma, kappa, low=0.0, high=math.inf):
        self.w = [x.flatten().tolist() for x in w]
        self.blocks, self.base, self.meta = blocks, base, meta
        self.eta, self.gamma, self.kappa = eta, gamma, kappa
        self.low, self.high = low, high
        self.h = [[0.0] * len(x) for x in self.w]
        self.s = [[{"m": 0.0, "v": 0.0} for _ in x] for x in self.w]
        self.beta = [math.log(alpha0) for _ in blocks]
        self.meta_s = [{"m": 0.0, "v": 0.0} for _ in blocks]
        self.z = [0.0 for _ in blocks]
        self.t, self.meta_t = [0 for _ in w], [0 for _ in blocks]

    @property
    def alpha(self):
        return [math.exp(beta) for beta in self.beta]

    def step(self, grads):
        """One update by a gradient for each tensor, or None for a tensor that stays."""
        g = [None if x is None else x.flatten().tolist() for x in grads]
        for b, block in enumerate(self.blocks):
            moved = [i for i in block if g[i] is not None]
            alpha = self.alpha[b]
            self.z[b] = sum(self.h[i][j] * g[i][j] for i in moved for j in range(len(g[i])))
            for i in moved:
                self.t[i] += 1
                for j, w in enumerate(self.w[i]):
                    u, self.s[i][j] = direction(self.base, g[i][j], self.s[i][j], self.t[i])
                    dw = -alpha * (u + self.kappa * w)
                    self.w[i][j] = w + dw
                    self.h[i][j] = self.gamma * (1 - alpha * self.kappa) * self.h[i][j] + dw
            if self.meta is not None and moved:
                self.meta_t[b] += 1
                u, self.meta_s[b] = direction(self.meta, self.z[b], self.meta_s[b], self.meta_t[b])
                beta = max(self.beta[b] - self.eta * u, log(self.low))
                self.beta[b] = min(beta, log(self.high))


def log(x):
    """The logarithm, of 0 as well."""
    return math.log(x) if x > 0 else -math.inf


#: The parts of a tensor that have a step size each, where blocks are not whole tensors.
CUTS = {
    "node": lambda x: list(x) if x.dim() else [x],
    "weight": lambda x: list(x.flatten()),
}


class Twins:
    """A twin for each learner.

    Args:
        weights: for each learner, its tensors.
        blocks: for each learner, lists of indices of tensors; or "node" or "weight" for all.
        settings: for each learner, the numbers that a `Twin` takes.
    """

    def __init__(self, weights, blocks, base, meta, settings):
        self.fine = isinstance(blocks, str)
        self.cut = CUTS[blocks] if self.fine else lambda x: [x]
        #: The tensor that each of the twins' is a part of, and the number of parts of each.
        self.parts = [len(self.cut(x)) for x in weights[0]]
        self.owner = [i for i, count in enumerate(self.parts) for _ in range(count)]
        each = [[i] for i in range(len(self.owner))]
        self.blocks = [each] * len(weights) if self.fine else blocks
        self.rows = [
            Twin([part for x in mine for part in self.cut(x)], own, base, meta, **numbers)
            for mine, own, numbers in zip(weights, self.blocks, settings, strict=True)
        ]

    def step(self, grads, rows=None):
        """One update of all learners, or some, by gradients (R, *shape); None for none."""
        for r in range(len(self.rows)) if rows is None else rows:
            self.rows[r].step(
                [
                    part
                    for g, count in zip(grads, self.parts, strict=True)
                    for part in ([None] * count if g is None else self.cut(g[r]))
                ]
            )

    def keep(self, rows):
        """Go on with some of the learners."""
        self.rows = [self.rows[r] for r in rows]
        self.blocks = [self.blocks[r] for r in rows]

    def read(self):
        """Name to (R, n) numbers; not a number where a learner has fewer blocks than others."""
        pairs = zip(self.rows, self.blocks, strict=True)
        rows = [self._row(twin, blocks) for twin, blocks in pairs]
        return {name: _padded([row[name] for row in rows]) for name in rows[0]}

    def _row(self, twin, blocks):
        flat = {
            "w": [x for xs in twin.w for x in xs],
            "steps": self._tensors(twin.t, max),
        }
        for name in twin.base.slots:
            flat[f"slot {name}"] = [s[name] for xs in twin.s for s in xs]
        squares, z = [0.0] * len(twin.z), [0.0] * len(twin.z)
        if twin.meta is not None:
            flat["h"], z = [x for xs in twin.h for x in xs], twin.z
            squares = [sum(h * h for i in block for h in twin.h[i]) for block in blocks]
        slots = twin.meta.slots if twin.meta is not None else ()
        state = {name: [s[name] for s in twin.meta_s] for name in slots}
        if not self.fine:
            flat |= {"alpha": twin.alpha, "z": z, "norm": list(map(math.sqrt, squares))}
            flat |= {"meta t": twin.meta_t}
            return flat | {f"meta {name}": x for name, x in state.items()}
        flat["alpha"] = [math.exp(x) for x in self._tensors(twin.beta, lambda x: sum(x) / len(x))]
        flat["z"] = self._tensors(z, sum)
        flat["norm"] = [math.sqrt(x) for x in self._tensors(squares, sum)]
        flat["fine alpha"] = twin.alpha
        return flat | {f"fine {name}": x for name, x in state.items()}

    def _tensors(self, xs, of):
        """What is known of each part, for each tensor; nothing where it is empty."""
        parts = [[] for _ in self.parts]
        for x, i in zip(xs, self.owner, strict=True):
            parts[i].append(x)
        return [of(mine) if mine else math.nan for mine in parts]


def _padded(rows):
    longest = max(map(len, rows))
    filled = [[*row, *[math.nan] * (longest - len(row))] for row in rows]
    return torch.tensor(filled, dtype=torch.float64)
