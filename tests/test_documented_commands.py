"""Parse all `cifar-jax` commands in the documentation, and run the quick commands."""

import re
import shlex
from fnmatch import fnmatchcase
from pathlib import Path

import click
import pytest
from PIL import Image

from cifar_jax import catalog, cli
from cifar_jax.config import override

ROOT = Path(__file__).parent.parent
QUICK = [
    "claims results --json",
    "compare basic fast-basic --runs results",
    "data status",
    "env",
    "evaluate runs/basic/seed0*",
    "experiments",
    "export fast-resnet10-separable --to torch *",
    "predict fast-resnet10-separable cat.jpg*",
    "predict net-bn-gap cat.jpg *",
    "predict runs/basic/seed0 *",
    "report",
    "report results *",
    "report runs/basic/seed0",
    "runs",
    "settings",
    "summary net-bn-gap",
    "summary my_*",
    "train my_lion.py --set data.dataset=digits *",
]
"""Patterns of the commands to run, which take seconds and need neither CIFAR-10 nor a GPU."""
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


def words_of(text: str) -> list[str]:
    """Return the arguments of a documented command, without its comment and redirections."""
    words = shlex.split(re.sub(r"\s*[|>&].*$", "", text), comments=True)[1:]
    return [word for word in words if word not in ("...", "…")]


@pytest.mark.parametrize(("page", "text"), documented_commands())
def test_documented_commands_are_accepted(page: str, text: str) -> None:
    """The test parses the options and arguments of each command, but runs no command."""
    words = words_of(text)
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


def quick_commands() -> list[str]:
    """Return the arguments of the documented commands that are run, each as one text."""
    commands = dict.fromkeys(shlex.join(words_of(text)) for _, text in documented_commands())
    return [line for line in commands if any(fnmatchcase(line, pattern) for pattern in QUICK)]


def test_each_pattern_matches_a_command() -> None:
    for pattern in QUICK:
        assert any(fnmatchcase(line, pattern) for line in quick_commands()), pattern


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the files that the commands name: pictures, experiments, records and a run."""
    folder = tmp_path_factory.mktemp("documented")
    for picture in ("cat.jpg", "holiday/beach.jpg", "more/2024/dog.png"):
        (folder / picture).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (300, 200), "gray").save(folder / picture)
    (folder / "results").symlink_to(ROOT / "results")
    for page in ("own-model", "own-optimizer"):
        text = (ROOT / f"docs/{page}.md").read_text()
        match = re.search(r"experiment as `(\w+\.py)`:\n\n```python\n(.*?)```", text, re.DOTALL)
        assert match, page
        (folder / match[1]).write_text(match[2])
    digits = ["--set", "data.dataset=digits", "--set", "data.validation=0.1", "--set", "epochs=1"]
    assert cli.run(["train", "basic", *digits, "--workdir", str(folder / "runs/basic/seed0")]) == 0
    return folder


def test_documented_settings_exist(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Words such as N and PATH stand for values of the user, so their commands are left out."""
    monkeypatch.chdir(folder)
    names, checked = catalog.names(), 0
    for page, text in documented_commands():
        command, *words = words_of(text)
        if command not in ("train", "tune") or re.search(r"=[A-Z]+\b", text):
            continue
        parser = cli.cli.get_command(click.Context(cli.cli), command)
        assert parser
        options, *_ = parser.make_parser(click.Context(parser)).parse_args(list(words))
        for name in words:
            if name in names or (name.endswith(".py") and Path(name).is_file()):
                assert override(catalog.load(name).config, options.get("settings", ())), page
                checked += 1
    assert checked > 20


@pytest.mark.parametrize("command", quick_commands())
def test_quick_commands_run_as_documented(
    command: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("TFDS_DATA_DIR", str(folder / "tfds"))
    assert cli.run(shlex.split(command)) == 0
