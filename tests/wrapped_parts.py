"""torch's optimisers and some of one's own kinds, to wrap in tests."""

from __future__ import annotations

import copy
import functools
import inspect
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

MATRICES, MIXED = [(4, 3), (2, 4)], [(4, 3), (4,), (2, 4), ()]


@dataclass(frozen=True)
class Kind:
    """One of torch's optimisers: the settings to try, and what it needs."""

    settings: dict[str, Any] = field(default_factory=dict)
    shapes: list = field(default_factory=lambda: MIXED)
    sparse: bool = False
    #: Why it has no step size to learn.
    refused: str | None = None


#: Every optimiser in torch.optim. Measured: movements with lr and twice lr, and with a later lr.
TORCHS = {
    "ASGD": Kind(),
    "Adadelta": Kind(),
    "Adafactor": Kind(),
    "Adagrad": Kind({"initial_accumulator_value": 0.1}),
    "Adam": Kind({"amsgrad": True}),
    "AdamW": Kind({"betas": (0.8, 0.95)}),
    "Adamax": Kind(),
    "LBFGS": Kind(refused="first-order"),
    "Muon": Kind({"nesterov": False}, MATRICES),
    "NAdam": Kind(),
    "RAdam": Kind(),
    "RMSprop": Kind({"momentum": 0.5, "centered": True}),
    "Rprop": Kind(refused="lr is only their start"),
    "SGD": Kind({"momentum": 0.9, "nesterov": True}),
    "SparseAdam": Kind(shapes=MATRICES, sparse=True),
}
LEARNING = {name: kind for name, kind in TORCHS.items() if kind.refused is None}


def make_base(name, **more):
    """A torch optimiser as a base, with the table's settings."""
    return functools.partial(getattr(torch.optim, name), **TORCHS[name].settings, **more)


def make_own(name, params, lr, **more):
    """The same optimiser on its own."""
    base = make_base(name, **more)
    if "weight_decay" in inspect.signature(base.func).parameters:
        base = functools.partial(base, weight_decay=0.0)
    return base(params, lr=lr)


def parameters(shapes=MIXED, seed=0):
    make = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(s, generator=make, dtype=torch.float64)) for s in shapes]


def gradients(steps, shapes=MIXED, seed=1):
    make = torch.Generator().manual_seed(seed)
    drift = [torch.randn(s, generator=make, dtype=torch.float64) for s in shapes]
    for _ in range(steps):
        yield [d + torch.randn(d.shape, generator=make, dtype=torch.float64) for d in drift]


def give(params, grads, sparse=False):
    for p, g in zip(params, grads, strict=True):
        p.grad = g.to_sparse() if sparse else g.clone()


def run(optimizer, params, grads, sparse=False):
    for each in grads:
        give(params, each, sparse)
        optimizer.step()


def held(optimizer):
    return [p for group in optimizer.param_groups for p in group["params"]]


class Moves(torch.optim.Optimizer):
    """Moves by a rule of its own, for cases made from it."""

    def __init__(self, params, lr=1e-3):
        super().__init__(params, {"lr": lr})
        self.t = 0

    def length(self, group, p):
        return group["lr"]

    @torch.no_grad()
    def step(self, closure=None):
        self.t += 1
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.sub_(self.length(group, p) * p.grad)


class Eager(torch.optim.Optimizer):
    """Makes its state when it is built: of each parameter, of all, and in an attribute."""

    def __init__(self, params, lr=1e-3, start=0.1):
        super().__init__(params, {"lr": lr})
        self.state["steps"] = 0
        self.moved = torch.zeros(())
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p]["sum"] = torch.full_like(p, start)

    @torch.no_grad()
    def step(self, closure=None):
        self.state["steps"] += 1
        self.moved += 1
        scale = 1 + 1 / float(self.moved)
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    total = self.state[p]["sum"].addcmul_(p.grad, p.grad)
                    p.addcdiv_(p.grad, total.sqrt(), value=-group["lr"] * scale)


class Sharp(torch.optim.Optimizer):
    """Sharpness-aware: climbs by the gradient that is there, then steps by the one found there."""

    def __init__(self, params, base=torch.optim.SGD, rho=0.05, lr=1e-3, **settings):
        super().__init__(params, {"rho": rho, "lr": lr, **settings})
        self.base = base(self.param_groups, lr=lr, **settings)
        self.param_groups = self.base.param_groups

    @torch.no_grad()
    def step(self, closure=None):
        if closure is None:
            raise RuntimeError("sharpness-aware steps need a closure")
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p]["old"] = p.detach().clone()
                p.add_(p.grad, alpha=group["rho"])
        self.base.zero_grad()
        with torch.enable_grad():
            closure()
        for group in self.param_groups:
            for p in group["params"]:
                p.copy_(self.state[p]["old"])
        self.base.step()


class Modes(torch.optim.SGD):
    """Shows other weights while it evaluates, and steps only while it trains."""

    def __init__(self, params, lr=1e-3):
        super().__init__(params, lr=lr)
        for group in self.param_groups:
            group.update(training=False, steps=0)

    def _shift(self, training):
        for group in self.param_groups:
            if group["training"] is not training:
                group["training"] = training
                for p in group["params"]:
                    p.data += 1.0 if training else -1.0

    def train(self):
        self._shift(True)

    def eval(self):
        self._shift(False)

    def step(self, closure=None):
        for group in self.param_groups:
            if not group["training"]:
                raise RuntimeError("call train() first")
            group["steps"] += 1
        return super().step(closure)


class Strict(torch.optim.Optimizer):
    """Chooses its update by a key of the group, knows all keys, and sorts the parameters."""

    def __init__(self, groups):
        for group in groups:
            assert "orthogonal" in group, "say for each group whether it is orthogonal"
            group["params"] = sorted(group["params"], key=lambda p: p.numel(), reverse=True)
            group.setdefault("lr", 0.02)
            group.setdefault("momentum", 0.9)
            assert set(group) == {"params", "lr", "momentum", "orthogonal"}, sorted(group)
        super().__init__(groups, {})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    m = self.state[p].setdefault("m", torch.zeros_like(p))
                    m.lerp_(p.grad, 1 - group["momentum"])
                    p.add_(m.sign() if group["orthogonal"] else m, alpha=-group["lr"])


class Outside(torch.optim.SGD):
    """Keeps its momentum outside of ``state``, in a state_dict of its own."""

    def __init__(self, params, lr=1e-3):
        super().__init__(params, lr=lr)
        self._memory = {i: torch.zeros_like(p) for i, p in enumerate(held(self))}

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                i = [id(q) for q in held(self)].index(id(p))
                self._memory[i] = 0.9 * self._memory[i] + p.grad
                p.add_(self._memory[i], alpha=-group["lr"])

    def state_dict(self):
        return {**super().state_dict(), "memory": self._memory}

    def load_state_dict(self, state_dict):
        own = dict(state_dict)
        self._memory = copy.deepcopy(own.pop("memory"))
        super().load_state_dict(own)


class Counting(torch.optim.SGD):
    """Keeps a count, a buffer and the rank of its process as attributes; each step is longer."""

    process = 0
    seen: list = []  # noqa: RUF012

    def __init__(self, params, lr=1e-3):
        super().__init__(params, lr=lr)
        self.rank, self.count, self.buffer = self.process, 0, torch.zeros(2)

    @torch.no_grad()
    def step(self, closure=None):
        self.count += 1
        self.buffer[0] += 1
        self.seen.append((self.rank, self.count))
        for group in self.param_groups:
            for p in group["params"]:
                p.add_(p.grad, alpha=-group["lr"] * (1 + 0.1 * float(self.buffer[0]) * self.count))


def split(groups):
    """Divides every group by the dimensions of its parameters."""
    parts = [
        {**group, "params": [p for p in group["params"] if (p.dim() < 2) is small]}
        for group in groups
        for small in (True, False)
    ]
    return torch.optim.SGD([part for part in parts if part["params"]], lr=1.0)


#: Own kinds that step without closures and modes.
OWN = {"Eager": Eager, "Outside": Outside, "Counting": Counting, "split": split}
