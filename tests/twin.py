"""A plain reference twin of Algorithm 3 in the paper's letters; every path is checked against it.

One list of tensors per letter, one line per equation, nothing shared with clmeta.
"""

from __future__ import annotations

import math

import torch


def direction(rule, g, s, t):
    """u and the next state of a rule, equations.md section 4, from its parameters alone."""
    name = type(rule).__name__
    if name == "SGD":
        return g, s
    if name == "SGDm":
        m = rule.rho * s["m"] + (g if rule.accumulate else (1 - rule.rho) * g)
        return (s["m"] if rule.stale else m), {"m": m}
    if name == "Lion":
        u = torch.sign(rule.c * s["m"] + (1 - rule.c) * g)
        return u, {"m": rule.rho * s["m"] + (1 - rule.rho) * g}
    v = rule.lam * s["v"] + (1 - rule.lam) * g**2
    v_hat = v / (1 - rule.lam**t)
    if name == "RMSprop":
        return g / torch.sqrt(v_hat + rule.eps), {"v": v}
    if rule.accumulate:
        m = rule.rho * s["m"] + g
        m_hat = m
    else:
        m = rule.rho * s["m"] + (1 - rule.rho) * g
        m_hat = m / (1 - rule.rho**t)
    return m_hat / torch.sqrt(v_hat + rule.eps), {"m": m, "v": v}


class Twin:
    """Algorithm 3 with one beta per block; ``blocks`` are lists of indices into ``w``."""

    def __init__(self, w, blocks, base, meta, alpha0, eta, gamma, kappa):
        self.w = [x.clone() for x in w]
        self.blocks, self.base, self.meta = blocks, base, meta
        self.eta, self.gamma, self.kappa = eta, gamma, kappa
        zeros = [torch.zeros_like(x) for x in w]
        self.h = [x.clone() for x in zeros]
        self.s = [{"m": x.clone(), "v": x.clone()} for x in zeros]
        self.beta = [torch.tensor(math.log(alpha0), dtype=w[0].dtype) for _ in blocks]
        self.meta_s = [{"m": b * 0, "v": b * 0} for b in self.beta]
        self.t = 0

    @property
    def alpha(self):
        return torch.stack([beta.exp() for beta in self.beta])

    def step(self, grads):
        self.t += 1
        for b, block in enumerate(self.blocks):
            alpha = self.beta[b].exp()
            z = sum((self.h[i] * grads[i]).sum() for i in block)
            for i in block:
                u, self.s[i] = direction(self.base, grads[i], self.s[i], self.t)
                dw = -alpha * (u + self.kappa * self.w[i])
                self.w[i] = self.w[i] + dw
                self.h[i] = self.gamma * (1 - alpha * self.kappa) * self.h[i] + dw
            if self.meta is not None:
                u, self.meta_s[b] = direction(self.meta, z, self.meta_s[b], self.t)
                self.beta[b] = self.beta[b] - self.eta * u
