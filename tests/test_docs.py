"""The documentation is true: its Python runs, its commands exist, its metrics are those of the code, and it builds.

A fenced block marked ``pycon`` runs as a doctest (each page in one namespace and an empty folder); one marked
``python`` must compile.
"""

from __future__ import annotations

import ast
import doctest
import importlib.util
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main
from pydantic import BaseModel

import latentgym
from latentgym.studies.config import StudyConfig, Suite

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = Path(latentgym.__file__).parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(page: Path, *languages: str) -> list[str]:
    """Fenced code blocks of a page in one of the languages."""
    pattern = rf"^```(?:{'|'.join(languages)})[^\n]*\n(.*?)^```"
    return re.findall(pattern, page.read_text(), flags=re.MULTILINE | re.DOTALL)


def commands(page: Path) -> list[list[str]]:
    """Command lines of a page that call ``latentgym``, split into words."""
    text = "\n".join(blocks(page, "bash", "console", "sh")).replace("\\\n", " ")
    lines = (line.removeprefix("$ ").strip() for line in text.splitlines())
    return [shlex.split(line, comments=True) for line in lines if line.startswith("latentgym ")]


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "pycon")], ids=lambda page: page.name)
def test_examples_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = "\n".join(blocks(page, "pycon"))
    test = doctest.DocTestParser().get_doctest(text, {}, page.name, str(page), 0)
    report: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    runner.run(test, out=report.append)
    assert runner.summarize(verbose=False).failed == 0, "".join(report)


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=lambda page: page.name)
def test_python_compiles(page: Path) -> None:
    for block in blocks(page, "python"):
        ast.parse(block)


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)], ids=lambda page: page.name)
def test_commands_exist(page: Path) -> None:
    from latentgym.cli import app

    for words in commands(page):
        command, rest = typer.main.get_command(app), words[1:]
        while subcommands := getattr(command, "commands", None):
            assert rest, f"{page.name}: {shlex.join(words)} lacks a verb"
            assert rest[0] in subcommands, f"{page.name}: no such command: {shlex.join(words)}"
            command, rest = subcommands[rest[0]], rest[1:]
        known = {"--help", *(name for option in command.params for name in (*option.opts, *option.secondary_opts))}
        used = {word.split("=")[0] for word in rest if re.match(r"--?[a-z]", word)}
        assert used <= known, f"{page.name}: {words[1]} has no option {sorted(used - known)}"


def test_every_metric_is_documented() -> None:
    documented = set(re.findall(r"`([a-z][a-z0-9_]*)`", (ROOT / "docs" / "metrics.md").read_text()))
    produced = {
        keyword.value.value
        for path in PACKAGE.rglob("*.py")
        for call in ast.walk(ast.parse(path.read_text()))
        if isinstance(call, ast.Call)
        for keyword in call.keywords
        if keyword.arg == "metric" and isinstance(keyword.value, ast.Constant)
    }
    assert produced <= documented, f"describe in docs/metrics.md: {sorted(produced - documented)}"


def test_every_key_of_a_study_is_documented() -> None:
    documented = set(re.findall(r"`([a-z_.]+)`", (ROOT / "docs" / "study.md").read_text()))
    keys = {*StudyConfig.model_fields, *Suite.model_fields} - {"suites", "weights"}
    for section, field in StudyConfig.model_fields.items():
        if isinstance(field.default, BaseModel):
            keys -= {section}
            keys |= {f"{section}.{name}" for name in type(field.default).model_fields}
    # A row may list several keys of a section, the later ones as `.steps`.
    missing = {key for key in keys if key not in documented and f".{key.partition('.')[2]}" not in documented}
    assert not missing, f"describe in docs/study.md: {sorted(missing)}"


def test_links_between_pages_resolve() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}, which does not exist"


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("mkdocs") is None, reason="mkdocs comes with latentgym[docs]")
def test_the_site_builds(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    result = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert (tmp_path / "site" / "index.html").exists()
