"""Every engine's step is the paper's, over the table of cases in `laws.py`."""

from __future__ import annotations

import itertools

import pytest
import torch
from benches import Alone, made
from laws import METAS, PAIRS, RULES, Case, assert_alike, expected
from optimizer_parts import QUICK, compiling, every_engine, every_granularity, native, slow

from clmeta.engines import fuse

GRANULARITIES = ("scalar", "layer", "node", "weight")
#: (learners, kind of gradients): one MetaOptimize; a stack, where outer products are found too.
FORMS = [(0, "partial"), (3, "any")]
MORE = [(0, "dense"), (1, "outer"), (1, "any"), (3, "dense"), (3, "partial"), (3, "outer")]
#: Pairs in which every rule is once the base and once the meta update.
SOME = [([*RULES][(k + 3) % len(RULES)], meta) for k, meta in enumerate(METAS)]


def stepped(case, engine):
    """What an engine comes to after the case's steps."""
    learners = made(case, engine)
    for grads in case.gradients():
        learners.step(grads)
    return learners.read()


def assert_twins(case, engine):
    how = {} if case.dtype == torch.float64 else {"rtol": 1e-4, "atol": 1e-5}
    try:
        assert_alike(stepped(case, engine), expected(case), **how)
    except AssertionError as error:
        raise AssertionError(f"{engine}, {case}: {error}") from error


def turns(base, granularity):
    """Meta updates for a base and a granularity, alone and in a stack.

    Each pair of rules has its turn at half of the granularities alone, and at one in a stack.
    """
    number, turn = [*RULES].index(base), [*GRANULARITIES, "mixed"].index(granularity)
    for k, meta in enumerate(METAS):
        if granularity != "mixed" and (number + k + turn) % 2:
            yield meta, FORMS[0]
        if (number + k + turn) % 5 == 0:
            yield meta, FORMS[1]


@pytest.mark.parametrize("engine", QUICK)
@pytest.mark.parametrize("granularity", [*GRANULARITIES, "mixed"])
@pytest.mark.parametrize("base", RULES)
def test_every_rule_pair_equals_the_twin(engine, granularity, base):
    for meta, form in turns(base, granularity):
        assert_twins(Case(base, meta, granularity, *form), engine)


@pytest.mark.parametrize("engine", QUICK)
@pytest.mark.parametrize("granularity", ["tensor", *GRANULARITIES, "mixed"])
@pytest.mark.parametrize("form", MORE, ids=str)
def test_every_form_of_gradients_equals_the_twin(engine, granularity, form):
    steps = 25 if form == (0, "dense") else 12
    for base, meta in SOME:
        if form[0] == 3 or granularity != "mixed":
            assert_twins(Case(base, meta, granularity, *form, steps=steps), engine)


@slow
@pytest.mark.parametrize("engine", QUICK)
@pytest.mark.parametrize("granularity", ["tensor", *GRANULARITIES, "mixed"])
@pytest.mark.parametrize("base", RULES)
def test_every_rule_pair_with_every_form_equals_the_twin(engine, granularity, base):
    for meta, form in itertools.product(METAS, FORMS + MORE):
        steps = 25 if form == (0, "dense") else 12
        if form[0] == 3 or granularity != "mixed":
            assert_twins(Case(base, meta, granularity, *form, steps=steps), engine)


@every_engine
@every_granularity
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_single_precision_equals_the_twin_loosely(engine, granularity, form):
    for base, meta in SOME[:2] if engine == "compiled" else SOME:
        assert_twins(Case(base, meta, granularity, *form, dtype=torch.float32), engine)


@slow
@pytest.mark.parametrize("engine", QUICK)
@every_granularity
@pytest.mark.parametrize("base", RULES)
def test_every_rule_pair_in_single_precision_equals_the_twin_loosely(engine, granularity, base):
    for meta, form in itertools.product(METAS, FORMS):
        assert_twins(Case(base, meta, granularity, *form, dtype=torch.float32), engine)


@every_engine
@every_granularity
@pytest.mark.parametrize("form", [(0, "dense"), (3, "any")], ids=str)
def test_tensors_of_no_dimension_no_number_or_one_are_like_others(engine, granularity, form):
    case = Case("adam", "adam", granularity, *form, shapes="odd")
    assert_twins(case, engine)


#: Each takes the compiler seconds.
COMPILED = [
    ("scalar", "adam", "adam", 0, "dense"),
    pytest.param("mixed", "lion", "rmsprop", 3, "outer", marks=compiling),
    pytest.param("node", "rmsprop", "lion", 3, "outer", marks=compiling),
]


@pytest.mark.parametrize(("granularity", "base", "meta", "learners", "kind"), COMPILED, ids=str)
def test_the_compiled_step_equals_the_twin(granularity, base, meta, learners, kind):
    assert_twins(Case(base, meta, granularity, learners, kind), "compiled")


@slow
@pytest.mark.compiled
@pytest.mark.parametrize("number", range(len(PAIRS)), ids=lambda n: " by ".join(PAIRS[n][::-1]))
def test_every_rule_pair_compiled_equals_the_twin(number):
    """Pairs take turns through granularities and numbers of learners: compiling takes seconds."""
    base, meta = PAIRS[number]
    turn = number + number // len(METAS)
    granularity = GRANULARITIES[turn % 4]
    form = ((0, "dense"), (3, "outer"))[turn // 4 % 2]
    assert_twins(Case(base, meta, granularity, *form), "compiled")


@slow
@pytest.mark.parametrize("granularity", [*GRANULARITIES, "mixed"])
@pytest.mark.parametrize("base", RULES)
def test_what_is_handed_to_the_compiler_equals_the_twin(granularity, base, monkeypatch):
    """Every rule pair's program, run as it is."""
    monkeypatch.setattr(fuse, "_compile", lambda program, examples: program)
    for meta, (learners, kind) in itertools.product(METAS, [(0, "dense"), (3, "outer")]):
        if learners or granularity != "mixed":
            assert_twins(Case(base, meta, granularity, learners, kind), "compiled")
    assert_twins(Case(base, "adam", granularity, 3, "any"), "compiled")


@pytest.mark.parametrize("engine", [native, "eager"])
@every_granularity
@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("piece", [1, 3, 8])
def test_tensors_may_be_cut_anywhere(engine, granularity, form, piece, monkeypatch):
    monkeypatch.setattr("clmeta.native.table.PIECE", piece)
    monkeypatch.setattr("clmeta.engines.pieces.PIECE", piece)
    for base, meta in (("adam", "adam"), ("sgdm", "none")):
        assert_twins(Case(base, meta, granularity, *form), engine)


@every_engine
@every_granularity
@pytest.mark.parametrize("meta", ["adam", "none"])
def test_what_a_step_knows_is_shown_by_the_names_of_blocks(engine, granularity, meta):
    """Step sizes of units and weights by their geometric mean, z by its sum, h by its norm."""
    case = Case("adam", meta, granularity)
    bench, twin = Alone(case, engine), expected(case)
    for grads in case.gradients():
        bench.step(grads)
    optimizer = bench.optimizer
    shown = optimizer.step_sizes(), optimizer.meta_gradients(), optimizer.trace_norms()
    for mine, theirs in zip(shown, ("alpha", "z", "norm"), strict=True):
        numbers = twin[theirs][0].tolist()
        assert mine == pytest.approx(dict(zip(optimizer.block_names, numbers, strict=True)))
    assert [group["lr"].item() for group in optimizer.param_groups] == optimizer.alpha.tolist()


def test_a_step_without_any_gradient_has_no_meta_gradient():
    bench = Alone(Case(), "auto")
    for grads in bench.case.gradients():
        bench.step(grads)
    assert bench.optimizer.z.abs().min() > 0
    bench.step([None] * 4)
    assert bench.optimizer.z.tolist() == [0.0, 0.0]
