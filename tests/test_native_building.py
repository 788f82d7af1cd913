"""C programs are built once, kept, built again where they are damaged, and done without."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from optimizer_parts import needs_compiler

from clmeta.native import cc as _cc

pytestmark = needs_compiler

SOURCE = "double answer(void) { return 42; }"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache folder and nothing loaded."""
    monkeypatch.setenv("CLMETA_CACHE", str(tmp_path / "cache"))
    _cc.load.cache_clear()
    yield tmp_path / "cache"
    _cc.load.cache_clear()


def test_a_program_is_built_once_and_kept(cache, monkeypatch):
    _cc.load(SOURCE)
    assert [file.suffix for file in cache.iterdir()] == [".so"]
    _cc.load.cache_clear()
    monkeypatch.setattr(_cc, "_build", lambda *args: pytest.fail("built again"))
    assert _cc.load(SOURCE).answer is not None


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("CLMETA_CACHE", str(tmp_path / "file"))
    _cc.load.cache_clear()
    assert _cc.load(SOURCE).answer is not None
    _cc.load.cache_clear()


def test_a_damaged_program_in_the_cache_is_done_without(cache):
    _cc.load(SOURCE)
    (kept,) = cache.iterdir()
    kept.unlink()
    kept.write_bytes(b"half of a file")
    _cc.load.cache_clear()
    assert _cc.load(SOURCE).answer is not None


def test_processes_that_build_at_once_do_not_harm_each_other(cache):
    script = f"from clmeta.native import cc; print(cc.load({SOURCE!r}).answer())"
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", script], stdout=subprocess.PIPE, env=dict(os.environ), text=True
        )
        for _ in range(4)
    ]
    said = {each.communicate()[0] for each in runs}
    assert [each.returncode for each in runs] == [0] * 4
    assert len(said) == 1
    assert [file.suffix for file in cache.iterdir()] == [".so"]


# ---- in processes of their own -------------------------------------------------------------


def printed(reader, folder, script, **environment):
    """What Python prints."""
    done = reader.do(folder, ["python", script], **environment)
    assert done.status == 0, done.failure
    return done.out().strip()


STEP = """
import os
import pathlib
import torch
from clmeta import BadArgument, MetaOptimize

def step(value=1.0):
    w = torch.nn.Parameter(torch.ones(5))
    options = dict(meta="none", alpha0=0.1)
    try:
        o, native = MetaOptimize([w], engine="native", **options), True
    except BadArgument:
        o, native = MetaOptimize([w], **options), False
    w.grad = torch.tensor([1., 1., value, 1., 1.])
    o.step()
    return native, o.withheld, round(w.sum().item(), 4), 1e-310 * 1.0 != 0
"""


def test_a_compilers_fast_math_is_overruled(reader, tmp_path):
    said = printed(
        reader,
        tmp_path,
        STEP + "print(step(float('nan')))",
        CC=" ".join([*_cc.compiler(), "-ffast-math"]),
        CLMETA_CACHE=str(tmp_path / "cache"),
    )
    assert said == "(True, 1, 5.0, True)"


def test_a_damaged_program_in_the_cache_is_built_again(reader, tmp_path):
    """Loading one could end the process."""
    script = """
from clmeta.engines import native
from clmeta.native import cc
print(step())
(kept,) = pathlib.Path(os.environ["CLMETA_CACHE"]).iterdir()
whole = kept.read_bytes()
for damaged in (whole[:4096], whole[:-2000] + bytes(2000), b"half of a file"):
    kept.unlink()
    kept.write_bytes(damaged)
    cc.load.cache_clear()
    native._build.cache_clear()
    print(step(), kept.read_bytes() == whole)
"""
    said = printed(
        reader, tmp_path, STEP + script, CLMETA_CACHE=str(tmp_path / "cache")
    ).splitlines()
    first = "(True, 0, 4.5, True)"
    assert said == [first] + [f"{first} True"] * 3


def test_a_compiler_that_makes_no_sense_is_done_without(reader, tmp_path):
    script = """
for os.environ["CC"] in ('cc "', "false", " "):
    print(step())
"""
    said = printed(
        reader, tmp_path, STEP + script, CLMETA_CACHE=str(tmp_path / "cache")
    ).splitlines()
    assert said[:2] == ["(False, 0, 4.5, True)"] * 2
    assert said[2] == "(True, 0, 4.5, True)"  # none named: those that there are


def test_functions_of_other_libraries_are_not_called_instead(reader, tmp_path):
    """Many libraries export ``moves``; a global one would come before ours."""
    source, library = tmp_path / "other.c", tmp_path / "libother.so"
    names = ("products", "settle", "moves", "learners", "meta", "rows", "dot", "zero_if_finite")
    source.write_text("".join(f"void {name}(void) {{}}\n" for name in names))
    line = [*_cc.compiler(), "-shared", "-fPIC", str(source), "-o", str(library)]
    subprocess.run(line, check=True)
    script = f"""
import ctypes
ctypes.CDLL({str(library)!r}, mode=ctypes.RTLD_GLOBAL)
print(step())
from clmeta.replicas.program import Program
from clmeta.runs.config import RunConfig
from clmeta.runs.runner import prepare
small = dict(stream_options=dict(tasks=1, steps_per_task=5), model_options=dict(hidden=4))
program = Program([prepare(RunConfig(seed=seed, **small)) for seed in (0, 1)], engine="native")
before = [w.clone() for w in program.learners.w]
x, y = torch.rand(2, 1, 1, 8, 8), torch.zeros(2, 1, dtype=torch.long)
program.step(x, y)
print([torch.equal(a, b) for a, b in zip(before, program.learners.w)])
"""
    pytest.importorskip("sklearn")
    first, second = printed(reader, tmp_path, STEP + script).splitlines()
    assert first == "(True, 0, 4.5, True)"
    assert "True" not in second
