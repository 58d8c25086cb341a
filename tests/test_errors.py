"""Errors of the system as a person reads them."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_dooly.errors import reason_of, refusal_of


@pytest.mark.parametrize("inside", ["reports", "reports/deeper"])
def test_a_file_where_a_folder_is_needed_is_named(tmp_path: Path, inside: str) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises((FileExistsError, NotADirectoryError)) as raised:
        (tmp_path / "taken" / inside).mkdir(parents=True, exist_ok=True)
    assert refusal_of(raised.value) == f"{tmp_path / 'taken'} is a file, where a folder is needed"
    with pytest.raises((FileExistsError, NotADirectoryError)) as raised:
        (tmp_path / "taken").mkdir(parents=True, exist_ok=True)
    assert refusal_of(raised.value) == f"{tmp_path / 'taken'} is a file, where a folder is needed"


def test_else_the_system_says_why(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as raised:
        (tmp_path / "nowhere" / "file").read_text()
    assert refusal_of(raised.value) == "No such file or directory"
    assert refusal_of(OSError("of a library, without a number")) == "of a library, without a number"


def test_what_somebody_elses_code_raises_is_one_line() -> None:
    assert reason_of(ValueError("first\nsecond")) == "ValueError: first"
    assert reason_of(ValueError()) == "ValueError"
    with pytest.raises(AssertionError) as bare:
        raise AssertionError
    assert reason_of(bare.value) == "AssertionError: raise AssertionError"
    assert reason_of(AssertionError()) == "AssertionError"
