"""Published methods as settings of the general engine (Sec. 5 and Appendix B of the paper).

Each is a line or two over ``clmeta.general``; none is an implementation of its own. ``loss`` and
``params`` are those of ``GeneralMetaOptimize``, and so are further keyword arguments.
Autostep, which is no special case of MetaOptimize, is in ``clmeta.autostep``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from clmeta.errors import bad
from clmeta.general import GeneralMetaOptimize
from clmeta.ground.checks import GAMMA
from clmeta.lookup import Wanted, takes
from clmeta.registry import Registry
from clmeta.rules import Rule

SPECIAL: Registry[Callable[..., GeneralMetaOptimize]] = Registry(
    "special case", Wanted("a function that makes a GeneralMetaOptimize: (loss, params)", takes(2))
)
Loss = Callable[..., Tensor]
Params = Mapping[str, Tensor]
FORMS = {"additive": "identity", "multiplicative": "exp"}


@SPECIAL.register("idbd")
def idbd(
    loss: Loss, params: Params, alpha0: float = 0.05, theta: float = 0.01, **options: Any
) -> GeneralMetaOptimize:
    """IDBD (Sutton 1992): a step size per weight of a linear learner.

    ``beta <- beta + theta delta x h; alpha = exp(beta); w <- w + alpha delta x;
    h <- h max(0, 1 - alpha x^2) + alpha delta x``, if the loss is ``delta^2 / 2`` with
    ``delta = y - w x``. On other losses x^2 is the Hessian's diagonal: beyond Sutton's paper.

    Args:
        loss: ``loss(params, *batch)``, a scalar.
        params: name to tensor.
        alpha0: first step size of every weight.
        theta: meta step size, per step; eta elsewhere.
        options: further arguments of ``GeneralMetaOptimize``.
    """
    own: dict[str, Any] = {"blocks": "weight", "approximation": "L", "hessian": "diagonal"}
    own |= {"gamma": 1.0, "rectify": True, "meta_first": True}
    return GeneralMetaOptimize(
        loss, params, "sgd", "sgd", alpha0=alpha0, eta=theta, **own | options
    )


@SPECIAL.register("xu")
def xu(
    loss: Loss, params: Params, alpha0: float = 0.05, eta: float = 0.01, **options: Any
) -> GeneralMetaOptimize:
    """The extension of IDBD to any loss after Xu, van Hasselt, Silver (2018): the exact Hessian.

    ``beta <- beta - eta H^T g; w <- w - alpha g; H <- (I - diag(alpha) Hess) H - diag(alpha g)``,
    that is their accumulation ``dw/dbeta <- (I + df/dw) dw/dbeta + df/dbeta`` for the update
    f = -alpha g of a weightwise SGD, with each new batch's loss as the meta-objective. H has n^2
    numbers; ``condensed=True`` keeps its row sums alone, with one Hessian-vector product a step.

    Args:
        loss: ``loss(params, *batch)``, a scalar.
        params: name to tensor.
        alpha0: first step size of every weight.
        eta: meta step size, per step.
        options: further arguments of ``GeneralMetaOptimize``.
    """
    own: dict[str, Any] = {"blocks": "weight", "approximation": "L", "hessian": "exact"}
    own |= {"gamma": 1.0, "meta_first": True}
    return GeneralMetaOptimize(loss, params, "sgd", "sgd", alpha0=alpha0, eta=eta, **own | options)


@SPECIAL.register("hypergradient")
def hypergradient(
    loss: Loss,
    params: Params,
    base: str | Rule = "sgd",
    alpha0: float = 0.01,
    eta: float = 1e-4,
    form: str = "additive",
    **options: Any,
) -> GeneralMetaOptimize:
    """Hypergradient descent (Baydin et al. 2018): the last update alone is remembered, gamma = 0.

    ``additive``, as published: ``alpha <- alpha + eta <g_t, u_{t-1}>; w <- w - alpha u_t``.
    ``multiplicative``, on beta = log alpha: ``beta <- beta + eta alpha <g_t, u_{t-1}>``.

    Args:
        loss: ``loss(params, *batch)``, a scalar.
        params: name to tensor.
        base: base update; ``"sgdm"`` and ``"adam"`` give the paper's other variants.
        alpha0: first step size.
        eta: meta step size, per step.
        form: ``"additive"`` or ``"multiplicative"``.
        options: further arguments of ``GeneralMetaOptimize``.
    """
    if form not in FORMS:
        bad("form", form, f"one of {', '.join(FORMS)}")
    own: dict[str, Any] = {"gamma": 0.0, "hessian": "free", "meta_first": True}
    own |= {"learn": {"alpha": FORMS[form]}}
    return GeneralMetaOptimize(loss, params, base, "sgd", alpha0=alpha0, eta=eta, **own | options)


@SPECIAL.register("fixed")
def fixed_step_size(
    loss: Loss, params: Params, base: str | Rule = "adamw", alpha0: float = 1e-3, **options: Any
) -> GeneralMetaOptimize:
    """The base update with a step size that never changes: meta update "none".

    Its trace and meta-gradient ``z`` can still be read.

    Args:
        loss: ``loss(params, *batch)``, a scalar.
        params: name to tensor.
        base: base update.
        alpha0: the step size.
        options: further arguments of ``GeneralMetaOptimize``.
    """
    own = {"hessian": "free"} | options
    return GeneralMetaOptimize(loss, params, base, "none", alpha0=alpha0, **own)


@SPECIAL.register("scalar-sgd")
def scalar_sgd(
    loss: Loss,
    params: Params,
    alpha0: float = 1e-3,
    eta: float = 1e-3,
    gamma: float = GAMMA,
    **options: Any,
) -> GeneralMetaOptimize:
    """Algorithm 2 of the paper: SGD with one step size, moved by SGD, ``2x2``, exact Hessian.

    ``H <- gamma (I - alpha Hess) H - Y alpha g;
    Y <- gamma Y + (1 - gamma) - gamma^2 eta H^T Hess H``, H on the right being the old one.

    Args:
        loss: ``loss(params, *batch)``, a scalar.
        params: name to tensor.
        alpha0: first step size.
        eta: meta step size, per step.
        gamma: discount, per step.
        options: further arguments of ``GeneralMetaOptimize``.
    """
    own = {"approximation": "2x2", "hessian": "exact"} | options
    return GeneralMetaOptimize(
        loss, params, "sgd", "sgd", "scalar", alpha0=alpha0, eta=eta, gamma=gamma, **own
    )
