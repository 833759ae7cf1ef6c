"""What the README shows is run: its commands and its Python, with the built-in model."""

import doctest
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from enrobe import hub

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()

COMMANDS = re.findall(r"```console\n\$ (.+)\n((?:.*\n)*?)```", README)
NUMBER = re.compile(r"-?\d+\.\d+")


@pytest.mark.parametrize(("command", "shown"), COMMANDS, ids=[c for c, _ in COMMANDS])
def test_a_command_prints_what_the_readme_shows(command: str, shown: str) -> None:
    piped = "|" in command
    python = shlex.quote(sys.executable)
    line = re.sub(r"(^|\| )enrobe\b", rf"\1{python} -m enrobe", command)
    answer = subprocess.run(
        line,
        shell=True,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        env={
            **os.environ,
            "ENROBE_MODEL": "",
            "TERM": "dumb",
            "COLUMNS": "90",
            "TTY_COMPATIBLE": "0" if piped else "1",
        },
    )
    assert answer.returncode == 0, answer.stderr
    printed = "\n".join(line.rstrip() for line in answer.stdout.splitlines())
    expected = "\n".join(line.rstrip() for line in shown.splitlines())
    # Numbers may differ in the last place from one processor to the next; nothing else may.
    assert NUMBER.sub("#", printed) == NUMBER.sub("#", expected)
    for a, b in zip(NUMBER.findall(printed), NUMBER.findall(expected), strict=True):
        assert float(a) == pytest.approx(float(b), abs=1.5e-3)


def test_there_are_commands_to_run() -> None:
    assert len(COMMANDS) >= 5


def test_the_python_answers_as_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(hub.ENVIRONMENT, raising=False)
    found = doctest.testfile(str(ROOT / "README.md"), module_relative=False)
    assert found.attempted >= 8
    assert found.failed == 0
