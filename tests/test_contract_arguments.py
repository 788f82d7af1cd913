"""Every argument, given every wrong kind of thing, works or is refused in one line by its name."""

from __future__ import annotations

import inspect
import math
import re
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import nn

from clmeta import BadArgument, MetaOptimize
from clmeta.rules import Adam, Rule

TINY, HUGE = float(torch.finfo(torch.float32).tiny), float(torch.finfo(torch.float32).max)


class Odd:
    """A thing that no argument is."""

    def __repr__(self):
        return "a thing\nof two lines"


THINGS = {
    "None": None,
    "true": True,
    "text": "x",
    "empty text": "",
    "minus": -1,
    "minus float": -0.5,
    "zero": 0,
    "large": 10**400,
    "nan": math.nan,
    "infinity": math.inf,
    "denormal": 1e-60,
    "beyond float32": 1e39,
    "complex": 1j,
    "fraction": Fraction(1, 3),
    "numpy number": np.float32(0.5),
    "numpy array": np.ones(2),
    "tensor": torch.tensor(0.5),
    "tensors": torch.ones(2, 2),
    "list": [],
    "list of one": [3],
    "tuple": (1, 2),
    "dictionary": {},
    "dictionary of something": {"a": 3},
    "set": set(),
    "object": Odd(),
    "class": Odd,
    "module class": nn.Linear,
    "module": nn.ReLU(),
    "function": lambda x: x,
    "builtin": len,
    "rule's class": Adam,
    "rule": Adam(),
    "abstract rule": Rule,
    "optimiser class": torch.optim.SGD,
    "optimiser": torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1),
    "generator": (i for i in ()),
    "bytes": b"x",
    "type": int,
}
ARGUMENTS = [*inspect.signature(MetaOptimize).parameters]
GROUP = ["params", "name", "alpha0", "eta", "gamma", "weight_decay", "units", "lr", "param_names"]


def weights():
    return [
        ("one.weight", nn.Parameter(torch.ones(3, 2))),
        ("two.bias", nn.Parameter(torch.ones(3))),
    ]


def steps(optimizer):
    for group in optimizer.param_groups:
        for p in group["params"]:
            p.grad = torch.ones_like(p)
    optimizer.step()


def one_line_by_name(error, names):
    text = str(error)
    assert "\n" not in text
    assert len(text) < 600
    assert re.match(rf"[\w ]*({'|'.join(names)})\b", text), text
    assert ": " in text


@pytest.mark.filterwarnings("ignore:.*deprecated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:params is a set:FutureWarning")
@pytest.mark.parametrize("thing", THINGS)
@pytest.mark.parametrize("argument", ARGUMENTS)
def test_an_argument_of_the_wrong_kind_is_refused_by_name(argument, thing):
    given = {"params": weights(), argument: THINGS[thing]}
    try:
        optimizer = MetaOptimize(**given)
    except BadArgument as error:
        one_line_by_name(error, [argument])
    else:
        if optimizer.needs_graph:
            return
        steps(optimizer)
        assert all(math.isfinite(size) for size in optimizer.step_sizes().values())


@pytest.mark.parametrize("thing", THINGS)
@pytest.mark.parametrize("entry", GROUP)
@pytest.mark.parametrize("way", ["constructor", "add_param_group"])
def test_an_entry_of_a_group_of_the_wrong_kind_is_refused_by_name(entry, thing, way):
    group = {"params": weights(), entry: THINGS[thing]}
    try:
        if way == "constructor":
            optimizer = MetaOptimize([group])
        else:
            optimizer = MetaOptimize([("first", nn.Parameter(torch.ones(2)))])
            optimizer.add_param_group(group)
    except BadArgument as error:
        one_line_by_name(error, [entry, "params", "param_group"])
    else:
        steps(optimizer)
        assert all(math.isfinite(size) for size in optimizer.step_sizes().values())


@pytest.mark.parametrize("thing", [t for t in THINGS if t != "dictionary of something"])
def test_a_group_of_the_wrong_kind_is_refused(thing):
    optimizer = MetaOptimize(weights())
    with pytest.raises(BadArgument) as caught:
        optimizer.add_param_group(THINGS[thing])
    one_line_by_name(caught.value, ["param_group"])
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"alpha0": 1e-60}, r"alpha0=1e-60: is no number of float32"),
        ({"alpha0": TINY / 2}, "is no number of float32"),
        ({"alpha0": HUGE * 2}, "is no number of float32"),
        ({"alpha0": 1e30}, r"alpha0=1e\+30: must be at most"),
        ({"alpha0": torch.tensor(0.1)}, "alpha0=tensor.*this is a Tensor"),
        ({"eta": 1e300}, "eta=.*is no number of float32"),
        ({"weight_decay": 1e300}, "weight_decay=.*is no number of float32"),
        ({"alpha_max": math.nan}, "alpha_max=nan: must be a finite number"),
        ({"alpha_max": "x"}, "alpha_max='x': must be a finite number"),
        ({"alpha_min": math.inf}, "alpha_min=inf"),
        ({"params": None}, "params=None: pass model.parameters"),
        ({"params": 3}, "params=3: pass model.parameters"),
        ({"base": nn.Linear}, "base="),
        ({"base": nn.ReLU()}, "base="),
        ({"meta": torch.optim.SGD}, "meta="),
        ({"blocks": 3}, "blocks=3"),
        ({"nonfinite": ["raise"]}, "nonfinite="),
    ],
)
def test_what_users_passed_is_answered_with_the_mend(arguments, message):
    with pytest.raises(BadArgument, match=message):
        MetaOptimize(**{"params": weights(), **arguments})


@pytest.mark.parametrize("alpha0", [TINY, 1e-30, 1e-4, 1, 1e18])
def test_any_normal_number_of_float32_may_be_a_first_step_size(alpha0):
    optimizer = MetaOptimize(weights(), "sgd", alpha0=alpha0)
    assert [*optimizer.step_sizes().values()] == pytest.approx([alpha0], rel=1e-5)


@pytest.mark.parametrize("number", [np.float32(0.25), np.float64(0.25), Fraction(1, 4)])
def test_numbers_of_other_libraries_count_and_are_saved_as_pythons(number, tmp_path):
    optimizer = MetaOptimize(weights(), alpha0=number, eta=number, gamma=number)
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))], "weight_decay": number})
    for group in optimizer.param_groups:
        assert all(type(group[name]) in (int, float) for name in ("alpha0", "eta", "gamma"))
    torch.save(optimizer.state_dict(), tmp_path / "saved.pt")
    optimizer.load_state_dict(torch.load(tmp_path / "saved.pt", weights_only=True))
