"""Test that the commands in the documentation exist and have the documented options."""

import re
import shlex
from pathlib import Path

import click
import pytest

from cifar_jax import cli

ROOT = Path(__file__).parent.parent
PAGES = ["README.md", "CONTRIBUTING.md", *(f"docs/{page.name}" for page in ROOT.glob("docs/*.md"))]


def documented_commands() -> list[tuple[str, str]]:
    """Return the page and the text of each `cifar-jax` command in the documentation."""
    commands = []
    for page in PAGES:
        text = (ROOT / page).read_text()
        blocks = "\n".join(re.findall(r"^```(?:\w+)?\n(.*?)^```", text, re.M | re.S))
        blocks = blocks.replace("\\\n", " ")
        spans = re.findall(r"`(cifar-jax [^`\n]+)`", text)
        lines = re.findall(r"^\s*(?:\$ )?(cifar-jax [^\n]*)", blocks, re.M)
        commands += [(page, line) for line in dict.fromkeys([*lines, *spans])]
    return commands


@pytest.mark.parametrize(("page", "text"), documented_commands())
def test_documented_commands_are_accepted(page: str, text: str) -> None:
    """The test parses the options and arguments of each command, but runs no command."""
    words = shlex.split(re.sub(r"\s*[|>&].*$", "", text), comments=True)[1:]
    words = [word for word in words if word not in ("...", "…")]
    context = click.Context(cli.cli, resilient_parsing=True)
    command: click.Command = cli.cli
    while isinstance(command, click.Group):
        if not words or words[0].startswith("-") or words[0] == "COMMAND":
            return
        name, words = words[0], words[1:]
        found = command.get_command(context, name)
        assert found, f"{page}: {text}"
        command = found
    command.make_parser(click.Context(command)).parse_args(words)
