"""First-order rules, each defined once and used at both levels.

A rule turns a gradient and its own state into a direction u. As a *base update* it moves weights
by ``-alpha (u + kappa w)``; as a *meta update* it moves beta by ``-eta u`` (Algorithm 3 of
the paper, arXiv 2402.02342). State starts at zero.

Adding a rule is one class::

    @RULES.register("signsgd")
    @dataclass(frozen=True)
    class SignSGD(Rule):
        def update(self, g, state, t):
            return torch.sign(g), state
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from typing import Any, ClassVar

import torch
from torch import Tensor

from clmeta.errors import bad, require
from clmeta.ground import ops
from clmeta.ground.ops import Scalar
from clmeta.lookup import Wanted, describe, failing_as
from clmeta.registry import Registry


def _is_rule_class(found: Any) -> bool:
    return isinstance(found, type) and issubclass(found, Rule)


def _is_base(found: Any) -> bool:
    """A class must make rules or optimisers; of other callables the result is looked at."""
    kinds = (Rule, torch.optim.Optimizer)
    return issubclass(found, kinds) if isinstance(found, type) else callable(found)


RULES: Registry[type[Rule]] = Registry(
    "rule", Wanted("a class made from clmeta.rules.Rule", _is_rule_class)
)
#: What else a base update can be.
BASE = Wanted("a torch optimiser, or a class made from clmeta.rules.Rule", _is_base)


@dataclass(frozen=True)
class Rule:
    """State and direction of a first-order method; pure, differentiable where its formula is.

    Subclasses give ``slots`` and ``update``; an ``init`` of their own must give exactly the slots.
    An ``update`` that is a formula of each number alone (arithmetic, torch's elementwise
    functions) becomes a C program for the CPU, for which it is called with symbols and with a few
    trial values.
    ``differentiable = False`` marks a direction whose derivative is zero almost everywhere.
    """

    slots: ClassVar[tuple[str, ...]] = ()
    differentiable: ClassVar[bool] = True

    def init(self, like: Tensor) -> dict[str, Tensor]:
        """Zero state for a tensor of weights (or of beta), in its shape and dtype."""
        return {slot: torch.zeros_like(like) for slot in self.slots}

    def update(self, g: Any, state: dict[str, Any], t: Scalar) -> tuple[Any, dict[str, Any]]:
        """Direction and next state.

        Args:
            g: gradient.
            state: one tensor per slot, each in the shape of ``g``.
            t: number of this update, counted from 1; a number or a tensor.

        Returns:
            ``(u, state)``; u is in the shape of ``g``.
        """
        bad("rule", type(self).__name__, "define update(self, g, state, t) -> (u, state)")

    def __post_init__(self) -> None:
        for option in dataclasses.fields(self):
            _check_kind(option.name, option.type, getattr(self, option.name))
        for name in ("rho", "lam", "c"):
            value = getattr(self, name, 0.0)
            if not isinstance(value, Tensor):
                require(0 <= value < 1, name, value, "must lie in [0, 1)")
        eps = getattr(self, "eps", 0.0)
        require(eps >= 0, "eps", eps, "must not be negative; the paper's experiments use 1e-10")


def _check_kind(name: str, kind: Any, value: Any) -> None:
    """Refuse what only looks like the declared kind: the text "False" would count as true."""
    if kind in (bool, "bool"):
        require(isinstance(value, bool), name, value, "must be true or false")
    elif kind in (float, "float", int, "int") and not isinstance(value, Tensor):
        number = isinstance(value, Real) and not isinstance(value, bool)
        require(number, name, value, "must be a number")


@RULES.register("sgd")
@dataclass(frozen=True)
class SGD(Rule):
    """u = g."""

    def update(self, g: Tensor, state: dict[str, Tensor], t: Scalar) -> tuple[Tensor, dict]:
        """Direction u = g; no state."""
        return g, state


@RULES.register("sgdm")
@dataclass(frozen=True)
class SGDm(Rule):
    """m <- rho m + (1 - rho) g; u = m.

    Args:
        rho: momentum.
        accumulate: m <- rho m + g instead, torch.optim.SGD's convention.
        stale: u is m *before* this step's gradient, as in the authors' experiment code.
    """

    rho: float = 0.9
    accumulate: bool = False
    stale: bool = False
    slots: ClassVar[tuple[str, ...]] = ("m",)

    def update(self, g: Tensor, state: dict[str, Tensor], t: Scalar) -> tuple[Tensor, dict]:
        """Direction m, or the m before this gradient where ``stale``."""
        move = ops.accumulate if self.accumulate else ops.ema
        m = move(state["m"], g, self.rho)
        return (state["m"] if self.stale else m), {"m": m}


@RULES.register("rmsprop")
@dataclass(frozen=True)
class RMSprop(Rule):
    """v <- lam v + (1 - lam) g^2; u = g / sqrt(v_hat + eps), v_hat = v / (1 - lam^t).

    Args:
        lam: normaliser decay.
        eps: added inside the root.
    """

    lam: float = 0.999
    eps: float = 1e-10
    slots: ClassVar[tuple[str, ...]] = ("v",)

    def update(self, g: Tensor, state: dict[str, Tensor], t: Scalar) -> tuple[Tensor, dict]:
        """Direction g / sqrt(v_hat + eps)."""
        v = ops.ema_of_square(state["v"], g, self.lam)
        return ops.over_root(g, v, self.eps, 1.0, ops.bias(self.lam, t)), {"v": v}


@RULES.register("adamw", about="Adam's direction; weight decay is decoupled, MetaOptimize's own.")
@RULES.register("adam")
@dataclass(frozen=True)
class Adam(Rule):
    """m <- rho m + (1 - rho) g; v <- lam v + (1 - lam) g^2; u = m_hat / sqrt(v_hat + eps).

    Args:
        rho: momentum.
        lam: normaliser decay.
        eps: added inside the root.
        accumulate: m <- rho m + g, without bias correction, as in the authors' experiment code;
            its direction is about 1 / (1 - rho) times larger.
    """

    rho: float = 0.9
    lam: float = 0.999
    eps: float = 1e-10
    accumulate: bool = False
    slots: ClassVar[tuple[str, ...]] = ("m", "v")

    def update(self, g: Tensor, state: dict[str, Tensor], t: Scalar) -> tuple[Tensor, dict]:
        """Direction m_hat / sqrt(v_hat + eps)."""
        move = ops.accumulate if self.accumulate else ops.ema
        m = move(state["m"], g, self.rho)
        v = ops.ema_of_square(state["v"], g, self.lam)
        m_scale = 1.0 if self.accumulate else ops.bias(self.rho, t)
        return ops.over_root(m, v, self.eps, m_scale, ops.bias(self.lam, t)), {"m": m, "v": v}


@RULES.register("lion")
@dataclass(frozen=True)
class Lion(Rule):
    """u = sign(c m + (1 - c) g), then m <- rho m + (1 - rho) g.

    Args:
        rho: momentum.
        c: interpolation between momentum and gradient in the direction.
    """

    rho: float = 0.99
    c: float = 0.9
    slots: ClassVar[tuple[str, ...]] = ("m",)
    differentiable: ClassVar[bool] = False

    def update(self, g: Tensor, state: dict[str, Tensor], t: Scalar) -> tuple[Tensor, dict]:
        """Direction sign(c m + (1 - c) g) with the old momentum m."""
        u = torch.sign(ops.ema(state["m"], g, self.c))
        return u, {"m": ops.ema(state["m"], g, self.rho)}


def update_class(name: str, argument: str) -> Any:
    """The class of the rule registered under a name or found at ``package.module:name``.

    For the argument ``"base"`` it may be a torch optimiser's class too, or a function of
    parameters that makes one.

    Raises:
        BadArgument: if there is none.
    """
    if argument == "base":
        return RULES.get(name, argument, wanted=BASE)
    return RULES.get(name, argument, also=("none",) if argument == "meta" else ())


def as_rule(value: str | Rule | type[Rule], argument: str) -> Rule:
    """A rule from its registered name or path, with the paper's defaults, or the rule itself.

    Raises:
        BadArgument: for anything else.
    """
    found = update_class(value, argument) if isinstance(value, str) else value
    if isinstance(found, Rule):
        return found
    if not _is_rule_class(found):
        bad(argument, value, f"is {describe(found)}; pass a rule, or {_names(argument)}")
    with failing_as(argument, value, "pass a rule made with options; without it fails"):
        return found()


def as_base(value: Any) -> Rule | Callable[..., torch.optim.Optimizer]:
    """A rule, as `as_rule`, or what makes a torch optimiser of parameters: a class or a function.

    Raises:
        BadArgument: for anything else.
    """
    found = update_class(value, "base") if isinstance(value, str) else value
    if isinstance(found, Rule) or _is_rule_class(found):
        return as_rule(found, "base")
    if not _is_base(found):
        mend = f"pass a torch optimiser's class, a rule, or {_names('base')}"
        bad("base", value, f"is {describe(found)}; {mend}")
    return found


def _names(argument: str) -> str:
    names = [*RULES.names(), *(("none",) if argument == "meta" else ())]
    return f"one of the names {', '.join(names)}"
