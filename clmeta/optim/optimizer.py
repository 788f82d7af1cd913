"""MetaOptimize as a torch optimiser: the Hessian-free algorithm of the paper's experiments."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._compile import _disable_dynamo

from clmeta.blocks import FINE, Blocks
from clmeta.engines.choose import AUTO, engines_for
from clmeta.engines.curved import Curved, Hessian
from clmeta.engines.learners import Engine, Learners, trace_norms
from clmeta.engines.sizes import StepSizes, state_dtype
from clmeta.errors import bad, require
from clmeta.ground.checks import GAMMA, NONFINITE, check_bounds, check_numbers, one_of
from clmeta.ground.shards import Shards, local
from clmeta.ground.trial import check_rule
from clmeta.optim.groups import make_groups
from clmeta.optim.saving import Saved
from clmeta.rules import Rule, as_base, as_rule
from clmeta.wrapped.engine import Wrapped


class MetaOptimize(Saved):
    r"""Any first-order optimiser with step sizes that are learned while it runs.

    Per step, with u the base direction, kappa the decoupled weight decay, alpha = exp(beta)
    (Algorithm 3 of Sharifnassab, Salehkaleybar, Sutton 2025; docs/method.md)::

        z     = <h, g>  summed over the block
        dw    = -alpha (u + kappa w)
        w    <- w + dw
        h    <- gamma (1 - alpha kappa) h + dw
        beta <- meta_update(beta, z)

    Args:
        params: ``model.parameters()``, ``model.named_parameters()``, the model itself, or a list of
            groups. Groups may set ``name``, ``alpha0``, ``eta``, ``gamma`` and ``weight_decay``;
            blocks are formed within each group. A model tells more than its names: which weights
            are transposed convolutions', whose units lie along their second dimension; else a
            group says so with ``units=(1,)``.
        base: base update: a rule's name (``"sgd"``, ``"sgdm"``, ``"rmsprop"``, ``"adamw"``,
            ``"lion"``), a ``clmeta.rules.Rule``, or any torch optimiser, as a class or a function
            of its parameters (``functools.partial(torch.optim.AdamW, fused=True)``). Rules and
            optimisers are also found by path, as in ``"torch.optim:AdamW"``.
        meta: meta update of beta: a rule's name or path, a rule, or ``"none"`` for fixed step
            sizes, which a learning-rate schedule may set.
        blocks: ``"scalar"``, ``"layer"``, ``"tensor"``, ``"head"`` (the paper's two blocks: the
            last layer and the rest), ``"node"`` (a step size per unit), ``"weight"``, or a mapping
            from block name to parameter-name prefixes. All but the first, ``"tensor"``, ``"node"``
            and ``"weight"`` need ``named_parameters()``.
        alpha0: initial step size, best one or two orders of magnitude below a good fixed one.
        eta: meta step size.
        gamma: discount, in [0, 1]; 0.999 forgets after about a thousand steps, as problems that
            change need; 1 for stationary ones.
        weight_decay: kappa, decoupled.
        alpha_min, alpha_max: bounds of every step size, or None. For ``"node"`` and ``"weight"``
            None means 1e-4 and 1e2 times the group's alpha0; pass 0 and ``math.inf`` for none.
        nonfinite: what a withheld update does. A gradient or meta-gradient that is not finite
            never reaches weights or step sizes. ``"raise"``: an error at the next point where
            values are read (``step_sizes``, ``check_finite``, ``state_dict``); ``"skip"``: the
            step is skipped and counted in ``withheld``. On an accelerator a wrapped torch optimiser
            cannot be stopped without waiting: it sees a gradient of zero, its weights are put back.
        hessian: ``"free"`` as above, or second derivatives in the trace: ``"exact"``,
            ``"diagonal"``, or a ``clmeta.Hessian`` with options. Then call
            ``loss.backward(create_graph=True)``, and ``zero_grad()`` after each step to let the
            graph go. The trace also follows momentum and normaliser, as ``h`` above does not.
        approximation: ``"L"``, the one that a training loop can carry; the others are in
            ``clmeta.general``.
        engine: what makes a step. ``"native"``: C programs made from the rules' formulas, on the
            CPU; ``"eager"``: torch's operations, on any device; ``"compiled"``: these by
            ``torch.compile``, which takes some seconds at the first step; ``"auto"``: the first
            on the CPU wherever it can be had, the second otherwise. A choice that cannot be had is
            an error that says why (docs/speed.md has what each costs).
        compile: deprecated; True means ``engine="compiled"``.
        lr: refused; ``alpha0`` is the first step size.

    Raises:
        BadArgument: naming the argument, its value and the mend.

    One block is one parameter group, with a ``name``; ``group["lr"]`` is a view of its alpha.
    Memory beside the base's state: one number per weight (the trace h).
    """

    def __init__(
        self,
        params: Any,
        base: str | Rule | Callable[..., torch.optim.Optimizer] = "adamw",
        meta: str | Rule = "adam",
        blocks: Blocks = "scalar",
        *,
        alpha0: float = 1e-4,
        eta: float = 1e-3,
        gamma: float = GAMMA,
        weight_decay: float = 0.0,
        alpha_min: float | None = None,
        alpha_max: float | None = None,
        nonfinite: str = "raise",
        hessian: str | Hessian = "free",
        approximation: str = "L",
        engine: str = "auto",
        compile: bool | None = None,
        lr: None = None,
    ) -> None:
        require(lr is None, "lr", lr, "step sizes are learned; alpha0 is the first one")
        numbers = check_numbers(
            {"alpha0": alpha0, "eta": eta, "gamma": gamma, "weight_decay": weight_decay}
        )
        one_of("nonfinite", nonfinite, NONFINITE)
        meta_rule = None if isinstance(meta, str) and meta == "none" else as_rule(meta, "meta")
        fine = isinstance(blocks, str) and blocks in FINE
        # Fixed step sizes of units or weights are all their block's.
        self.granularity = str(blocks) if fine and meta_rule else None
        self.bounds = (alpha_min, alpha_max)
        check_bounds(alpha0, alpha_min, alpha_max, fine=bool(self.granularity))
        self.nonfinite = nonfinite
        made = as_base(base)
        rule = made if isinstance(made, Rule) else None
        if rule is None and fine:
            bad("blocks", blocks, "a wrapped torch optimiser has one lr per block; pass a rule")
        hessian = hessian if isinstance(hessian, Hessian) else Hessian(hessian)
        if compile is not None:
            require(isinstance(compile, bool), "compile", compile, "use engine='compiled'")
            text = "compile is deprecated: pass engine='compiled'"
            warnings.warn(text, DeprecationWarning, stacklevel=2)
            engine = "compiled" if compile else engine
        require(isinstance(engine, str), "engine", engine, "must be a name, such as 'auto'")
        only = "wraps a torch optimiser" if rule is None else "needs second derivatives"
        if engine != AUTO and (rule is None or hessian.kind != "free"):
            bad("engine", engine, f"this optimiser {only}, which one engine can do; use 'auto'")
        usable = isinstance(approximation, str) and approximation == "L"
        mend = "only 'L' here; see clmeta.general.engine for others"
        require(usable, "approximation", approximation, mend)
        if hessian.kind != "free" and (rule is None or meta_rule is None):
            what = f"base={base!r}" if rule is None else "meta='none'"
            bad("hessian", hessian.kind, f"has no use with {what}; pass rules for both updates")
        groups = make_groups(params, blocks)
        first = next(p for group in groups for p in group["params"])
        if rule is not None:
            check_rule(rule, first, "base")
        if meta_rule is not None:
            check_rule(meta_rule, torch.zeros(2, dtype=first.dtype, device=first.device), "meta")
        dtype = torch.float64 if state_dtype(first) == torch.float64 else torch.float32
        self.sizes = StepSizes(meta_rule, torch.empty(1, 0, device=first.device, dtype=dtype))
        self._config = {
            "base": repr(rule) if rule else getattr(made, "__name__", type(made).__name__),
            "meta": repr(meta_rule) if meta_rule else "none",
            "granularity": str(self.granularity),
            "hessian": repr(hessian),
        }
        super().__init__(groups, dict(numbers))
        # Tools that build a second optimiser from `defaults` get the same one.
        self.defaults.update(
            base=base,
            meta=meta,
            blocks=blocks,
            alpha_min=alpha_min,
            alpha_max=alpha_max,
            nonfinite=nonfinite,
            hessian=hessian,
            approximation=approximation,
            engine=engine,
        )
        self._engines: list[Engine]
        if rule is None:
            self._engines = [Wrapped(self, made)]  # type: ignore[arg-type]
        elif hessian.kind != "free":
            self._engines = [Curved(rule, hessian, first.device)]
        else:
            like = (meta_rule, self.granularity, first.device, first.dtype)
            self._engines = engines_for(engine, rule, *like)
        self._rule = rule
        self._renew()

    # ---- reading -------------------------------------------------------------------------

    @property
    def alpha(self) -> Tensor:
        """(B,) step sizes that the next step will use; a view that ``step`` updates in place.

        For ``"node"`` and ``"weight"`` it holds each block's geometric mean.
        """
        self._follow_lr()
        return self.sizes.alpha[0]

    @property
    def withheld(self) -> int:
        """Number of updates withheld for non-finite values; reads from the device."""
        return int(self.sizes.withheld)

    @property
    def z(self) -> Tensor:
        """(B,) meta-gradients z = <h, g> of the last step; a view that ``step`` updates in place.

        0 for blocks without gradient, and for fixed step sizes, which need none. Where a step was
        withheld, what was not finite stands here.
        """
        return self.sizes.z[0]

    def meta_gradients(self) -> dict[str, float]:
        """Block name to z of the last step; reads from the device, which ``z`` does not."""
        return dict(zip(self.block_names, self.z.tolist(), strict=True))

    @property
    def trace_norm(self) -> Tensor:
        """(B,) Euclidean norm of each block's trace h, computed anew; 0 where there is none yet."""
        members = [(i, p) for i, group in enumerate(self.param_groups) for p in group["params"]]
        pairs = [(i, h) for i, p in members if (h := self.state[p].get("h")) is not None]
        block = torch.tensor([[i for i, _ in pairs]], device=self.alpha.device, dtype=torch.int64)
        traces = [h for _, h in pairs]
        parts = [local(h)[None] for h in traces]
        return trace_norms(parts, block, len(self.param_groups), Shards.of(traces))[0]

    def trace_norms(self) -> dict[str, float]:
        """Block name to the norm of h; reads from the device, which ``trace_norm`` does not."""
        return dict(zip(self.block_names, self.trace_norm.tolist(), strict=True))

    def step_sizes(self) -> dict[str, float]:
        """Block name to alpha (geometric mean within ``"node"`` and ``"weight"`` blocks).

        Raises:
            NonFiniteError: if an update was withheld, unless ``nonfinite="skip"``.
        """
        self.check_finite()
        return dict(zip(self.block_names, self.alpha.tolist(), strict=True))

    @property
    def base_rule(self) -> Rule | None:
        """The base update's rule; None where it is a torch optimiser."""
        return self._rule

    @property
    def meta_rule(self) -> Rule | None:
        """The meta update's rule; None for fixed step sizes."""
        return self.sizes.rule

    @property
    def needs_graph(self) -> bool:
        """Whether gradients must come from ``backward(create_graph=True)``."""
        return self._engines[0].needs_graph

    # ---- stepping ------------------------------------------------------------------------

    @_disable_dynamo
    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of weights and step sizes; returns the closure's loss, if there is one."""
        loss, wrapped = None, self._wrapped
        if closure is not None and wrapped is None:
            with torch.enable_grad():
                loss = closure()
        if self._lr_written():
            if self._wants_state():
                self._make_state()
                return loss
            if self.sizes.rule is not None:
                self._refuse_lr()
            self._follow_lr()
        self.sizes.calls += 1
        if wrapped is not None:
            loss = wrapped.run(closure)
        elif (found := self._store.learners()) is not None:
            self._step(*found)
        else:
            self.sizes.z.zero_()
        self._version = self.sizes.alpha._version
        return loss

    def _step(self, learners: Learners, grads: list[Tensor]) -> None:
        for engine in self._engines:
            if engine.step(learners, grads):
                return
        engine = self._engines[-1]
        name = self.defaults["engine"]
        bad("engine", name, f"{engine.why_not}; 'auto' takes what there is")

    @property
    def _wrapped(self) -> Wrapped | None:
        engine = self._engines[0]
        return engine if isinstance(engine, Wrapped) else None

    def train(self) -> None:
        """Put a base that has modes of training and evaluation into the first; else nothing."""
        if self._wrapped is not None:
            self._wrapped.call("train")

    def eval(self) -> None:
        """Put a base that has modes of training and evaluation into the second; else nothing."""
        if self._wrapped is not None:
            self._wrapped.call("eval")

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients, in the base's own way if it has one."""
        given = () if set_to_none else (False,)
        if self._wrapped is None or not self._wrapped.call("zero_grad", *given):
            super().zero_grad(set_to_none)
