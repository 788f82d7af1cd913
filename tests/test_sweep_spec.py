"""What a sweep is made of, on the command line and in a TOML file, and what is refused."""

from __future__ import annotations

import json
import textwrap

import pytest

from clmeta.errors import BadArgument
from clmeta.runs.config import RunConfig
from clmeta.sweep.spec import SweepSpec, parse_grid

SHORT = {"stream_options": {"tasks": 2, "steps_per_task": 60}}
SPEC = SweepSpec(SHORT, {"alpha0": [1e-4, 1e-3], "blocks": ["scalar", "layer"]}, seeds=[0, 1])


def test_every_combination_is_run_with_every_seed():
    found = {(c.alpha0, c.blocks, c.seed) for c in SPEC.configs()}
    assert found == {(a, b, s) for a in (1e-4, 1e-3) for b in ("scalar", "layer") for s in (0, 1)}
    assert len(SPEC.configs()) == 8


def test_grid_values_are_split_at_commas_outside_brackets_and_quotes():
    words = [
        "alpha0=1e-5, .1",
        'blocks=scalar,{"body": ["0", "1"]}',
        "model-options.hidden=[8],[8,8]",
    ]
    assert parse_grid(words) == {
        "alpha0": [1e-5, 0.1],
        "blocks": ["scalar", {"body": ["0", "1"]}],
        "model_options.hidden": [[8], [8, 8]],
    }


def test_a_toml_file_gives_the_same_sweep_as_the_command_line(tmp_path):
    file = tmp_path / "sweep.toml"
    file.write_text(
        textwrap.dedent("""
        output = "somewhere"
        seeds = "0-1"
        [run.stream_options]
        tasks = 2
        steps_per_task = 60
        [grid]
        alpha0 = [1e-4, 1e-3]
        blocks = ["scalar", "layer"]
        """)
    )
    spec = SweepSpec.from_file(file)
    assert spec.configs() == SPEC.configs()
    assert spec.output == "somewhere"


def test_the_same_sweep_may_be_json_and_tables_of_keywords_need_no_quotes(tmp_path):
    (tmp_path / "sweep.json").write_text(
        json.dumps(
            {"seeds": [0, 1], "run": SHORT, "grid": {k: list(v) for k, v in SPEC.grid.items()}}
        )
    )
    assert SweepSpec.from_file(tmp_path / "sweep.json").configs() == SPEC.configs()
    (tmp_path / "sweep.toml").write_text("[grid]\nstream_options.tasks = [2, 3]\n")
    tasks = [c.stream_options for c in SweepSpec.from_file(tmp_path / "sweep.toml").configs()]
    assert tasks == [{"tasks": 2}, {"tasks": 3}]


def test_a_sweep_may_start_from_a_run_and_sweep_what_that_had(tmp_path):
    config = RunConfig(alpha0={"all": 1e-3}, seed=3, **SHORT)
    (tmp_path / "config.json").write_text(config.to_json())
    spec = SweepSpec.from_file(tmp_path).changed({}, {"alpha0": [1e-4, 1e-2]})
    assert [(c.alpha0, c.seed, c.stream_options) for c in spec.configs()] == [
        (alpha0, 3, SHORT["stream_options"]) for alpha0 in (1e-4, 1e-2)
    ]


def test_what_is_given_later_or_of_one_method_goes_before(tmp_path):
    methods = [{"eta": 0.1}, {"grid": {"eta": [0.2, 0.3]}}, {"meta": "none", "alpha0": 1.0}]
    spec = SweepSpec({"eta": 0.5}, {"alpha0": [1e-3, 1e-2]}, methods)
    assert [(c.eta, c.alpha0) for c in spec.configs()] == [
        *((0.1, 1e-3), (0.1, 1e-2)),
        *((eta, alpha0) for alpha0 in (1e-3, 1e-2) for eta in (0.2, 0.3)),
        (0.5, 1.0),
    ]
    assert {c.eta for c in spec.changed({"eta": 0.7}, {}).configs()} == {0.7}
    assert {c.alpha0 for c in spec.changed({}, {"alpha0": [0.4]}).configs()} == {0.4}


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        (SweepSpec({"eta": 0.1}, {"eta": [0.1, 0.2]}), "eta=0.1: is in the grid as well"),
        (SweepSpec(methods=[{"eta": 1, "grid": {"eta": [2]}}]), "eta=1: is in the grid as well"),
        (SweepSpec(SHORT, {"stream_options.tasks": [2]}), "stream_options.tasks=2: is in the"),
        (SweepSpec(grid={"eta": [1, 2]}, seeds=range(99_999)), "199,998 runs': start at most"),
    ],
)
def test_sweeps_that_contradict_themselves_are_refused(spec, said):
    with pytest.raises(BadArgument, match=said):
        spec.configs()


def test_a_list_of_methods_each_has_the_grid_and_its_own(tmp_path):
    file = tmp_path / "sweep.toml"
    file.write_text(
        textwrap.dedent("""
        seeds = [3]
        [grid]
        alpha0 = [1e-4, 1e-3]
        [[runs]]
        meta = "none"
        [[runs]]
        grid.eta = [1e-3, 1e-2]
        grid.alpha0 = [1e-5]
        """)
    )
    found = [(c.meta, c.alpha0, c.eta) for c in SweepSpec.from_file(file).configs()]
    fixed = [("none", 1e-4, 1e-3), ("none", 1e-3, 1e-3)]
    assert found == [*fixed, ("adam", 1e-5, 1e-3), ("adam", 1e-5, 1e-2)]


def test_a_dotted_option_changes_one_keyword_and_keeps_the_others():
    spec = SweepSpec({"stream_options": {"steps_per_task": 60}}, {"stream_options.tasks": [2, 3]})
    assert [dict(c.stream_options) for c in spec.configs()] == [
        {"steps_per_task": 60, "tasks": 2},
        {"steps_per_task": 60, "tasks": 3},
    ]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("grid.alpha = [1]", "grid='alpha': unknown option; did you mean 'alpha0'? known: stream"),
        ("grid.alpha0 = 1e-3", "grid.alpha0=0.001: must list at least one value"),
        ("grid.alpha0 = []", "must list at least one value"),
        ("grid.alpha0 = [-1.0]", "alpha0=-1.0: a step size must be above 0"),
        ("grid.seed = [1]", "give seeds with --seeds"),
        ("runs = 3", "runs=3: must be a list of tables"),
        ("seeds = [0, 0]", "given twice"),
        ("alpha0 = 1e-3\nseeds = [1]", "alpha0=0.001: unknown entry; known: output, seeds, run"),
        ("grids.eta = [1.0]", "unknown entry; did you mean 'grid'?"),
        ("run.alpha = 1e-3", "alpha=0.001: unknown option"),
        ("grid = [", "sweep.toml"),
    ],
)
def test_a_bad_file_is_refused_in_one_line(tmp_path, content, said):
    file = tmp_path / "sweep.toml"
    file.write_text(content)
    with pytest.raises(BadArgument) as caught:
        SweepSpec.from_file(file)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--grid", "alpha0"], "grid='alpha0': write option=value,value"),
        (["--grid", "alpha0=1e-3,"], "write option=value,value"),
        (["--grid", "alpha0=1", "--grid", "alpha0=2"], "alpha0 is given twice"),
        (["--grid", "nonsense=1"], "grid='nonsense': unknown option; known:"),
        (["--grid", "gamma=0.9,1.5"], "gamma=1.5: a discount lies in [0, 1]"),
        (["--grid", "stream=nowhere"], "nowhere"),
        (["--seeds", "5-1"], "runs backwards"),
        (["missing.toml"], "spec='missing.toml': No such file"),
        (["--launcher", "slurm", "--time", "soon"], "time='soon': write minutes"),
    ],
)
def test_bad_input_is_one_line_and_trains_nothing(tmp_path, words, said, capsys):
    from clmeta.cli.app import main

    output = tmp_path / "sweep"
    with pytest.raises(SystemExit) as caught:
        main(["sweep", *words, "-o", str(output)])
    assert caught.value.code == 2
    error = capsys.readouterr().err.strip()
    assert said in error
    assert "\n" not in error
    assert not list(tmp_path.rglob("summary.json"))


def test_a_preset_brings_its_own_data_unless_other_data_is_named():
    preset = {"stream": "input-permuted-mnist"}
    assert [c.dataset for c in SweepSpec(preset).configs()] == ["mnist"]
    assert [c.dataset for c in SweepSpec({**preset, "dataset": "digits"}).configs()] == ["digits"]


def test_imports_that_are_no_list_are_refused_by_name(tmp_path):
    for wrong in ("null", "3", '"mine"'):
        file = tmp_path / "sweep.json"
        file.write_text(f'{{"run": {{"imports": {wrong}}}}}')
        with pytest.raises(BadArgument, match=r"imports=.*must be a list of names"):
            SweepSpec.from_file(file, trust=True)
