"""Files of options and data that are not what they should be: one line says what is wrong."""

from __future__ import annotations

import zipfile

import pytest

DEEP = "[" * 90_000


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", DEEP, "not JSON (lists and mappings stand more than 50 deep inside each other)"),
        ("a.json", '{"a":' * 60 + "1" + "}" * 60, "more than 50 deep"),
        ("a.toml", f"a = {DEEP}", "not TOML ("),
        ("a.toml", 'dataset = "a\\u0000b"', "dataset='a\\x00b': has a character that cannot be"),
        ("a.json", '{"dataset": "a\\ud800"}', "has a character that cannot be in a name"),
        ("a.json", '{"resolved": 1}', "resolved=1: is not what a run writes there"),
        ("a.json", '{"resolved": {"stream": 0}}', "is not what a run writes there"),
        (
            "a.json",
            '{"resolved": {"stream": {"data": {"x": 1}}}}',
            "is not what a run writes there",
        ),
        ("a.json", '{"alpha0": 1' + "0" * 400 + "}", "is no number of float32"),
        ("a.json", '{"alpha0": 1' + "0" * 5000 + "}", "not JSON (Exceeds the limit"),
        ("a.json", '{"stream_options": {"name": 0}}', "name=0: unknown option of stream"),
        ("a.json", '{"imports": [{}]}', "must be text"),
        ("a.json", "[]", "must hold options by name"),
    ],
    ids=range(13),
)
def test_a_file_of_any_content_is_refused_in_one_line(cli, tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    code, out, err = cli("run", "-c", name, "--dry-run")
    assert code == 2 and out == ""
    assert err.startswith(("error: a.", "error: --")) and err.count("\n") == 1
    assert message in err


def test_a_header_that_claims_more_than_there_is_memory_for(cli, tmp_path):
    header = b"{'descr': '|u1', 'fortran_order': False, 'shape': (70368744177664,), }"
    header += b" " * (117 - len(header)) + b"\n"
    with zipfile.ZipFile(tmp_path / "big.npz", "w") as archive:
        for part in ("x_train", "y_train", "x_test", "y_test"):
            archive.writestr(f"{part}.npy", b"\x93NUMPY\x01\x00" + b"\x76\x00" + header)
    code, _, err = cli("run", "--dataset", "big.npz", "--dry-run")
    assert code == 2
    assert "not a readable .npz file of plain arrays (" in err and err.count("\n") == 1


def test_a_corrupt_data_file_is_one_line(cli, tmp_path):
    (tmp_path / "broken.npz").write_bytes(b"PK\x03\x04 not really")
    code, _, err = cli("run", "--dataset", "broken.npz")
    assert code == 2
    assert err.startswith("error: --dataset='broken.npz'")
    assert err.count("\n") == 1
