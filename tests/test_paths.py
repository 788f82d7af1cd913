"""``package.module:name`` works wherever a name does: a throw-away package for every registry."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import sys
import warnings

import pytest
from path_parts import IDS, KINDS, outside

import clmeta
from clmeta.analysis import PLOTS, method_labels
from clmeta.blocks import partition_names
from clmeta.cli.reproduction import EXPERIMENTS
from clmeta.errors import BadArgument
from clmeta.lookup import short_name, short_names
from clmeta.models import MODELS, make_model
from clmeta.registry import Registry
from clmeta.special import SPECIAL
from clmeta.streams import load_dataset, make_stream

package = pytest.fixture(outside)


def test_every_registry_is_tried_here():
    found = set()
    for module in pkgutil.walk_packages(clmeta.__path__, "clmeta."):
        if module.name.endswith("__main__"):
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Avalanche's own, at import
            loaded = importlib.import_module(module.name)
        found |= {id(v) for v in vars(loaded).values() if isinstance(v, Registry)}
    assert found == {id(registry) for registry, _, _ in KINDS}


@pytest.mark.parametrize(("registry", "good", "wrong"), KINDS, ids=IDS)
def test_a_thing_is_found_by_its_path_and_checked_for_what_it_is(package, registry, good, wrong):
    names = registry.names()
    assert registry.get(f"outside.things:{good}") is not None
    with pytest.raises(BadArgument) as error:
        registry.get(f"outside.things:{wrong}", "the argument")
    assert str(error.value).startswith(f"the argument='outside.things:{wrong}': is the ")
    assert f"it must name {registry.wanted.what}" in str(error.value)
    known = set(registry.names()) - set(names)
    assert known <= {"outside", "steps outside"}, "a path enters nothing"


@pytest.mark.parametrize(("registry", "good", "wrong"), KINDS, ids=IDS)
def test_what_is_registered_is_the_same_thing_by_its_path(registry, good, wrong):
    """A name's own module and qualified name lead to the entry itself."""
    tried = 0
    for name in registry:
        entry = registry.get(name)
        path = f"{getattr(entry, '__module__', '')}:{getattr(entry, '__qualname__', '<')}"
        if inspect.isroutine(entry) and "<" not in path:
            assert registry.get(path) is entry
            tried += 1
    if registry in (SPECIAL, PLOTS, EXPERIMENTS):
        assert tried == len(registry.names())


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("nowhere:net", "there is no module 'nowhere'; install it, or run where"),
        ("outside.nowhere:net", "there is no module 'outside.nowhere'; install it"),
        ("outside.things.more:net", "there is no module 'outside.things.more'; install it"),
        ("outside.things:Net", "module 'outside.things' has no 'Net'; did you mean 'net'?"),
        ("outside.things:nte", "module 'outside.things' has no 'nte'; did you mean 'net'?"),
        ("outside.things:zzzzz", "module 'outside.things' has no 'zzzzz'; check the name after"),
        ("outside.things:Half.up", "the class Half has no 'up'"),
        ("outside.broken:net", "importing outside.broken fails with AttributeError: module 'clm"),
        ("outside.broken:net", "(broken.py, line 3)"),
        ("outside.needs:net", "importing outside.needs fails with ModuleNotFoundError: No mod"),
        ("outside.needs:net", "'a_module_that_is_not_here' (needs.py, line 1)"),
        ("outside.script:net", "it ends the program with exit status 3"),
        ("outside.typo:f", "importing outside.typo fails with SyntaxError"),
        ("outside.things:", "write package.module:name"),
        (":net", "write package.module:name"),
        ("outside/things.py:net", "write package.module:name"),
        ("outside.things.net", "unknown model; did you mean 'outside.things:net'?"),
    ],
)
def test_a_path_that_leads_nowhere_says_what_is_there_and_how_to_mend_it(package, path, message):
    with pytest.raises(BadArgument) as error:
        MODELS.get(path)
    assert str(error.value).startswith(f"model={path!r}: ")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_importing_leaves_the_search_path_as_it_was(package):
    before = list(sys.path)
    MODELS.get("outside.things:net")
    assert sys.path == before


def test_a_colon_is_kept_for_paths():
    with pytest.raises(BadArgument, match=r"name='a:b': a colon is for package\.module:name"):
        MODELS.register("a:b")


# ---- names for tables and files --------------------------------------------------------------


def test_names_for_tables_and_files():
    assert short_name("package.module:Net") == "Net"
    assert short_name("adamw") == "adamw"
    assert short_name("a folder/with: a colon") == "a folder/with: a colon"
    assert short_names(["a:f", "b:f", "g"]) == {"a:f": "a.f", "b:f": "b.f", "g": "g"}


def test_labels_tell_things_of_one_name_apart():
    config = {"base": "a.mod:Mine", "meta": "adam", "blocks": "scalar", "model": "x:Net"}
    assert method_labels([config, config]) == ["Mine/adam scalar"] * 2
    other = {**config, "base": "b.mod:Mine", "model": "mlp"}
    assert method_labels([config, other]) == [
        "Mine/adam scalar, base=a.mod.Mine, model=Net",
        "Mine/adam scalar, base=b.mod.Mine, model=mlp",
    ]


# ---- things that fail when they are called -----------------------------------------------------


@pytest.fixture
def failing(package):
    (package / "failing.py").write_text(
        "def stop(*args, **options):\n    raise KeyError('what')\n\n\n"
        "def nothing(*args, **options):\n    return None\n"
    )
    yield
    del sys.modules["failing"]


@pytest.mark.parametrize("name", ["stop", "nothing"])
@pytest.mark.parametrize(
    ("argument", "call"),
    [
        ("model", lambda path: make_model(path, (1, 8, 8), 10)),
        ("stream", lambda path: make_stream(path, load_dataset("digits"))),
        ("dataset", lambda path: load_dataset(path)),
        ("blocks", lambda path: partition_names(["a"], path)),
    ],
)
def test_what_raises_or_gives_something_else_is_named(failing, argument, call, name):
    with pytest.raises(BadArgument) as error:
        call(f"failing:{name}")
    said = str(error.value)
    assert said.startswith(f"{argument}='failing:{name}': ")
    if name == "stop":
        assert "KeyError: 'what' (failing.py, line 2)" in said
