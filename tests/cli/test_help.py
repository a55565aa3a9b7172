"""Help, completion, and what is said of a command that there is not."""

from __future__ import annotations

import inspect
import io
import shlex
import sys

import click
import pytest
from click.testing import CliRunner, Result

from cone_kernels.cli import main
from cone_kernels.cli.group import COMMANDS
from cone_kernels.cli.help import GROUPS, ConeCommand
from cone_kernels.cli.stdin import format_of, guessed_format


def cone(*arguments: str, **environment: str) -> Result:
    return CliRunner(env=environment).invoke(main, arguments, prog_name="cone")


def command_of(name: str) -> ConeCommand:
    command = main.get_command(click.Context(main), name)
    assert isinstance(command, ConeCommand)
    return command


def flags_of(command: click.Command) -> set[str]:
    return {flag for one in command.params for flag in (*one.opts, *one.secondary_opts)}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_an_example_of_its_own_options(name: str) -> None:
    command = command_of(name)
    words = shlex.split(command.example)
    assert f"cone {name}" in command.example
    assert {word for word in words if word.startswith("--")} <= flags_of(command)
    shown = " ".join(cone(name, "--help").stdout.split())
    assert f"Example: {command.example}" in shown
    assert all(option in shown for option in flags_of(command) if option.startswith("--"))


def test_every_group_is_of_options_that_there_are() -> None:
    commands = [command_of(name) for name in COMMANDS]
    known = {one.name for command in commands for one in command.get_params(click.Context(command, info_name="x"))}
    grouped = [name for group in GROUPS for name in group.options]
    assert len(set(grouped)) == len(grouped)
    assert set(grouped) - known <= {"_click_default_help"}
    for name in COMMANDS:
        shown = cone(name, "--help").stdout
        for group in GROUPS:
            section = shown.partition(f"\n{group.heading}:\n")[2].partition("\n\n")[0]
            if section:
                example = " ".join(section.split("\n  -")[0].split()).removeprefix("as in ")
                assert example in group.examples, (name, group.heading)
                asked = {word for word in shlex.split(example) if word.startswith("--")}
                assert asked <= flags_of(command_of(name))


def test_descriptions_are_whole() -> None:
    shown = " ".join(cone("--help").stdout.split())
    for name in COMMANDS:
        first = " ".join(inspect.cleandoc(command_of(name).help or "").split("\n\n")[0].split())
        assert f" {name} {first}" in shown
    assert "..." not in shown.partition("Commands:")[2]
    assert "padding: the share of what the model computes that is no token" in " ".join(
        cone("run", "--help").stdout.split()
    )


@pytest.mark.parametrize(("typed", "meant"), [("layer", "layers"), ("centre", "center"), ("rnu", "run")])
def test_a_typo_is_told_what_was_meant(typed: str, meant: str) -> None:
    done = cone(typed)
    assert done.exit_code == 2
    assert f"There is no command '{typed}'. Did you mean {meant}" in done.stderr


def test_a_name_of_nothing_is_told_what_there_is() -> None:
    assert "There is no command 'xyzzy'. There are run, layers, " in cone("xyzzy").stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_of_a_shell(shell: str) -> None:
    script = cone("completion", shell).stdout
    assert f"_CONE_COMPLETE={shell}_complete" in script
    words = {"COMP_WORDS": "cone layers --save", "COMP_CWORD": "--save" if shell == "fish" else "2"}
    found = cone(_CONE_COMPLETE=f"{shell}_complete", **words).stdout
    assert "--save-state" in found


@pytest.mark.parametrize(
    ("beginning", "found"),
    [
        ('\n{"text": "a"}\n', "jsonl"),
        ('{"text": "' + "long " * 2000, "jsonl"),
        ("{not json}\n", "txt"),
        ("id,premise,hypothesis\n1,a,b\n", "csv"),
        ('"text","id"\n', "csv"),
        ("Hello, world\n", "txt"),
        ("text\n", "txt"),
        ("", "txt"),
    ],
)
def test_the_format_of_standard_input_is_told_by_how_it_begins(
    beginning: str, found: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert format_of(beginning[:4096]) == found
    stream = io.TextIOWrapper(io.BufferedReader(io.BytesIO(beginning.encode())))
    monkeypatch.setattr(sys, "stdin", stream)
    assert guessed_format() == found
    assert capsys.readouterr().err == f"standard input is read as {found}; --format names another\n"
    assert stream.buffer.read() == beginning.encode()
