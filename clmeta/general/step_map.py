"""The map T of one step of the whole system, written once for all modes (the paper's Sec. 4)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch
from torch import Tensor

from clmeta.errors import bad
from clmeta.general.curvature import Linearised, Params
from clmeta.general.layout import Layout
from clmeta.general.meta_parameters import OF_THE_UPDATE, Map
from clmeta.ground.forward import Tree, along, scale, tree_map
from clmeta.native.trace import elementwise
from clmeta.rules import Rule


def _join(parts: list[Tensor]) -> Tensor:
    """Several tensors as one vector; a single one as it is."""
    return parts[0] if len(parts) == 1 else torch.cat([part.reshape(-1) for part in parts])


def _split(joined: Tensor, shapes: list[torch.Size]) -> list[Tensor]:
    """The parts of ``_join``."""
    if len(shapes) == 1:
        return [joined]
    parts = joined.split([shape.numel() for shape in shapes])
    return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]


class StepMap:
    """Base and meta update as pure functions, and their products along tangents.

    A vector of meta-parameters has M = K B entries: for each of K learned kinds, one entry per
    block, unit or weight (B of them).

    Args:
        base, meta: the two rules.
        layout: place of every weight in a (B,) vector.
        maps: learned kind to its map, in order.
        fixed: ``alpha`` (B,) and ``weight_decay`` where they are not learned.
        eta: (M,) meta step sizes.
        low, high: (M,) bounds of beta; infinite for none.
        condensed: one tangent per kind instead of one per entry.
        chunk: tangents handled at once; None for all.
    """

    def __init__(
        self,
        base: Rule,
        meta: Rule,
        layout: Layout,
        maps: Mapping[str, Map],
        fixed: Mapping[str, Tensor | float],
        eta: Tensor,
        low: Tensor,
        high: Tensor,
        condensed: bool,
        chunk: int | None,
    ) -> None:
        self.base, self.meta, self.layout, self.maps = base, meta, layout, dict(maps)
        self.fixed, self.eta, self.low, self.high = dict(fixed), eta, low, high
        self.condensed, self.chunk = condensed, chunk

    def values(self, beta: Tensor) -> dict[str, Tensor]:
        """Learned kind to its (B,) values at beta."""
        parts = beta.split(self.layout.size)
        return {k: m.forward(part) for (k, m), part in zip(self.maps.items(), parts, strict=True)}

    def identity(self, like: Tensor) -> Tensor:
        """E, (k, M): the beta rows of the tangents, one per entry, or one per kind if condensed."""
        size, kinds = self.layout.size, len(self.maps)
        eye = torch.eye(kinds if self.condensed else kinds * size, dtype=like.dtype)
        return (eye.repeat_interleave(size, 1) if self.condensed else eye).to(like.device)

    def move(self, x: Tree, beta: Tensor, g: Params, t: int) -> Tree:
        """Base update: ``w <- w - alpha (u + kappa w)`` for every parameter."""
        params, states = x
        values = {**self.fixed, **self.values(beta)}
        fields = [kind for kind in self.maps if kind not in OF_THE_UPDATE]
        moved: Params = {}
        kept: dict[str, dict[str, Tensor]] = {name: {} for name in params}
        # Of a formula of each number, one call can serve all tensors.
        groups = [list(params)] if elementwise(self.base) else [[name] for name in params]
        for names in groups:
            local = {kind: self._local(value, names, params) for kind, value in values.items()}
            rule = self.base
            if fields:
                rule = dataclasses.replace(rule, **{kind: local[kind] for kind in fields})
            w = _join([params[name] for name in names])
            state = {slot: _join([states[n][slot] for n in names]) for slot in states[names[0]]}
            u, state = rule.update(_join([g[name] for name in names]), state, t)
            kappa = local["weight_decay"]
            if isinstance(kappa, Tensor) or kappa != 0:
                u = u + kappa * w
            shapes = [params[name].shape for name in names]
            moved.update(zip(names, _split(w - local["alpha"] * u, shapes), strict=True))
            for slot, value in state.items():
                for name, part in zip(names, _split(value, shapes), strict=True):
                    kept[name][slot] = part
        return moved, kept

    def _local(self, value: Tensor | float, names: list[str], params: Params) -> Tensor | float:
        """A (B,) vector's entries for the weights of some parameters, joined."""
        if not isinstance(value, Tensor):
            return value
        if len(names) == 1:
            return self.layout.expand(value, names[0])
        return _join([self.layout.expand(value, n).expand(params[n].shape) for n in names])

    def meta_gradient(self, h: Params, g: Params) -> Tensor:
        """z = H^T g, (M,); from the trace's condensed form where it is kept condensed."""
        if not self.condensed:
            parts = [h[name].flatten(1) @ g[name].flatten() for name in g]
            return torch.stack(parts).sum(0)
        sums = [
            self.layout.gather({name: h[name][k] * g[name] for name in g})
            for k in range(len(self.maps))
        ]
        return torch.cat(sums)

    def update_meta(self, y: Tree, z: Tensor, t: int) -> Tree:
        """Meta update: ``beta <- beta - eta u``, held within its bounds."""
        u, state = self.meta.update(z, y["state"], t)
        beta = y["beta"] - self.eta * u
        return {"beta": torch.clamp(beta, self.low, self.high), "state": state}

    def advance_base(
        self, x: Tree, beta: Tensor, at: Linearised, t: int, dx: Tree, dbeta: Tensor, rectify: bool
    ) -> tuple[Tree, Tree]:
        """Next x, and its tangents; ``dx`` is gamma X.

        With ``rectify`` the weights' own decay is held at or above zero, as in IDBD:
        ``h <- h max(0, d w+/d w) + (d w+/d beta)``.
        """

        def move(x: Tree, beta: Tensor, g: Params = at.g) -> Tree:
            return self.move(x, beta, g, t)

        def products(dx: Tree, dbeta: Tensor) -> tuple[Tree, Tree]:
            if at.dg is None:
                return along(move, (x, beta), (dx, dbeta), self.chunk)
            return along(move, (x, beta, at.g), (dx, dbeta, at.dg), self.chunk)

        moved, out = products(dx, dbeta)
        if rectify:
            rest = (tree_map(torch.zeros_like, dx[1]), torch.zeros_like(dbeta))
            own = products((dx[0], rest[0]), rest[1])[1][0]
            out_w = tree_map(
                lambda d, o, h: d - torch.where(o * h < 0, o, torch.zeros_like(o)),
                out[0],
                own,
                dx[0],
            )
            out = (out_w, out[1])
        return moved, out

    def advance_meta(
        self, y: Tree, h: Params, at: Linearised, t: int, dy: Tree, dh: Params | None
    ) -> Tree:
        """Tangents of the next y; ``dh`` is gamma Q, or None to hold the trace constant."""
        primals, tangents = {"y": y}, {"y": dy}
        if dh is not None:
            primals["h"], tangents["h"] = h, dh
        if at.dg is not None:
            primals["g"], tangents["g"] = at.g, at.dg

        def f(v: Tree) -> Tree:
            return self.update_meta(v["y"], self.meta_gradient(v.get("h", h), v.get("g", at.g)), t)

        return along(f, (primals,), (tangents,), self.chunk)[1]

    def advance_trace(
        self,
        x: Tree,
        beta: Tensor,
        h: Params,
        at: Linearised,
        t: int,
        gamma: float,
        tangents: tuple[Tree, Tensor, Tree],
    ) -> Params:
        """Tangents of the next trace along (gamma X, Y, gamma Q); Y and X~ are constants in T."""
        dx, dbeta, _ = tangents

        def next_trace(x: Tree, beta: Tensor, h: Params) -> Params:
            dw = scale(h, gamma)
            inner = at.differentiable(x[0], dw)
            return self.advance_base(x, beta, inner, t, (dw, dx[1]), dbeta, False)[1][0]

        try:
            return along(next_trace, (x, beta, h), tangents, self.chunk)[1]
        except (NotImplementedError, RuntimeError) as error:
            unknown = isinstance(error, NotImplementedError) or "ZeroTensor" in str(error)
            if not unknown:
                raise
            bad(
                "approximation",
                "full",
                f"torch has no third derivative of this loss ({str(error).splitlines()[0]}); write "
                "the loss in elementary operations, ((a - b) ** 2).mean() for mse_loss, or use "
                "'2x2', 'L' or another hessian",
            )
