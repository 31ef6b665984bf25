"""README, ARCHITECTURE, CONTRIBUTING and CHANGELOG are true: commands exist, files exist, figures have a source."""

from __future__ import annotations

import json
import re
from pathlib import Path

import click
import pytest

from edge_sdk.cli import COMMANDS, main
from edge_sdk.hub.catalog import load_catalog

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / name for name in ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md")]
RESULTS = ROOT / "tests" / "bench" / "results"


def edge_lines() -> list[str]:
    return re.findall(r"^\$ (?:\w+=\S+ )*(edge .*?)(?:\s+#.*)?$", README, re.MULTILINE)


def options_of(name: str) -> set[str]:
    module = __import__(f"edge_sdk.{COMMANDS[name][0]}", fromlist=["x"])
    command: click.Command = getattr(module, name.replace(" ", "_").replace("-", "_") + "_command")
    return {option for parameter in command.params for option in parameter.opts}


def test_the_readme_shows_the_main_commands() -> None:
    shown = {line.split()[1] for line in edge_lines()}
    assert {"pull", "add", "search", "ask", "chat", "doctor"} <= shown


@pytest.mark.parametrize("line", edge_lines())
def test_a_command_of_the_readme_exists_with_its_options(line: str) -> None:
    words = line.split()[1:]
    name = next(known for known in (" ".join(words[:2]), words[0]) if known in COMMANDS)
    assert {word for word in words if word.startswith("--")} <= options_of(name)
    assert main([*name.split(), "--help"]) == 0


def test_every_flag_of_the_settings_table_exists() -> None:
    table = README[README.index("| flag |") : README.index("## Install")]
    assert set(re.findall(r"`(--[\w-]+)`", table)) <= options_of("ask") | options_of("pull") | options_of("serve")


def test_models_that_the_readme_names_are_in_the_catalog() -> None:
    catalog = load_catalog()
    for name in re.findall(r"edge pull ((?:[\w.-]+ ?)+)", README):
        assert all(catalog.find(model) for model in name.split())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_linked_files_exist(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+?)\)", page.read_text(encoding="utf-8")):
        assert target.startswith("http") or (ROOT / target).exists(), target


def test_the_tree_of_the_readme_names_every_module_and_package() -> None:
    tree = README[README.index("## The tree") :]
    patterns = re.findall(r"[\w*.]+\.py", tree)
    for path in sorted((ROOT / "edge_sdk").glob("*.py")):
        assert path.name == "__init__.py" or any(path.match(pattern) for pattern in patterns), path.name
    for path in sorted((ROOT / "edge_sdk").glob("*/__init__.py")):
        assert f" {path.parent.name}/" in tree


def test_make_targets_that_pages_name_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert len(targets - {"help"}) <= 8
    for page in PAGES:
        assert set(re.findall(r"(?:^|`)make ([a-z]+)", page.read_text(encoding="utf-8"), re.MULTILINE)) <= targets


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.json")), ids=lambda path: path.name)
def test_kept_results_name_their_command_machine_and_date(path: Path) -> None:
    result = json.loads(path.read_text(encoding="utf-8"))
    assert result["command"].startswith(("edge ", "make ", ".venv/bin/"))
    assert result["machine"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", result["date"])
    assert path.name in README
