"""Errors, registry, words and numbers of the bottom row."""

from __future__ import annotations

import pickle
import sys

import pytest

from autoseg.errors import DatasetError, SettingError
from autoseg.log import duration, size, table
from autoseg.registry import Registry
from autoseg.schema.parsing import parse_bytes, parse_duration, parse_integers, parse_numbers


def test_an_error_keeps_its_hint_between_processes() -> None:
    error = pickle.loads(pickle.dumps(DatasetError("a.nii is empty", hint="remove it")))
    assert (type(error), error.message, error.hint, error.exit_code) == (DatasetError, "a.nii is empty", "remove it", 2)


def test_a_registry_imports_on_use_only() -> None:
    codecs = Registry("codec", {"json": "json:dumps", "broken": "no_such_module_at_all:x"})
    assert codecs.names() == ("broken", "json")
    assert codecs.get("json")([1]) == "[1]"
    assert "no_such_module_at_all" not in sys.modules
    with pytest.raises(SettingError, match="no codec called 'yaml'") as caught:
        codecs.get("yaml")
    assert "broken, json" in caught.value.hint


@pytest.mark.parametrize(
    ("text", "value"), [("8GB", 8e9), ("8g", 8e9), ("1.5 MB", 1.5e6), ("2GiB", 2**31), ("1000", 1000), ("500k", 5e5)]
)
def test_memory_is_read_as_people_write_it(text: str, value: float) -> None:
    assert parse_bytes(text) == value


@pytest.mark.parametrize("text", ["", "GB", "8XB", "-1GB", "0"])
def test_nonsense_memory_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse_bytes(text)


@pytest.mark.parametrize(
    ("text", "value"), [("30m", 1800), ("2h", 7200), ("1h30m", 5400), ("90s", 90), ("90", 90), ("1.5h", 5400)]
)
def test_time_is_read_as_people_write_it(text: str, value: float) -> None:
    assert parse_duration(text) == value


@pytest.mark.parametrize("text", ["", "m", "3x", "0", "-5m", "1h30", "2d1"])
def test_nonsense_time_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse_duration(text)


def test_lists_of_numbers() -> None:
    assert parse_numbers("3,0.5,0.5") == (3.0, 0.5, 0.5)
    assert parse_integers("40x56x40") == (40, 56, 40)


@pytest.mark.parametrize(
    ("seconds", "text"), [(8, "8 s"), (200, "3 min 20 s"), (7500, "2 h 05 min"), (273600, "3 d 4 h"), (-1, "0 s")]
)
def test_durations_read_well(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_sizes_read_well() -> None:
    assert [size(950), size(1.5e6), size(8e9)] == ["950 B", "1.5 MB", "8.0 GB"]


def test_a_table_lines_up_and_right_aligns_numbers() -> None:
    lines = table([["liver", "0.9"], ["a", "12.25"]], header=["name", "Dice"]).splitlines()
    assert lines == ["name    Dice", "-----  -----", "liver    0.9", "a      12.25"]
