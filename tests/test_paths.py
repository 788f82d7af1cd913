"""``package.module:name`` works wherever a name does: a throw-away package for every registry."""

from __future__ import annotations

import importlib
import inspect
import itertools
import pkgutil
import sys
import warnings
from dataclasses import replace

import pytest
import torch
from torch import nn

import clmeta
from clmeta import MetaOptimize
from clmeta.analysis import PLOTS, load_runs, method_labels, save_plots
from clmeta.analysis.fidelity import MODES
from clmeta.blocks import BLOCKS, partition_names
from clmeta.cli.app import main
from clmeta.cli.reproduction import EXPERIMENTS
from clmeta.engines.choose import ENGINES
from clmeta.errors import BadArgument
from clmeta.general.meta_parameters import MAPS
from clmeta.lookup import short_name, short_names
from clmeta.models import MODELS, make_model
from clmeta.registry import Registry
from clmeta.rules import RULES, as_rule
from clmeta.runs.config import RunConfig
from clmeta.runs.runner import run
from clmeta.special import SPECIAL
from clmeta.strategies import STRATEGIES
from clmeta.streams import AUGMENTATIONS, DATASETS, STREAMS, load_dataset, make_stream
from clmeta.sweep.best import best
from clmeta.sweep.metrics import METRICS
from clmeta.sweep.protocol import ROWS

THINGS = '''
from dataclasses import dataclass

import torch
from torch import nn

from clmeta.engines.eager import Eager
from clmeta.general.meta_parameters import Map
from clmeta.rules import Rule
from clmeta.strategies.entries import avalanche_strategy
from clmeta.streams import load_dataset, permuted_inputs
from clmeta.sweep.metrics import metric
from clmeta.sweep.protocol import Row

number = 3


@dataclass(frozen=True)
class Half(Rule):
    def update(self, g, state, t):
        return 0.5 * g, state


@dataclass(frozen=True)
class Scaled(Rule):
    by: float

    def update(self, g, state, t):
        return self.by * g, state


def net(input_shape, n_classes, width=4):
    return nn.Sequential(nn.Flatten(), nn.Linear(input_shape[0] * 64, n_classes))


def two_tasks(data, tasks=2, steps_per_task=10, **common):
    return permuted_inputs(data, tasks, steps_per_task=steps_per_task, **common)


def dark_digits(data_root, download):
    digits = load_dataset("digits")
    digits.x_train //= 2
    return digits


class Negative:
    def draw(self, n, generator):
        return torch.zeros(n, 0, dtype=torch.int64)

    def apply(self, images, draws):
        return 255 - images


negative = Negative()


def by_first_letter(names):
    return {"all of it": list(names)}


def loses_one(names):
    return {"rest": list(names)[1:]}


def plain(model, optimizer, stream, *, recorder=None, on_progress=None, evaluate=True, say=""):
    from clmeta.strategies import learn_online

    return learn_online(model, optimizer, stream, recorder=recorder, evaluate=evaluate)


@avalanche_strategy("outside", about="Entered when its module is imported.")
def outside():
    from clmeta.strategies.online import Online

    return Online, {}, []


def losses(runs, ax):
    ax.plot(runs["step"], runs["loss"])
    return ax


@metric("steps outside", share=False, higher=False)
def steps(folder):
    """Steps."""
    return float(folder.summary["steps"])


def half_accuracy(folder):
    return folder.summary["cumulative_accuracy"] / 2


squared = Map(lambda beta: beta**2, lambda value: value**0.5, low=0.0)
mode = {"approximation": "L", "hessian": "free"}
row = Row("Mine", "sgd", "adam", 1e-3, 1e-3, 0.0, (1e-3,))


def case(loss, params, **options):
    from clmeta.special import idbd

    return idbd(loss, params, **options)


class Counting(Eager):
    steps = 0

    def step(self, learners, grads):
        Counting.steps += 1
        return super().step(learners, grads)


def experiment(output, bases, seeds, **options):
    return None
'''

#: Each registry with a thing of its kind in the package above, and one that is not.
KINDS = [
    (RULES, "Half", "net"),
    (MODELS, "net", "number"),
    (STREAMS, "two_tasks", "net"),
    (DATASETS, "dark_digits", "number"),
    (AUGMENTATIONS, "negative", "Negative"),
    (BLOCKS, "by_first_letter", "row"),
    (STRATEGIES, "plain", "net"),
    (PLOTS, "losses", "number"),
    (METRICS, "half_accuracy", "mode"),
    (MAPS, "squared", "net"),
    (MODES, "mode", "row"),
    (ROWS, "row", "mode"),
    (SPECIAL, "case", "number"),
    (EXPERIMENTS, "experiment", "row"),
    (ENGINES, "Counting", "net"),
]
IDS = [registry.kind for registry, _, _ in KINDS]


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package of the user's own, found in the working folder."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "__init__.py").write_text("")
    (tmp_path / "outside" / "things.py").write_text(THINGS)
    (tmp_path / "outside" / "broken.py").write_text("import clmeta\n\nclmeta.no_such_thing\n")
    (tmp_path / "outside" / "needs.py").write_text("import a_module_that_is_not_here\n")
    (tmp_path / "outside" / "script.py").write_text("import sys\n\nsys.exit(3)\n")
    (tmp_path / "outside" / "typo.py").write_text("def f(:\n")
    monkeypatch.chdir(tmp_path)
    registries = [registry for registry, _, _ in KINDS]
    before = [
        (r, dict(r._entries), dict(r._about), list(r._sources)) for r in registries
    ]  # what the package's decorators enter is taken out again
    yield tmp_path
    for registry, *tables in before:
        registry._entries, registry._about, registry._sources = tables
    for name in [name for name in sys.modules if name.partition(".")[0] == "outside"]:
        del sys.modules[name]


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


# ---- each where it is used ---------------------------------------------------------------------


def test_rules_and_optimisers_by_path_in_python(package):
    model = nn.Linear(3, 2)
    by_path = MetaOptimize(model.parameters(), base="torch.optim:AdamW", meta="outside.things:Half")
    by_class = MetaOptimize(model.parameters(), base=torch.optim.AdamW, meta="outside.things:Half")
    assert repr(by_path) == repr(by_class)
    by_path.load_state_dict(by_class.state_dict())
    model(torch.ones(1, 3)).sum().backward()
    by_path.step()
    assert isinstance(as_rule("outside.things:Half", "base"), RULES.get("outside.things:Half"))


def test_an_engine_by_path(package):
    model = nn.Linear(3, 2)
    optimizer = MetaOptimize(model.parameters(), engine="outside.things:Counting")
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    assert ENGINES.get("outside.things:Counting").steps == 1
    with pytest.raises(BadArgument, match=r"engine='torch\.nn:Linear': is the class Linear"):
        MetaOptimize(model.parameters(), engine="torch.nn:Linear")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"base": "torch.nn:Linear"},
            "base='torch.nn:Linear': is the class Linear; it must name",
        ),
        ({"base": nn.Linear}, "is the class Linear; pass a torch optimiser's class, a rule, or"),
        ({"base": "torch.optim.SGD"}, "unknown rule; did you mean 'torch.optim:SGD'? known: adam"),
        ({"base": "torch.optim:AdamX"}, "module 'torch.optim' has no 'AdamX'; did you mean 'Adam"),
        ({"meta": "torch.optim:AdamW"}, "meta='torch.optim:AdamW': is the class AdamW; it must n"),
        ({"meta": torch.optim.AdamW}, "is the class AdamW; pass a rule, or one of the names"),
        ({"meta": "nome"}, "meta='nome': unknown rule; did you mean 'none'? known: adam"),
        ({"base": "outside.things:Scaled"}, "pass a rule made with options; without it fails"),
    ],
)
def test_a_base_or_meta_that_is_none_is_refused(package, options, message):
    with pytest.raises(BadArgument) as error:
        MetaOptimize(nn.Linear(3, 2).parameters(), **options)
    assert message in str(error.value)


def test_blocks_by_path(package):
    blocks = "outside.things:by_first_letter"
    assert partition_names(["a", "b"], blocks) == {"all of it": ["a", "b"]}
    optimizer = MetaOptimize(nn.Linear(3, 2).named_parameters(), blocks=blocks)
    assert optimizer.block_names == ["all of it"]
    with pytest.raises(BadArgument, match="each parameter in exactly one block"):
        partition_names(["a", "b"], "outside.things:loses_one")


def test_data_streams_and_augmentations_by_path(package):
    dark = load_dataset("outside.things:dark_digits")
    assert dark.x_train.max() == 127
    stream = make_stream("outside.things:two_tasks", dark, augment="outside.things:negative")
    assert (stream.n_tasks, len(stream)) == (2, 20)
    x, *_ = next(iter(stream))
    assert x.min() >= 0.5, "the negative of a dark image is bright"
    with pytest.raises(BadArgument, match=r"augment='outside\.things:Negative': is the class Neg"):
        make_stream("outside.things:two_tasks", dark, augment="outside.things:Negative")


EVERYTHING = RunConfig(
    stream="outside.things:two_tasks",
    stream_options={"augment": "outside.things:negative"},
    dataset="outside.things:dark_digits",
    model="outside.things:net",
    base="torch.optim:SGD",
    meta="outside.things:Half",
    blocks="outside.things:by_first_letter",
    strategy="outside.things:plain",
)


def test_a_run_of_things_from_outside_and_what_tables_call_it(package):
    assert EVERYTHING.method == "SGD/Half by_first_letter"
    result = run(EVERYTHING, package / "runs" / "one")
    assert result.online.steps == 20
    again = RunConfig.from_file(result.folder)
    assert again == EVERYTHING
    runs = load_runs(package / "runs")
    assert ":" not in str(runs["method"].iloc[0])
    figures = save_plots(runs, package / "figures", ["png"], ["outside.things:losses"])
    assert [path.name for path in figures] == ["losses.png"]


def test_the_command_line_takes_paths_wherever_it_takes_names(package, capsys):
    def call(*words):
        with pytest.raises(SystemExit) as ended:
            main(list(words))
        said = capsys.readouterr()
        assert not ended.value.code, said.err
        return said.out

    things = {
        "--stream": "two_tasks",
        "--dataset": "dark_digits",
        "--model": "net",
        "--meta": "Half",
        "--blocks": "by_first_letter",
    }
    paths = [word for option, name in things.items() for word in (option, f"outside.things:{name}")]
    paths += ["--base", "torch.optim:SGD"]
    plain = ["--strategy", "outside.things:plain"]
    out = call("run", *paths, *plain, "--seeds", "0-1", "--jobs", "2")
    assert "SGD/Half by_first_letter" in out and "outside.things:" not in out
    (folder,) = (package / "runs").iterdir()
    assert folder.name.startswith("two_tasks-dark_digits-SGD-Half-by_first_letter-")
    call("plot", str(folder), "--plot", "outside.things:losses", "-o", "figures", "-f", "png")
    assert (package / "figures" / "losses.png").exists()
    grid = ["--grid", "alpha0=1e-4,1e-3", "--seeds", "0-1", "-o", "sweep"]
    call("sweep", *paths, *plain, *grid, "--jobs", "2")
    names = [path.name for path in (package / "sweep").iterdir() if path.name[0] != "."]
    assert len(names) == 4
    assert all(name.startswith("SGD-Half-by_first_letter-0.00") for name in names)
    call("best", "sweep", "--metric", "outside.things:half_accuracy")


def test_an_avalanche_strategy_that_enters_itself_is_found_by_its_path(package):
    learn = STRATEGIES.get("outside.things:outside")
    assert learn is STRATEGIES.get("outside")


def test_metrics_by_path(package):
    for number, (alpha0, seed) in enumerate(itertools.product((1e-4, 1e-3), (0, 1))):
        config = replace(EVERYTHING, meta="none", alpha0=alpha0, seed=seed)
        run(config, package / "runs" / str(number))
    halved = METRICS.get("outside.things:half_accuracy")
    assert halved.higher and halved.share
    assert METRICS.get("outside.things:steps") is METRICS.get("steps outside")
    (choice,) = best(package / "runs", metric="outside.things:steps", tune_seeds=[0])
    assert choice.mean == 20


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
