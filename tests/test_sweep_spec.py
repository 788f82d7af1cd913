"""What a sweep is made of, on the command line and in a TOML file, and what is refused."""

from __future__ import annotations

import textwrap

import pytest

from clmeta.errors import BadArgument
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
    spec = SweepSpec(SHORT, {"stream_options.tasks": [2, 3]})
    assert [dict(c.stream_options) for c in spec.configs()] == [
        {"tasks": 2, "steps_per_task": 60},
        {"tasks": 3, "steps_per_task": 60},
    ]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("grid.alpha = [1]", "grid='alpha': unknown option; known: stream"),
        ("grid.alpha0 = 1e-3", "grid.alpha0=0.001: must list at least one value"),
        ("grid.alpha0 = []", "must list at least one value"),
        ("grid.alpha0 = [-1.0]", "alpha0=-1.0: a step size must be above 0"),
        ("grid.seed = [1]", "give seeds with --seeds"),
        ("runs = 3", "runs=3: must be a list of tables"),
        ("seeds = [0, 0]", "given twice"),
        ("alpha0 = 1e-3", "alpha0=0.001: unknown entry; known: output, seeds, run"),
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
