"""Steps of stacked learners in whole tensors, masked, reading nothing back: compiled or on CUDA.

Compiled, each parameter's arrays are read once and written once, and gradients that are outer
products are formed on the way, never in memory.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from clmeta._batched import Gradient, Outer
from clmeta._stacked import Stacked

Parts = list[list[Tensor]]


class CannotCompile(Exception):
    """Why the compiled program could not be made; nothing was changed."""


class DeviceSteps:
    """Steps a `Stacked` whose blocks are whole tensors.

    Args:
        stacked: the learners.
        compiled: by ``torch.compile``.
    """

    def __init__(self, stacked: Stacked, compiled: bool = False) -> None:
        self.stacked = stacked
        self.compiled = compiled
        self.build()

    def build(self) -> None:
        """Forget the compiled program, which holds for one number of learners."""
        self._measure: Callable[..., Any] = self._measures
        self._move: Callable[..., Any] = self._moves
        self._ready = not self.compiled

    def step(self, grads: Sequence[Gradient]) -> None:
        """One update of all learners.

        Raises:
            CannotCompile: at the first step, if there is no working compiler.
        """
        s = self.stacked
        kinds = zip(grads, s.h or s.w, strict=True)
        parts = [[g.a, g.b] if isinstance(g, Outer) else [g.to(x.dtype)] for g, x in kinds]
        with torch.no_grad():
            if not self._ready:
                self._compile(parts)
            z = s.by_block(self._measure(s.h, parts))
            ok = torch.isfinite(z).all(1, keepdim=True)
            s.calls += 1
            s.note(z, ok)
            t = s.steps + 1
            self._move(s.w, s.h, s.slots, parts, s.alphas(), s.gamma, s.kappa, t, ok)
            s.steps.copy_(torch.where(ok, t, s.steps))
            s.meta_update(z, ok)

    def _compile(self, parts: Parts) -> None:
        from torch.fx.experimental.proxy_tensor import make_fx

        s = self.stacked
        ok = torch.ones_like(s.steps, dtype=torch.bool)
        first = (s.h, parts)
        second = (s.w, s.h, s.slots, parts, s.alphas(), s.gamma, s.kappa, s.steps, ~ok)
        quiet = logging.getLogger("torch.utils.cpp_extension")
        level = quiet.level
        quiet.setLevel(logging.ERROR)  # it warns of CUDA where there is none
        try:
            # Programs traced first: each has a cache of its own, so none crowds another one out.
            measure, move = (
                torch.compile(make_fx(program)(*example), fullgraph=True, dynamic=False)
                for program, example in (
                    (lambda *args: self._measures(*args), first),
                    (lambda *args: self._moves(*args), second),
                )
            )
            measure(*first)
            move(*second)  # masked by ~ok: changes nothing
        except Exception as error:
            line = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise CannotCompile(line) from error
        finally:
            quiet.setLevel(level)
        self._measure, self._move, self._ready = measure, move, True

    def _measures(self, h: list[Tensor], parts: Parts) -> Tensor:
        """<h, g> (R, P) of each parameter, or for fixed step sizes a number to judge g by."""
        products = []
        for i, part in enumerate(parts):
            g = part[0] * part[1] if len(part) == 2 else part[0]
            products.append((h[i] * g if h else g).flatten(1).sum(1))
        return torch.stack(products, 1)

    def _moves(
        self,
        w: list[Tensor],
        h: list[Tensor],
        slots: dict[str, list[Tensor]],
        parts: Parts,
        alphas: Tensor,
        gamma: Tensor,
        kappa: Tensor,
        t: Tensor,
        ok: Tensor,
    ) -> None:
        """dw = -alpha (u + kappa w); w <- w + dw; h <- gamma (1 - alpha kappa) h + dw, where ok."""
        for i, part in enumerate(parts):
            g = part[0] * part[1] if len(part) == 2 else part[0]
            lead = (-1,) + (1,) * (g.dim() - 1)
            alpha, keep = alphas[:, i].reshape(lead), ok.view(lead)
            old = {name: xs[i] for name, xs in slots.items()}
            u, new = self.stacked.base.update(g, old, t.view(lead))
            dw = -alpha * (u + kappa.view(lead) * w[i])
            values = {name: torch.where(keep, new[name], old[name]) for name in old}
            if h:
                decay = gamma.view(lead) * (1 - alpha * kappa.view(lead))
                h[i].copy_(torch.where(keep, decay * h[i] + dw, h[i]))
            w[i].copy_(torch.where(keep, w[i] + dw, w[i]))
            for name, value in values.items():
                old[name].copy_(value)
