"""Flags come from the settings records; errors are one sentence; help is readable and its examples work."""

from __future__ import annotations

import shlex
from dataclasses import fields

import pytest

from autoseg.cli.commands import COMMANDS
from autoseg.cli.options import options
from autoseg.cli.parser import grouped, make_parser, parse
from autoseg.errors import SettingError
from autoseg.schema.settings import PredictSettings, PrepareSettings, TrainSettings

VERBS = tuple(COMMANDS)


def parsed(line: str) -> object:
    """A command line as a person types it -> settings."""
    script, *words = shlex.split(line)
    command = COMMANDS[script.removeprefix("autoseg_")]
    return parse(command, words, prog=script)


def test_nothing_typed_gives_the_defaults_of_the_record() -> None:
    assert parsed("autoseg_train") == TrainSettings()


def test_every_kind_of_flag() -> None:
    line = "autoseg_train -d 3 -f 0 3 --epochs 50 --lr 1e-3 --no-mirror --no-compile --time-budget 1h30m -w 0 --quiet"
    assert parsed(line) == TrainSettings(
        dataset=("3",),
        fold=("0", "3"),
        epochs=50,
        lr=0.001,
        mirror=False,
        compile=False,
        time_budget=5400.0,
        workers=0,
        quiet=True,
    )


def test_tuples_sizes_and_repeated_flags() -> None:
    line = "autoseg_plan -d 3 -c 2d -c 3d_fullres --spacing 3,1,0.5 --patch-size 32x96x96 --memory 1.5GiB"
    assert parsed(line) == PrepareSettings(
        dataset="3",
        configurations=("2d", "3d_fullres"),
        spacing=(3.0, 1.0, 0.5),
        patch_size=(32, 96, 96),
        memory=3 * 2**29,
    )


def test_a_switch_without_default_has_three_states() -> None:
    base = "autoseg_predict -i in -o out"
    states = [parsed(base + extra) for extra in ("", " --tta", " --no-tta")]
    assert [state.tta for state in states if isinstance(state, PredictSettings)] == [None, True, False]


def test_the_name_of_a_field_that_is_a_python_keyword() -> None:
    assert parsed("autoseg_predict -i in -o out --continue") == PredictSettings(
        inputs="in", outputs="out", continue_=True
    )


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("autoseg_train --epoch 3", "'--epoch' is not understood; did you mean '--epochs'?"),
        ("autoseg_train 3", "'3' is not understood"),
        ("autoseg_train --epochs many", "--epochs: 'many' is not a whole number"),
        ("autoseg_train --lr fast", "--lr: 'fast' is not a number"),
        ("autoseg_train --time-budget soon", "'soon' is not a duration; write it like 30m, 2h or 1h30m"),
        ("autoseg_train --time-budget 1.2.3h", "'1.2.3h' is not a duration"),
        ("autoseg_train -f", "-f/--fold: expected at least one argument"),
        ("autoseg_plan --memory 8X", "--memory: '8X' is not an amount of memory; write it like 8GB or 500MB"),
        ("autoseg_plan --spacing a,b", "--spacing: 'a,b' is not a list of numbers; write it like 1,0.5,0.5"),
        ("autoseg_plan --patch-size 1.5,2", "--patch-size: '1.5,2' is not a list of whole numbers"),
        ("autoseg_train --epochs 0", "--epochs: 0 is too small; it must be at least 1"),
        ("autoseg_train --iterations 0", "--iterations: 0 is too small"),
        ("autoseg_train --val-iterations 0", "--val-iterations: 0 is too small"),
        ("autoseg_train --batch-size 0", "--batch-size: 0 is too small"),
        ("autoseg_train --workers=-1", "--workers: -1 is too small; it must be at least 0"),
        ("autoseg_train --seed=-1", "--seed: -1 is too small"),
        ("autoseg_train --folds 1", "--folds: 1 is too small; it must be at least 2"),
        ("autoseg_train --lr 0", "--lr: 0 is too small; it must be more than 0"),
        ("autoseg_train --lr nan", "--lr: nan is not a finite number"),
        ("autoseg_train --time-budget 1h30", "'1h30' is not a duration"),
        ("autoseg_plan --batch-size 0", "--batch-size: 0 is too small"),
        ("autoseg_plan --tolerance nan", "--tolerance: nan is not a finite number"),
        ("autoseg_plan --spacing -1,1,1", "a value is missing, or begins with '-': write --flag=VALUE"),
        ("autoseg_evaluate -r a -p b --tolerance=-1", "--tolerance: -1 is too small"),
        ("autoseg_evaluate -r a -p b --tolerance inf", "--tolerance: inf is not a finite number"),
        ("autoseg_demo --cases 4", "--cases: 4 is too small; it must be at least 5"),
        ("autoseg_demo --test-cases 0", "--test-cases: 0 is too small"),
        ("autoseg_predict -i in -o out --step-size nan", "--step-size: nan is not a finite number"),
        ("autoseg_predict -i in", "-o/--outputs is required"),
        ("autoseg_predict", "-i/--inputs and -o/--outputs are required"),
        ("autoseg_evaluate -r a -p", "-p/--predictions: expected one argument"),
    ],
)
def test_a_mistake_is_one_sentence_and_a_hint(line: str, sentence: str) -> None:
    with pytest.raises(SettingError) as caught:
        parsed(line)
    assert sentence in caught.value.message
    assert "\n" not in caught.value.message
    assert caught.value.hint == f"{line.split()[0]} -h lists all flags with examples"


@pytest.mark.parametrize("verb", VERBS)
def test_every_field_has_exactly_one_place_in_the_help(verb: str) -> None:
    command = COMMANDS[verb]
    shown = [option.name for _, group in grouped(command) for option in group]
    assert sorted(shown) == sorted(field.name for field in fields(command.settings))


@pytest.mark.parametrize("verb", VERBS)
def test_no_two_fields_share_a_flag(verb: str) -> None:
    flags = [flag for option in options(COMMANDS[verb].settings) for flag in option.flags]
    assert len(flags) == len(set(flags))


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("columns", [80, 100, 200])
def test_help_fits_the_terminal_and_names_every_flag(verb: str, columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    text = make_parser(COMMANDS[verb], prog=f"autoseg_{verb}").format_help()
    assert max(len(line) for line in text.splitlines()) <= min(columns, 100)
    for option in options(COMMANDS[verb].settings):
        for flag in option.flags:
            assert (flag.replace("--", "--[no-]") if option.scalar is bool else flag) in text


@pytest.mark.parametrize("line", [line for command in COMMANDS.values() for line, _ in command.examples])
def test_every_example_of_the_help_parses(line: str) -> None:
    assert isinstance(parsed(line), COMMANDS[line.split()[0].removeprefix("autoseg_")].settings)


def test_help_shows_defaults_from_the_record() -> None:
    text = make_parser(COMMANDS["train"], prog="autoseg_train").format_help()
    assert f"(default: {TrainSettings().epochs})" in text
    assert f"(default: {TrainSettings().folds})" in text
    assert "drawn (default: 0)" in text
