"""The command line as a program: exit status, what is shown, and where."""

from __future__ import annotations

import ast
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from autoseg import errors
from autoseg.cli import main as entry
from autoseg.cli.commands import COMMANDS


def test_without_words_the_commands_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert entry.main([]) == 0
    shown = capsys.readouterr().out
    for verb, command in COMMANDS.items():
        assert verb in shown
        assert command.summary in shown


@pytest.mark.parametrize("words", [["-h"], ["--help"], ["help"]])
def test_help_of_the_whole(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert entry.main(words) == 0
    assert "usage: autoseg COMMAND" in capsys.readouterr().out


@pytest.mark.parametrize("verb", COMMANDS)
def test_every_console_script_has_its_help(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        getattr(entry, {"import": "import_"}.get(verb, verb))(["-h"])
    assert caught.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: autoseg_{verb} ")


def test_setup_installs_a_script_for_every_command() -> None:
    tree = ast.parse((Path(__file__).parents[2] / "setup.py").read_text(encoding="utf-8"))
    constants = {
        target.id: node.value
        for node in tree.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    assert set(ast.literal_eval(constants["COMMANDS"])) == set(COMMANDS)


def test_an_unknown_command_suggests_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert entry.main(["trian"]) == errors.SettingError.exit_code
    shown = capsys.readouterr().err
    assert "there is no command 'trian'; did you mean 'train'?" in shown
    assert "Traceback" not in shown


def test_hyphens_and_full_names_are_understood(capsys: pytest.CaptureFixture[str]) -> None:
    for word in ("plan-and-preprocess", "autoseg_plan_and_preprocess"):
        with pytest.raises(SystemExit):
            entry.main([word, "-h"])
        assert capsys.readouterr().out.startswith("usage: autoseg plan_and_preprocess ")


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (errors.DatasetError("x: broken", hint="mend it"), 2),
        (errors.SettingError("x: broken", hint="mend it"), 2),
        (errors.ModelFolderError("x: broken", hint="mend it"), 2),
        (errors.ResourceError("x: broken", hint="mend it"), 3),
        (errors.WorkerError("x: broken", hint="mend it"), 4),
        (errors.DivergenceError("x: broken", hint="mend it"), 5),
        (errors.PartialError("x: broken", hint="mend it"), 6),
    ],
)
def test_each_kind_of_error_has_its_exit_status(
    error: errors.AutosegError, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise error

    assert entry.guarded(fail, name="autoseg_train", debug=False) == status
    assert capsys.readouterr().err == "autoseg_train: x: broken\n  -> mend it\n"


def test_debug_shows_where_an_error_came_from(capsys: pytest.CaptureFixture[str]) -> None:
    assert entry.train(["--epochs", "many", "--debug"]) == 2
    shown = capsys.readouterr().err
    assert "Traceback" in shown
    assert shown.splitlines()[-2:] == [
        "autoseg_train: --epochs: 'many' is not a whole number",
        "  -> autoseg_train -h lists all flags with examples",
    ]


def test_an_error_of_ours_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        entry.guarded(lambda: 1 // 0, name="autoseg", debug=False)


def test_python_dash_m_and_the_version() -> None:
    done = subprocess.run([sys.executable, "-m", "autoseg", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("autoseg ")


@pytest.mark.skipif(os.name != "posix", reason="signals to a child need POSIX")
def test_ctrl_c_is_one_line_and_130() -> None:
    program = (
        "import signal, sys, time\nfrom autoseg.cli.main import guarded\n"
        # A job in the background inherits that Ctrl-C is ignored.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "def work():\n    print('ready', flush=True)\n    time.sleep(60)\n"
        "sys.exit(guarded(work, name='autoseg_train', debug=False))\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        assert child.stdout.readline() == "ready\n"
        child.send_signal(signal.SIGINT)
        shown = child.stderr.read()
        assert child.wait(timeout=30) == 130
    assert shown.strip() == "autoseg_train: stopped by Ctrl-C"


def test_a_file_that_cannot_be_used_is_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    missing = tmp_path / "missing"
    assert entry.guarded(missing.rmdir, name="autoseg", debug=False) == 2
    assert capsys.readouterr().err.startswith(f"autoseg: {missing}: No such file")
