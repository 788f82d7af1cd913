"""MetaOptimize in full: exact or approximate, for any differentiable rule and meta-parameter."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from clmeta.blocks import Blocks
from clmeta.errors import require
from clmeta.general import state as saved
from clmeta.general.checks import check_jvp, check_mode, require_finite
from clmeta.general.curvature import Curvature, Params
from clmeta.general.functional import copy_into
from clmeta.general.layout import Layout, check_params
from clmeta.general.memory import kept_numbers, peak_numbers, require_fit, sizes
from clmeta.general.meta_parameters import Learn, parse_learn
from clmeta.general.setup import meta_vectors
from clmeta.general.step_map import StepMap
from clmeta.ground.checks import DISCOUNT, GAMMA, check_number, count_or_none
from clmeta.ground.forward import quiet_first_use, scale, tree_map, zeros
from clmeta.ground.machine import available_bytes
from clmeta.ground.seeds import check_seed
from clmeta.rules import SGD, Rule, as_rule


class GeneralMetaOptimize:
    """Algorithm 1 of the paper and its approximations, by one forward-mode product a step.

    With x the weights and base state, y = (beta, meta state), h = vec(H) and
    T(y, x, h) the step of the whole system (Sec. 4, eqs. 9-14; docs/method.md)::

        (dY, dX, dQ) = JVP of T along the tangents (Y, gamma X, gamma Q)
        X <- dX;  Y <- gamma dY + (1 - gamma) E;  Q <- dQ

    ``approximation`` says what is propagated: ``"full"`` (Y, X, Q); ``"2x2"`` (Y, X), the trace
    being a constant inside T; ``"L"`` X alone. ``hessian`` says what is done with the derivative
    of gradients: ``"exact"``; ``"diagonal"``, only the Hessian's diagonal, itself held constant
    inside T; ``"free"``, none. ``full``/``exact`` needs third derivatives of the loss. With
    ``free``, ``2x2`` and ``L`` are the same where the meta state starts at zero.

    Memory, in numbers, for n weights, S numbers of base state, M entries of beta:

    ====================  =====================  ==========================================
    mode                  kept between steps     Hessian-vector products a step (``exact``)
    ====================  =====================  ==========================================
    ``L``, condensed      2 (n + S)              1 per learned kind
    ``L``                 (M + 1) (n + S)        M
    ``2x2``               (M + 1) (n + S)        M
    ``full``              M^2 n + (M + 1)(n + S) M^2, and M^2 third-derivative products
    ====================  =====================  ==========================================

    (condensed with K learned kinds: (K + 1) (n + S); besides, at most M^2 times one plus the
    number of meta slots for Y.) During a step old and new state are both there, and the work on
    c tangents at once takes about (10 c + 16) n more, in ``full`` (18 c^2 + 44) n, see ``chunk``
    and ``memory_bytes()``. ``diagonal`` costs n products of the Hessian instead, or as many as
    ``diagonal_samples``.

    Args:
        loss: ``loss(params, *batch) -> scalar tensor``; see ``functional_loss`` for modules.
        params: name to real floating-point tensor, all of one dtype and device; copied.
        base, meta: rules or their names; ``meta="none"`` keeps beta fixed.
        blocks: as in ``MetaOptimize``: ``"scalar"``, ``"layer"``, ``"tensor"``, ``"head"``,
            ``"node"``, ``"weight"``, or a mapping from block to parameter-name prefixes.
        alpha0: first step size, or one per block by name.
        eta: meta step size, or one per learned kind by name.
        gamma: discount in [0, 1], per step; 1 for stationary problems.
        weight_decay: decoupled weight decay kappa.
        approximation, hessian: the mode, see above.
        learn: learned kinds: ``"alpha"``, ``"weight_decay"`` and fields of the base rule
            (``"rho"``, ``"lam"``, ``"c"``), each with one value per block; a mapping also names the
            map from beta: ``{"alpha": "exp", "rho": "sigmoid"}``, or ``"identity"``.
        condensed: keep one vector h per learned kind instead of M columns; ``L`` only. Column
            j of H is then taken to be non-zero only in block j. That is exact for ``free`` and
            ``diagonal`` with rules that do not mix blocks, and for one block. For ``exact`` with
            more blocks h is the *row sum* of H: the meta-gradients still add up to the right
            total, but what beta of one block does to the weights of another is credited to
            the other. None: condensed where that is exact.
        rectify: hold the trace's own decay at or above zero, h max(0, d w+/d w), as IDBD does;
            ``diagonal`` only.
        meta_first: use the new beta in the same step, as IDBD and hypergradient descent do;
            ``L`` only. Otherwise as in the paper: beta of step t moves the weights of step t.
        alpha_min, alpha_max: bounds of the step sizes.
        diagonal_samples: None for the exact diagonal, else random vectors of the estimator of
            ``clmeta.general.curvature.hessian_diagonal``; drawn from ``seed``.
        chunk: tangents handled at once; lower it to save memory during a step.
        memory_limit: bytes that a step may take; None for what the device has left.
        seed: seed of the random vectors.

    Raises:
        BadArgument: for arguments that cannot work, combinations that have no meaning, rules
            that cannot be differentiated, and modes that do not fit in memory.
    """

    def __init__(
        self,
        loss: Callable[..., Tensor],
        params: Mapping[str, Tensor],
        base: str | Rule = "adamw",
        meta: str | Rule = "adam",
        blocks: Blocks = "scalar",
        alpha0: float | Mapping[str, float] = 1e-4,
        eta: float | Mapping[str, float] = 1e-3,
        gamma: float = GAMMA,
        weight_decay: float = 0.0,
        approximation: str = "L",
        hessian: str = "exact",
        *,
        learn: Learn = ("alpha",),
        condensed: bool | None = None,
        rectify: bool = False,
        meta_first: bool = False,
        alpha_min: float | None = None,
        alpha_max: float | None = None,
        diagonal_samples: int | None = None,
        chunk: int | None = None,
        memory_limit: int | None = None,
        seed: int = 0,
    ) -> None:
        quiet_first_use()
        require(callable(loss), "loss", loss, "pass a function loss(params, *batch) -> scalar")
        require(0 <= check_number("gamma", gamma) <= 1, "gamma", gamma, DISCOUNT)
        kappa = check_number("weight_decay", weight_decay)
        require(kappa >= 0, "weight_decay", weight_decay, "must not be negative")
        chunk = count_or_none("chunk", chunk)
        diagonal_samples = count_or_none("diagonal_samples", diagonal_samples)
        checked = check_params(params)
        first = next(iter(checked.values()))
        self._layout = Layout(checked, blocks)
        base = as_rule(base, "base")
        fixed_meta = isinstance(meta, str) and meta == "none"
        meta_rule = SGD() if fixed_meta else as_rule(meta, "meta")
        maps = parse_learn(learn, base)
        check_mode(approximation, hessian, condensed, rectify, meta_first, diagonal_samples)
        check_jvp(base, "base", first, needs_gradient=hessian != "free")
        if condensed is None:
            condensed = approximation == "L" and (hessian != "exact" or self._layout.size == 1)
        self.approximation, self.hessian, self.condensed = approximation, hessian, condensed
        self.gamma, self._rectify, self._meta_first = gamma, rectify, meta_first
        self.t = 0

        vectors = meta_vectors(
            maps, self._layout, base, alpha0, weight_decay, eta, alpha_min, alpha_max
        )
        beta, etas, low, high, alpha = (v.to(first) for v in vectors)
        if fixed_meta:
            etas = torch.zeros_like(beta)
        fixed: dict[str, Tensor | float] = {"alpha": alpha, "weight_decay": weight_decay}
        #: The step and its parts as pure functions, and what they do with second derivatives.
        self.map = StepMap(
            base, meta_rule, self._layout, maps, fixed, etas, low, high, condensed, chunk
        )
        check_jvp(meta_rule, "meta", beta, needs_gradient=approximation != "L" and not fixed_meta)
        self._x: Any = (checked, {name: base.init(p) for name, p in checked.items()})
        self._y: Any = {"beta": beta, "state": meta_rule.init(beta)}
        self._chunk, self._samples = chunk, diagonal_samples
        self._sizes = sizes(self._x, self._y, len(maps) if condensed else beta.numel())
        mend = "use fewer blocks, a smaller chunk, '2x2' or 'L', or condensed=True with 'L'"
        limit = available_bytes(first.device) if memory_limit is None else memory_limit
        require_fit(self.memory_bytes()["step"], limit, approximation, mend)

        self._generator = torch.Generator(first.device).manual_seed(check_seed(seed))
        self.curvature = Curvature(loss, hessian, diagonal_samples, self._generator, chunk)
        k, m = self._sizes["k"], self._sizes["m"]
        self._X: Any = zeros(self._x, k)
        self._Y: Any = {"beta": self.map.identity(beta), "state": {}}
        if approximation != "L":
            self._Y["state"] = zeros(self._y["state"], k)
        self._Q: Any = zeros(self.params, k, m) if approximation == "full" else {}
        #: (M,) meta-gradient of the last step.
        self.z = torch.zeros_like(beta)

    def memory_bytes(self) -> dict[str, int]:
        """Bytes ``kept`` between steps, exactly, and at the worst moment of a ``step``, roughly.

        The second is without what the loss itself needs: its activations, once per tangent
        handled at once.
        """
        item = self.beta.element_size()
        kept = kept_numbers(**self._sizes, approximation=self.approximation)
        peak = peak_numbers(
            **self._sizes,
            approximation=self.approximation,
            hessian=self.hessian,
            chunk=self._chunk,
            samples=self._samples,
        )
        return {"kept": item * sum(kept.values()), "step": item * peak}

    @torch.no_grad()
    def step(self, *batch: Any) -> Tensor:
        """One update of everything; the loss of the batch before it, a 0-dim tensor.

        Raises:
            NonFiniteError: if loss, gradient, curvature or a trace is not finite; nothing is
                updated then.
        """
        t, gamma = self.t + 1, self.gamma
        dx = scale(self._X, gamma)
        at = self.curvature.at(self.params, dx[0], batch)
        h = self._X[0]
        z = self.map.meta_gradient(h, at.g)
        y = self.map.update_meta(self._y, z, t)
        beta = (y if self._meta_first else self._y)["beta"]
        x, new_x = self.map.advance_base(self._x, beta, at, t, dx, self._Y["beta"], self._rectify)
        new_y, new_q = self._Y, self._Q
        if self.approximation != "L":
            dh = scale(self._Q, gamma) if self.approximation == "full" else None
            dy = self.map.advance_meta(self._y, h, at, t, self._Y, dh)
            new_y = scale(dy, gamma)
            new_y["beta"] = new_y["beta"] + (1 - gamma) * self.map.identity(z)
            if dh is not None:
                tangents = (dx, self._Y["beta"], dh)
                new_q = self.map.advance_trace(self._x, beta, h, at, t, gamma, tangents)
        require_finite(self.t, at, {"z": z, "x": x, "y": y, "X": new_x, "Y": new_y, "Q": new_q})
        self._x, self._y, self._X, self._Y, self._Q = x, y, new_x, new_y, new_q
        self.t, self.z = t, z
        return at.value

    @property
    def params(self) -> Params:
        """Name to weights."""
        return self._x[0]

    @property
    def beta(self) -> Tensor:
        """(M,) meta-parameters before their maps: for each learned kind one entry per block."""
        return self._y["beta"]

    @property
    def block_names(self) -> list[str]:
        """Names of the blocks, in order."""
        return list(self._layout.block_names)

    @property
    def labels(self) -> list[str]:
        """(M,) names of the entries of beta, e.g. ``"alpha[head]"``."""
        return [f"{kind}[{label}]" for kind in self.map.maps for label in self._layout.labels()]

    def meta_parameters(self) -> dict[str, Tensor]:
        """Learned kind to its (B,) values, one per block, unit or weight."""
        return self.map.values(self.beta)

    def step_sizes(self) -> dict[str, float]:
        """Block to its step size; the geometric mean where a block has many."""
        alpha = self.meta_parameters().get("alpha", self.map.fixed["alpha"])
        means = {}
        for block, values in self._layout.by_block(torch.as_tensor(alpha)).items():
            one = values.numel() == 1
            means[block] = float(values[0] if one else values.log().mean().exp())
        return means

    def trace_matrix(self) -> Tensor:
        """H, (n, M), rows in parameter order; n M numbers, whatever form is kept."""
        h = self._X[0]
        if not self.condensed:
            return torch.cat([each.flatten(1) for each in h.values()], 1).T.clone()
        size, rows = self._layout.size, []
        entry = torch.arange(size, device=self.beta.device, dtype=torch.float64)
        for name, each in h.items():
            column = self._layout.expand(entry, name).expand(each.shape[1:]).reshape(-1).long()
            block = each.new_zeros(column.numel(), each.shape[0], size)
            block[torch.arange(column.numel()), :, column] = each.flatten(1).T
            rows.append(block.flatten(1))
        return torch.cat(rows)

    def meta_sensitivity(self) -> Tensor:
        """The beta rows of Y, (M, k): derivative of beta with respect to past betas; E in ``L``."""
        return self._Y["beta"].T.clone()

    def copy_to(self, module: nn.Module) -> None:
        """Write the weights into a module's parameters of the same names."""
        copy_into(module, self.params)

    def state_dict(self) -> dict[str, Any]:
        """Everything that a later run needs to go on exactly, as copies."""
        parts = {name: getattr(self, f"_{name}") for name in saved.PARTS}
        return {
            "t": self.t,
            "mode": saved.mode_of(self),
            "generator": self._generator.get_state(),
            **tree_map(torch.clone, {**parts, "z": self.z}),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state of an optimiser built with the same arguments.

        Raises:
            BadArgument: if mode, names or shapes differ; nothing is changed then.
        """
        saved.check_mode_of(self, state)
        own = {name: getattr(self, f"_{name}") for name in saved.PARTS} | {"z": self.z}
        new = {name: saved.like(own[name], state[name], name) for name in own}
        self.z = new.pop("z")
        for name, tree in new.items():
            setattr(self, f"_{name}", tree)
        self.t = int(state["t"])
        self._generator.set_state(state["generator"])
