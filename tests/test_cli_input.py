"""What the command line refuses: one line that names what was typed, before anything is written."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

QUICK = ["-s", "tasks=2", "-s", "steps_per_task=20", "-m", "hidden=8"]

BAD_RUN = [
    # numbers
    ("--gamma 3", "--gamma=3.0: a discount lies in [0, 1]"),
    ("--alpha0 0", "--alpha0=0.0: a step size must be above 0"),
    ("--alpha0 x", "--alpha0='x': must be a finite number"),
    ("--alpha0 1e-60", "--alpha0=1e-60: is no number of float32"),
    ("--alpha0 1e30", "--alpha0=1e+30: must be at most"),
    ("--alpha-max nan", "--alpha-max=nan: must be a finite number"),
    ("--alpha-min inf", "--alpha-min=inf: must lie in [0, infinity)"),
    ("--jobs 0", "--jobs=0: must be at least 1"),
    ("--jobs two", "--jobs='two': must be a whole number"),
    ("--threads 1.5", "--threads=1.5: must be a whole number"),
    ("-m hidden=1000000000", "--model='mlp': fails with"),
    # names
    ("--stream abrupt", "--stream='abrupt': unknown stream; did you mean 'abrupt_classes'"),
    ("--base adamx", "--base='adamx': unknown rule; did you mean 'adam'"),
    ("--base adamx", "--import loads a module that registers names"),
    (
        "--base torch.nn:Linear",
        "--base='torch.nn:Linear': is the class Linear; it must name a torch",
    ),
    ("--model torch.nn:Linear", "--model='torch.nn:Linear': fails with TypeError"),
    ("--model nowhere:net", "--model='nowhere:net': there is no module 'nowhere'"),
    ("--nonfinite rise", "--nonfinite='rise': did you mean 'raise'? use one of raise, skip"),
    ("--device warp", "--device='warp'"),
    ("--device mps", "--device='mps': this build of torch has no such device; use 'cpu'"),
    ("--import no.such", "--import='no.such': there is no module 'no'; install it, or run where"),
    ("--gama 1", "No such option '--gama'. (Did you mean one of: '--gamma'"),
    # options of things
    ("--stream abrupt_classes -s tasks=20", "tasks=20"),
    ("-s taks=3", "taks=3: unknown option of stream 'permuted_inputs'; known: tasks"),
    ("-s tasks", "--stream-option='tasks': write name=value"),
    ("-s tasks=1 -s tasks=2", "--stream-option='tasks=2': tasks is given twice"),
    ("--strategy ewc --strategy-option ewc_lambda=-1", "ewc_lambda=-1: must be"),
    ("--strategy replay --strategy-option mem_size=0", "mem_size=0: must be"),
    # data
    ("--dataset nowhere.npz", "--dataset='nowhere.npz'"),
    ("--dataset mnist --no-download", "mnist"),
    ("--stream input-permuted-mnist --no-download", "mnist"),
    # blocks
    ("--blocks a=hidden;b=hidden.0", "in block 'a' already"),
    ("--blocks a=hidden", "parameters in no block: output.weight"),
    ("--alpha0 body=1", "--alpha0={'body': 1.0}: no block 'body'; known: all, *"),
    ("--eta body=", "--eta['body']='': must be a finite number"),
    ("--eta body=1,body=2", "--eta='body=1,body=2': write a number, or one for each block"),
    # what contradicts itself, and what nobody means
    ("--seeds 4-1", "--seeds='4-1': the range 4-1 runs backwards; write 1-4"),
    ("--seeds 0-1000000000", "--seeds='0-1000000000': 1,000,000,001 seeds; give at most 100,000"),
    ("--meta none --eta 0.1", "--eta=0.1: has no use with meta='none'"),
    ("--meta none --hessian exact", "--hessian='exact': has no use with meta='none'"),
    ("--overwrite --skip-finished", "--overwrite: finished runs are either replaced or kept"),
    # numbers of a size that nobody means
    ("--seeds " + "9" * 5000, "...: a seed of 5,000 digits; give at most 19"),
    ("--seeds 0-99999999999", "100,000,000,000 seeds; give at most 100,000"),
    ("--seeds 9999999999999999999", "--seeds=9999999999999999999: must lie in [0, 2^63)"),
    ("--threads 99999999999999999999", "--threads=99999999999999999999: must lie in [0, 2^63)"),
    ("--threads 5000", "--threads=5000: must be at most 1,024"),
    ("--jobs 1" + "0" * 400, "must lie in [0, 2^63)"),
    ("--alpha0 1" + "0" * 400, "is no number of float32"),
    ("--alpha0 1" + "0" * 5000, "--alpha0=inf: must be a finite number"),
    ("-s tasks=1000000000", "tasks=1000000000: a stream has at most"),
    ("-s repeats=1000000000", "repeats=1000000000: a stream has at most"),
    ("-s steps_per_task=9223372036854775807", "steps in all; use fewer"),
    ("-s epochs=9223372036854775807", "epochs=9223372036854775807: makes"),
    # what we fill in ourselves
    ("-s data=1", "data=1: unknown option of stream 'permuted_inputs'"),
    ("-s name=0", "name=0: unknown option of stream 'permuted_inputs'"),
    ("-s self=0", "self=0: unknown option of stream 'permuted_inputs'"),
    ("--dataset-option data_root=x", "dataset option data_root='x': unknown; known: image_size"),
    ("--dataset-option download=1", "dataset option download=1: unknown; known: image_size"),
    ("-m input_shape=1", "model option input_shape=1: unknown; known: hidden"),
    ("--base-option params=1", "base option params=1: unknown; known: rho"),
    ("--strategy-option recorder=1", "strategy option recorder=1: unknown; known: none"),
    # engines and devices
    ("--engine nativ", "--engine='nativ': unknown engine; did you mean 'native'?"),
    ("--engine eager --base torch.optim:AdamW", "--engine='eager': this optimiser wraps a torch"),
    ("--device meta", "--device='meta': not available here"),
    ("--device " + "x" * 5000, "not available here"),
    # texts and files
    ("--dataset ~nouser/x", "--dataset='~nouser/x': there is no such user"),
    ("--config ~nouser/x", "--config='~nouser/x': there is no such user"),
    ("--output ~nouser/x", "--output='~nouser/x': there is no such user"),
    ("--config " + "x" * 5000, "is too long for a path"),
    ("--blocks " + '{"a":' * 90_000, "not JSON (lists and mappings stand more than 50 deep"),
    ("-s tasks=" + "[" * 90_000, "tasks='[[["),
    ("--output=", "--output='': must not be empty"),
    ("--dataset=", "--dataset='': must not be empty"),
    ("--config nowhere", "--config='nowhere': No such file or directory; give a run's folder"),
    ("--config .", "--config='.': this folder holds no config.json; give a run's folder"),
]


@pytest.mark.parametrize(
    ("words", "message"), BAD_RUN, ids=[f"{w[:30]}: {m[:20]}" for w, m in BAD_RUN]
)
@pytest.mark.parametrize("dry", [[], ["--dry-run"]], ids=["", "dry"])
def test_bad_input_is_one_line_and_nothing_is_written(cli, tmp_path, words, message, dry):
    code, out, err = cli("run", *words.split(" "), *dry)
    assert code == 2
    (line,) = err.strip().splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert out == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("sweep --grid alpha=1", "grid='alpha': unknown option; did you mean 'alpha0'?"),
        ("sweep --grid alpha0=1 --alpha0 2", "--alpha0=2.0: is in the grid as well; give it once"),
        (
            "sweep -s tasks=1 --grid stream_options.tasks=1,2",
            "stream_options.tasks=1: is in the grid as well",
        ),
        ("sweep --meta none --grid eta=1,2", "--eta=1.0: has no use with meta='none'"),
        ("sweep --partition gpu", "--partition='gpu': is for a cluster: give --launcher slurm"),
        ("sweep --launcher slrm", "--launcher='slrm': did you mean 'slurm'? use one of local"),
        ("sweep --seeds 0-99999 --grid eta=1,2", "grid='200,000 runs': start at most 100,000"),
        ("sweep --chunk 0", "--chunk=0: must be at least 1"),
        ("sweep a.toml -c b.toml", "--config='b.toml': is given beside SPEC; give one of the two"),
        ("demo --seeds x", "--seeds='x': write whole numbers"),
        ("list streamz", "kind='streamz': unknown; did you mean 'streams'?"),
        ("best . --level x", "--level='x': must be a finite number"),
        ("best . --where meta", "--where='meta': write name=value"),
        ("plot . --every 0", "--every=0: must be at least 1"),
        ("plot", "Missing argument 'RUNS...'"),
        (
            "reproduce figure-5",
            "experiment='figure-5': unknown experiment; did you mean 'figure-4'",
        ),
        ("reproduce figure-4 --bases adamx", "--bases='adamx': unknown base update"),
        ("runn", "No such command 'runn'"),
    ],
)
def test_every_command_says_in_one_line_what_is_wrong(cli, tmp_path, words, message):
    code, out, err = cli(*words.split())
    assert code == 2
    (line,) = err.strip().splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert out == ""
    assert list(tmp_path.iterdir()) == []


def test_plot_and_best_speak_of_what_was_typed(cli, tmp_path):
    assert cli("run", *QUICK, "-o", "out")[0] == 0
    assert "--format='gif': " in cli("plot", "out", "-f", "gif")[2]
    assert (
        "--plot='trajectory': unknown plot; did you mean"
        in cli("plot", "out", "-p", "trajectory")[2]
    )
    assert "--metric='accuracy': unknown metric" in cli("best", "out", "--metric", "accuracy")[2]
    (tmp_path / "out" / "seed-0" / "summary.json").unlink()
    code, _, err = cli("plot", "out")
    assert code == 1
    assert err == "error: out: no run is finished; --unfinished draws what is there\n"


FAILS = """
import torch

def raising(input_shape, n_classes):
    raise KeyError("weights")

def narrow(input_shape, n_classes):
    return torch.nn.Linear(100, n_classes)

def number(input_shape, n_classes):
    return 3
"""


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("raising", "fails with KeyError: 'weights' (failing_nets.py, line 5)"),
        ("narrow", "fails on images of shape (1, 8, 8)"),
        ("number", "it must return a torch.nn.Module"),
    ],
)
def test_a_factory_that_fails_is_no_traceback(cli, tmp_path, factory, message):
    (tmp_path / "failing_nets.py").write_text(FAILS)
    code, _, err = cli("run", "--model", f"failing_nets:{factory}")
    assert code == 2
    assert err.startswith(f"error: --model='failing_nets:{factory}': ") and message in err
    assert err.count("\n") == 1


def test_a_finished_folder_does_not_hide_what_is_wrong(cli):
    assert cli("run", *QUICK, "-o", "out")[0] == 0
    code, _, err = cli("run", *QUICK, "-o", "out", "--model", "mlpp")
    assert code == 2
    assert "--model='mlpp': unknown model" in err


@pytest.mark.parametrize("command", ["demo", "run", "sweep"])
def test_an_output_that_is_a_file_is_said_once(cli, tmp_path, command):
    (tmp_path / "file").write_text("in the way")
    code, _, err = cli(command, "-o", "file")
    assert code == 1
    assert "file is no folder; choose an output folder that can be written" in err
    assert err.count("\n") == 1


def test_dry_runs_check_everything_and_write_nothing(cli, tmp_path):
    images = np.zeros((8, 4, 4), np.uint8)
    np.savez(
        "data.npz", x_train=images, y_train=np.arange(8) % 2, x_test=images, y_test=np.arange(8) % 2
    )
    before = sorted(tmp_path.rglob("*"))
    code, out, _ = cli("run", *QUICK, "--seeds", "0-1", "-o", "out", "--dry-run")
    assert code == 0
    assert out.splitlines() == [
        "missing   out/seed-0",
        "missing   out/seed-1",
        "2 runs, 0 finished",
    ]
    code, out, _ = cli("sweep", *QUICK, "--grid", "eta=1e-3,1e-2", "-o", "out", "--dry-run")
    assert code == 0
    assert out.splitlines()[-1] == "2 runs, 0 finished"
    code, _, err = cli("sweep", "--grid", "model=mlp,cnn", "--dataset", "data.npz", "--dry-run")
    assert code == 0
    code, _, err = cli(
        "run",
        "-s",
        "tasks=2",
        "--stream",
        "abrupt_classes",
        "--dataset",
        "data.npz",
        "-s",
        "classes_per_task=2",
        "--dry-run",
    )
    assert code == 2 and "classes" in err
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "words",
    [
        "run --gamma 3",
        "run --config nowhere",
        "run --seeds a",
        "sweep --grid alpha0=0",
        "plot nowhere",
        "best nowhere",
        "run --nonfinite x",
        "list x",
    ],
)
def test_what_is_wrong_with_words_is_found_without_loading_torch(tmp_path, words):
    code = (
        "import sys\nfrom clmeta.cli import main\n"
        f"try: main({words.split()!r})\nexcept SystemExit as end: print(end.code)\n"
        "print(*(m for m in ('torch', 'pandas', 'matplotlib') if m in sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.stderr.startswith("error: ")
    assert done.stdout.split() in (["2"], ["1"])
