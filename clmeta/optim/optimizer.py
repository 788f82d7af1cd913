"""MetaOptimize as a torch optimiser: the Hessian-free algorithm of the paper's experiments."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from clmeta.blocks import FINE, Blocks
from clmeta.engines.compiled import CompiledPath
from clmeta.engines.curved import CurvedPath, Hessian
from clmeta.engines.lists import state_dtype
from clmeta.engines.masked import MaskedPath
from clmeta.engines.native import NativePath, is_native
from clmeta.engines.native_fine import NativeFinePath
from clmeta.engines.path import Path
from clmeta.engines.stepsizes import StepSizes
from clmeta.engines.wrapped import WrappedPath
from clmeta.errors import bad, require
from clmeta.ground.checks import NONFINITE, NUMBERS, check_bounds, check_numbers, step_size_bounds
from clmeta.optim.groups import make_groups
from clmeta.optim.trial import check_rule
from clmeta.rules import Rule, as_rule

SCHEDULED = (
    "writes group['lr'], which is MetaOptimize's own view of its step sizes; remove the schedule "
    "(step sizes are learned; alpha0 sets the first ones), or use a torch.optim optimiser with it"
)


class MetaOptimize(torch.optim.Optimizer):
    r"""Any first-order optimiser with step sizes that are learned while it runs.

    Per step, with u the base direction, kappa the decoupled weight decay, alpha = exp(beta)
    (Algorithm 3 of Sharifnassab, Salehkaleybar, Sutton 2025; equations.md, section 4)::

        z     = <h, g>  summed over the block
        dw    = -alpha (u + kappa w)
        w    <- w + dw
        h    <- gamma (1 - alpha kappa) h + dw
        beta <- meta_update(beta, z)

    Args:
        params: ``model.parameters()``, ``model.named_parameters()`` or a list of groups. Groups
            may set ``name``, ``alpha0``, ``eta``, ``gamma`` and ``weight_decay``; blocks are
            formed within each group.
        base: base update: a rule's name (``"sgd"``, ``"sgdm"``, ``"rmsprop"``, ``"adamw"``,
            ``"lion"``), a ``clmeta.rules.Rule``, or any torch optimiser, as a class or a function
            of its parameters (``functools.partial(torch.optim.AdamW, fused=True)``).
        meta: meta update of beta: a rule's name, a rule, or ``"none"`` for fixed step sizes.
        blocks: ``"scalar"``, ``"layer"``, ``"tensor"``, ``"head"`` (the paper's two blocks: the
            last layer and the rest), ``"node"`` (a step size per unit), ``"weight"``, or a mapping
            from block name to parameter-name prefixes. All but the first, ``"tensor"``, ``"node"``
            and ``"weight"`` need ``named_parameters()``.
        alpha0: initial step size, best one or two orders of magnitude below a good fixed one.
        eta: meta step size.
        gamma: discount, in [0, 1]; 1 for stationary problems, 0.999 for non-stationary ones.
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
        compile: make each step one program by ``torch.compile``, which takes some seconds at the
            first step; where that does not work, warn and go on without. For accelerators, and
            blocks not finer than tensors. On the CPU steps are C programs as they are
            (docs/speed.md), and ``compile`` is for rules and machines where they are not.
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
        gamma: float = 1.0,
        weight_decay: float = 0.0,
        alpha_min: float | None = None,
        alpha_max: float | None = None,
        nonfinite: str = "raise",
        hessian: str | Hessian = "free",
        approximation: str = "L",
        compile: bool = False,
        lr: None = None,
    ) -> None:
        require(lr is None, "lr", lr, "step sizes are learned; alpha0 is the first one")
        numbers = {"alpha0": alpha0, "eta": eta, "gamma": gamma, "weight_decay": weight_decay}
        check_numbers(numbers)
        require(nonfinite in NONFINITE, "nonfinite", nonfinite, f"must be one of {NONFINITE}")
        self.granularity = blocks if isinstance(blocks, str) and blocks in FINE else None
        self.bounds = (alpha_min, alpha_max)
        check_bounds(alpha0, alpha_min, alpha_max, fine=bool(self.granularity))
        self.nonfinite = nonfinite
        meta_rule = None if isinstance(meta, str) and meta == "none" else as_rule(meta, "meta")
        base_is_rule = isinstance(base, str | Rule) or (
            isinstance(base, type) and issubclass(base, Rule)
        )
        rule = as_rule(base, "base") if base_is_rule else None  # type: ignore[arg-type]
        if rule is None and not callable(base):
            bad("base", base, "pass a rule, its name, or a torch optimiser class")
        if rule is None and self.granularity:
            bad("blocks", blocks, "a wrapped torch optimiser has one lr per block; pass a rule")
        hessian = hessian if isinstance(hessian, Hessian) else Hessian(hessian)
        if approximation != "L":
            bad(
                "approximation",
                approximation,
                "only 'L' here; see clmeta.general.engine for others",
            )
        if hessian.kind != "free" and (rule is None or meta_rule is None):
            what = f"base={base!r}" if rule is None else "meta='none'"
            bad("hessian", hessian.kind, f"has no use with {what}; pass rules for both updates")
        groups = make_groups(params, blocks)
        first = groups[0]["params"][0]
        with torch.no_grad():
            for level, each in (("base", rule), ("meta", meta_rule)):
                if each is not None:
                    check_rule(each, first if level == "base" else first.new_zeros(2), level)
        dtype = torch.float64 if state_dtype(first) == torch.float64 else torch.float32
        self.sizes = StepSizes(meta_rule, first.device, dtype)
        self._config = {
            "base": repr(rule) if rule else getattr(base, "__name__", type(base).__name__),
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
            compile=compile,
        )
        self._path: Path
        on_cpu = first.device.type == "cpu"
        if rule is None:
            self._path = WrappedPath(self, base)  # type: ignore[arg-type]
        elif hessian.kind != "free":
            self._path = CurvedPath(self, rule, self.granularity, hessian)
        elif on_cpu and self.granularity:
            self._path = NativeFinePath(self, rule, self.granularity)
        elif on_cpu and (not compile or is_native(rule, first.dtype, meta_rule is not None)):
            self._path = NativePath(self, rule)
        elif compile:
            self._path = CompiledPath(self, rule, self.granularity)
        else:
            self._path = MaskedPath(self, rule, self.granularity)

    def beta_bounds(self, group: dict[str, Any]) -> tuple[float | None, float]:
        """Bounds of a block's beta = log alpha; above, alpha is always kept finite."""
        low, high = step_size_bounds(group["alpha0"], *self.bounds, fine=bool(self.granularity))
        largest = self.sizes.largest
        return math.log(low) if low else None, min(math.log(high), largest) if high else largest

    # ---- reading -------------------------------------------------------------------------

    @property
    def block_names(self) -> list[str]:
        """Names of the blocks, in the order of the groups."""
        return [group["name"] for group in self.param_groups]

    @property
    def alpha(self) -> Tensor:
        """(B,) step sizes that the next step will use; a view that ``step`` updates in place.

        For ``"node"`` and ``"weight"`` it holds each block's geometric mean.
        """
        return self.sizes.alpha

    @property
    def withheld(self) -> int:
        """Number of updates withheld for non-finite values; reads from the device."""
        return int(self.sizes.withheld)

    def step_sizes(self) -> dict[str, float]:
        """Block name to alpha (geometric mean within ``"node"`` and ``"weight"`` blocks).

        Raises:
            NonFiniteError: if an update was withheld, unless ``nonfinite="skip"``.
        """
        self.check_finite()
        return dict(zip(self.block_names, self.sizes.alpha.tolist(), strict=True))

    def check_finite(self) -> None:
        """Raise NonFiniteError, naming step and block, if an update was withheld."""
        if self.nonfinite == "raise":
            self.sizes.check_finite(self.block_names)

    @property
    def needs_graph(self) -> bool:
        """Whether gradients must come from ``backward(create_graph=True)``."""
        return isinstance(self._path, CurvedPath)

    # ---- stepping ------------------------------------------------------------------------

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of weights and step sizes; returns the closure's loss, if there is one."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._check_lr()
        self.sizes.calls += 1
        self._path.step()
        self._version = self.sizes.alpha._version
        return loss

    def _check_lr(self) -> None:
        """Raise BadArgument if something wrote ``group["lr"]`` since the last step."""
        alpha = self.sizes.alpha
        if alpha._version != self._version:
            bad("group['lr']", alpha.tolist(), f"something {SCHEDULED}")
        for group, bound in zip(self.param_groups, self._lrs, strict=True):
            if group["lr"] is not bound:
                bad(
                    f"group['lr'] of block {group['name']!r}", group["lr"], f"something {SCHEDULED}"
                )

    def meta_update(self, z: Tensor, keep: Tensor | None) -> None:
        """Move beta of all blocks (or those to keep) by the meta rule."""
        etas = [group["eta"] for group in self.param_groups]
        self.sizes.update(z, etas, *self.beta_bounds(self.param_groups[0]), keep)

    # ---- groups, saving and loading --------------------------------------------------------

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a block; it starts at the group's ``alpha0`` with a name of its own."""
        group = dict(param_group)
        if "lr" in group:
            bad("lr", group["lr"], "a block's first step size is called alpha0")
        check_numbers({name: group.get(name, self.defaults[name]) for name in NUMBERS})
        alpha0 = group.get("alpha0", self.defaults["alpha0"])
        check_bounds(alpha0, *self.bounds, fine=bool(self.granularity))
        name = group.setdefault("name", f"group{len(self.param_groups)}")
        require(name not in self.block_names, "name", name, "a block has this name; choose another")
        defaults, self.defaults = self.defaults, {n: self.defaults[n] for n in NUMBERS}
        try:
            super().add_param_group(group)
        finally:
            self.defaults = defaults
        self.sizes.add_block(self.param_groups[-1]["alpha0"])
        self._bind()

    def _bind(self) -> None:
        """Make every ``group["lr"]`` a view of its alpha."""
        self._lrs = list(self.sizes.alpha.unbind())
        self._version = self.sizes.alpha._version
        for group, bound in zip(self.param_groups, self._lrs, strict=True):
            group["lr"] = bound

    def state_dict(self) -> dict[str, Any]:
        """torch's ``state`` and ``param_groups``, and ``meta``: step sizes and meta state.

        Holds tensors, numbers and strings only: ``torch.load(weights_only=True)`` reads it.

        Raises:
            NonFiniteError: if an update was withheld, unless ``nonfinite="skip"``.
        """
        self.check_finite()
        saved = super().state_dict()
        saved["param_groups"] = [
            {**group, "lr": group["lr"].clone()} for group in saved["param_groups"]
        ]
        saved["meta"] = {**self.sizes.state_dict(), "config": dict(self._config)}
        saved["meta"]["path"] = self._path.saved()
        return saved

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue bit for bit from what ``state_dict`` gave.

        Raises:
            BadArgument: if it is another optimiser's, has other blocks, or other rules.
        """
        if "meta" not in state_dict:
            bad("state_dict", sorted(state_dict), "has no 'meta'; it is not MetaOptimize's")
        names = [group.get("name") for group in state_dict["param_groups"]]
        if names != self.block_names:
            bad("state_dict", names, f"has other blocks than this optimiser's {self.block_names}")
        config = state_dict["meta"]["config"]
        for key, mine in self._config.items():
            if config[key] != mine:
                bad(f"state_dict {key}", config[key], f"this optimiser has {mine}; make it alike")
        super().load_state_dict({k: v for k, v in state_dict.items() if k != "meta"})
        self._restore_precision(state_dict)
        self.sizes.load_state_dict(state_dict["meta"])
        self._path.restore(state_dict["meta"]["path"])
        self._bind()

    def _restore_precision(self, saved: dict[str, Any]) -> None:
        """Undo torch's cast of state to the weights' dtype, which would round a float32 trace."""
        ids = [i for group in saved["param_groups"] for i in group["params"]]
        params = [p for group in self.param_groups for p in group["params"]]
        for i, p in zip(ids, params, strict=True):
            entries = saved["state"].get(i, {})
            if "h" in entries and entries["h"].dtype != state_dtype(p):
                continue  # from an optimiser of another precision: the cast is wanted
            for key, value in entries.items():
                if isinstance(value, Tensor) and value.dtype != self.state[p][key].dtype:
                    self.state[p][key] = value.to(device=p.device, copy=True)

    def __getstate__(self) -> dict[str, Any]:
        mine = ("sizes", "granularity", "bounds", "nonfinite", "_config", "_path")
        state = dict(super().__getstate__())
        state.update({key: self.__dict__[key] for key in mine})
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        # torch adds it after loading; a second optimiser is built from `defaults` as keywords.
        self.defaults.pop("differentiable", None)
        if "_path" in state:
            self._path.optimizer = self
            self._bind()
