"""``package.module:name`` is taken by whatever takes a name, from Python and the command line."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from path_parts import outside
from torch import nn

from clmeta import MetaOptimize
from clmeta.analysis import load_runs, save_plots
from clmeta.blocks import partition_names
from clmeta.cli.app import main
from clmeta.engines.choose import ENGINES
from clmeta.errors import BadArgument
from clmeta.rules import RULES, as_rule
from clmeta.runs.config import RunConfig
from clmeta.runs.runner import run
from clmeta.strategies import STRATEGIES
from clmeta.streams import load_dataset, make_stream
from clmeta.sweep.best import best
from clmeta.sweep.metrics import METRICS

package = pytest.fixture(outside)


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
    again = RunConfig.from_file(result.folder, trust=True)
    assert again == EVERYTHING
    runs = load_runs(package / "runs")
    assert ":" not in str(runs["method"].iloc[0])
    figures = save_plots(runs, package / "figures", ["png"], ["outside.things:losses"])
    assert [path.name for path in figures] == ["losses.png"]


@pytest.mark.parametrize("jobs", ["1", pytest.param("2", marks=pytest.mark.slow)])
def test_the_command_line_takes_paths_wherever_it_takes_names(package, capsys, jobs):
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
    out = call("run", *paths, *plain, "--seeds", "0-1", "--jobs", jobs)
    assert "SGD/Half by_first_letter" in out and "outside.things:" not in out
    (folder,) = (package / "runs").iterdir()
    assert folder.name.startswith("two_tasks-dark_digits-SGD-Half-by_first_letter-")
    call("plot", str(folder), "--plot", "outside.things:losses", "-o", "figures", "-f", "png")
    assert (package / "figures" / "losses.png").exists()
    grid = ["--grid", "alpha0=1e-4,1e-3", "--seeds", "0-1", "-o", "sweep"]
    call("sweep", *paths, *plain, *grid, "--jobs", jobs)
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
