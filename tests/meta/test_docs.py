"""The documents say what the code does: blocks run, links lead somewhere, tables and names are those of the code."""

import contextlib
import getpass
import importlib
import inspect
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tomllib
import types
from pathlib import Path

import click
import pytest
from vault_fuse import status_files

from vault import errors
from vault.capture import launchers
from vault.cli.cmd_runs import run_record
from vault.cli.commands import COMMANDS, CommandTable
from vault.ids import Digest, RunId
from vault.repo.run_model import Input, Run
from vault.settings import VARIABLES
from vault.testing.mounts import mount_types, why_not_mountable
from vault.testing.transcripts import Block, Prompt, blocks, console_steps, pattern

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [*(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")), *sorted(DOCS.rglob("*.md"))]
LINE_LENGTH_MAX = 124
OTHER_VARIABLES = {"VAULTFS_RUN", "VAULTFS_ATTEMPT", "VAULTFS_CAPTURE"}  # read in the processes that open files
OTHER_VARIABLES |= {"VAULTFS_TEST_S3"}  # read by tests


def ids(path: Path) -> str:
    return str(path.relative_to(ROOT))


def every_block(*kinds: str) -> list[tuple[Path, Block]]:
    return [(page, block) for page in PAGES for block in blocks(page.read_text()) if block.kind in kinds]


def prose(page: Path) -> str:
    """Return a page without its fenced blocks."""
    return re.sub(r"^( *)```.*?^\1```$", "", page.read_text(), flags=re.M | re.S)


# Links and names.


def anchors(page: Path) -> set[str]:
    titles = re.findall(r"^#+ +(.+)$", prose(page), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if target.startswith(("https://", "http://")):
            continue
        file, _, anchor = target.partition("#")
        there = (page.parent / file).resolve() if file else page
        assert there.exists(), f"{ids(page)} links to {target}, which is not there"
        if anchor:
            assert anchor in anchors(there), f"{ids(page)} links to {target}; there are {sorted(anchors(there))}"


def test_every_page_can_be_reached_from_the_readme():
    reached, todo = set(), [ROOT / "README.md"]
    while todo:
        page = todo.pop()
        if page not in reached:
            reached.add(page)
            links = re.findall(r"\]\(([^)\s#]+\.md)(?:#[^)]*)?\)", prose(page))
            todo += [(page.parent / link).resolve() for link in links if not link.startswith("http")]
    assert set(PAGES) - reached == set()


def test_documents_that_the_code_names_exist():
    sources = [*ROOT.glob("Makefile"), ROOT / "pyproject.toml"]
    for folder in ("vault", "fuse", "server", "tests", "bench", "demo"):
        sources += (ROOT / folder).rglob("*.py")
    for source in sources:
        for name in re.findall(r"docs/[\w./-]+\.md", source.read_text()):
            assert (ROOT / name).exists(), f"{ids(source)} names {name}, which is not there"


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_files_that_a_page_names_exist(page):
    for name in re.findall(r"`((?:vault|fuse|tests|docs|bench|demo|tools)/[\w./-]+(?:\.\w+|/))`", page.read_text()):
        assert (ROOT / name).exists(), f"{ids(page)} names {name}, which is not there"


@pytest.mark.parametrize("page", [page for page in PAGES if page.parent.name != "format"], ids=ids)
def test_lines_are_not_too_long(page):
    long = [line for line in prose(page).splitlines() if len(line) > LINE_LENGTH_MAX and not line.startswith("|")]
    assert long == [] or page.name == "CHANGELOG.md"  # there a change is a line


def test_the_glossary_is_in_order():
    words = re.findall(r"^\| ([^|]+) \|", (DOCS / "glossary.md").read_text(), re.M)[2:]
    assert words == sorted(words, key=str.lower)
    assert len(words) > 30


# What must appear.


def test_every_command_is_documented():
    text = "\n".join(page.read_text() for page in PAGES)
    assert [name for name in COMMANDS if f"vault {name}" not in text] == []


def test_every_environment_variable_is_documented_and_no_other():
    found = {name for page in PAGES for name in re.findall(r"VAULTFS_[A-Z0-9_]+", page.read_text())}
    assert found == {*VARIABLES.values(), *OTHER_VARIABLES}


def test_every_error_is_in_the_reference():
    table = (DOCS / "reference" / "python.md").read_text()
    listed = set(re.findall(r"^\| `(\w+)` \|(?: `\w+` \|| \|)", table, re.M))
    known = {name for name, kind in vars(errors).items() if inspect.isclass(kind) and issubclass(kind, errors.VaultError)}
    assert known - {"VaultError"} - listed == set()


def test_every_public_name_of_the_package_is_in_the_reference():
    import vault

    page = (DOCS / "reference" / "python.md").read_text()
    named = set(re.findall(r"\b\w+\b", page))
    assert set(vault.__all__) - named == set()
    methods = {name for name, kind in vars(vault.Vault).items() if not name.startswith("_") and name != "repository"}
    assert methods - named == set()


def test_every_rule_of_attribution_is_in_the_table():
    page = (DOCS / "explanation" / "whose-read-is-it.md").read_text()
    listed = re.findall(r"^\| `(\w+)` \| .*\| [^|]+ \|$", page, re.M)
    rules = [rule.__name__ for rule in (*launchers.SCHEDULERS, *launchers.CONTAINERS, *launchers.FRAMEWORKS)]
    assert listed == ["VAULTFS_RUN", *rules]  # in the order in which they are asked


def test_every_dependency_is_explained_and_no_other():
    page = (DOCS / "reference" / "dependencies.md").read_text()
    table = page.partition("What is not a package")[0]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = [re.split(r"[<>=]", name)[0] for name in project["dependencies"]]
    assert re.findall(r"^\| `([\w-]+)` \|", table, re.M) == needed


def test_the_record_in_the_readme_has_the_fields_of_a_record():
    [block] = [block for block in blocks((ROOT / "README.md").read_text()) if block.kind == "json"]
    shown = json.loads(block.body)
    used = Input(snapshot=Digest(bytes(32)), ref="digits@v2", entries_total=1, opened=1, first_open="", last_open="")
    audit = types.SimpleNamespace(files_total=lambda _: 1)
    record: dict = {"type": "run", **run_record(audit, Run(run=RunId("x"), inputs=(used,)))}
    assert set(shown) == set(record)
    assert set(shown["inputs"][0]) == set(record["inputs"][0])


def test_every_status_file_is_described_and_no_other():
    section = (DOCS / "reference" / "mount-semantics.md").read_text().partition("## Status files")[2].partition("\n## ")[0]
    assert re.findall(r"^\| `(\w+)` \|", section, re.M) == list(status_files.NAMES)


def test_make_targets_that_pages_name_exist():
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.M))
    for page in PAGES:
        named = re.findall(r"(?:`|^ {4})make ((?:[a-z0-9-]+ ?)+)", page.read_text(), re.M)
        assert {target for names in named for target in names.split()} - targets == set(), ids(page)


# Limits.

LIMIT = re.compile(r"^\| .+ \| (?P<number>[\d,.^]+)(?: (?P<unit>\S+))? \| `(?P<module>[\w.]+):(?P<name>\w+)` \|$", re.M)
UNITS = {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "%": 0.01, "s": 1, "ms": 1_000_000, None: 1}  # ms: of ..._NS


def limits() -> list[re.Match[str]]:
    return list(LIMIT.finditer((DOCS / "reference" / "limits.md").read_text()))


@pytest.mark.parametrize("limit", limits(), ids=lambda limit: limit["name"])
def test_limits_are_those_of_the_code(limit):
    base, _, power = limit["number"].replace(",", "").partition("^")
    value = float(base) ** int(power or 1) * UNITS[limit["unit"]]
    assert getattr(importlib.import_module(limit["module"]), limit["name"]) == pytest.approx(value, rel=1e-12)


def test_every_public_limit_is_listed():
    listed = {f"{limit['module']}:{limit['name']}" for limit in limits()}
    small_talk = {"vault.ops.audit:NEAR_MAX"}  # how many near names a message has
    repeated = {  # the same bound again for another layer's input, or one that follows from others
        "vault.format.chunk_table:TABLE_SIZE_MAX",
        "vault.format.pack:INDEX_SIZE_MAX",
        "vault.format.readset:ENTRIES_MAX",
        "vault.format.readset:PAYLOAD_SIZE_MAX",
        "vault.format.readset:TEXT_LENGTH_MAX",
        "vault.format.readset:TIMES_MAX",
        "vault.repo.spool:FILE_SIZE_MAX",
        "vault.capture.proc:STAT_SIZE_MAX",
        "vault.capture.proc:STATUS_SIZE_MAX",
        "vault.capture.redaction:ARGUMENTS_MAX",
    }
    found = set()
    for package, folder in (("vault", ROOT / "vault"), ("vault_fuse", ROOT / "fuse" / "vault_fuse")):
        for source in folder.rglob("*.py"):
            module = ".".join([package, *source.relative_to(folder).with_suffix("").parts])
            if not module.startswith("vault.testing"):
                found |= {f"{module}:{name}" for name in re.findall(r"^([A-Z]\w*_MAX)\b.*=", source.read_text(), re.M)}
    assert found - listed - small_talk - repeated == set()


# Decision records.


def records() -> list[Path]:
    return sorted((DOCS / "adr").glob("[0-9]*.md"))


def test_decision_records_are_numbered_once_and_listed():
    numbers = [record.name[:4] for record in records()]
    assert numbers == [f"{number:04}" for number in range(1, len(numbers) + 1)]
    listed = re.findall(r"^\| \[(\d{4})\]\(([\w-]+\.md)\) \|", (DOCS / "adr" / "README.md").read_text(), re.M)
    assert listed == [(record.name[:4], record.name) for record in records()]


@pytest.mark.parametrize("record", records(), ids=ids)
def test_decision_records_have_all_parts(record):
    text = record.read_text()
    assert text.startswith(f"# {record.name[:4]}: ")
    assert re.findall(r"^## (.+)$", text, re.M) == ["Context", "Choice", "Rejected", "What would change our mind"]
    assert re.search(r"^Status: (accepted|replaced by \d{4})", text, re.M)


# Commands in blocks.

USE = re.compile(r"(?<![\w/.-])vault((?: --?[\w-]+(?:[ =][^\s-]\S*)?)*) ([a-z]+)\b([^\n|;&)]*)")


def test_commands_in_blocks_exist_and_take_these_options():
    table = CommandTable("vault")
    context = click.Context(table)
    uses = 0
    for page, block in every_block("sh", "console", "ini"):
        code = block.body
        if block.kind == "console":
            code = "\n".join(step.command for step in console_steps(block)) if not block.opt_out else ""
        for _, first, rest in USE.findall(re.sub(r"#.*", "", code).replace("\\\n", " ")):
            longer = " ".join([first, *rest.split()[:1]])
            name = longer if longer in COMMANDS else first
            assert name in COMMANDS, f"{ids(page)}, line {block.line}: there is no command {name}"
            command = table.get_command(context, name)
            assert command is not None
            known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
            ours = rest.partition(" -- ")[0]  # behind it is another program's command line
            given = re.findall(r"(?<=\s)(--[a-z][\w-]*)", re.sub(r"'[^']*'|\"[^\"]*\"|\$\([^)]*", "", ours))
            assert set(given) <= known, f"{ids(page)}, line {block.line}: vault {name} does not take {set(given) - known}"
            uses += 1
    assert uses > 40


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_shell_blocks_are_shell(page):
    for block in blocks(page.read_text()):
        if block.kind == "sh":
            done = subprocess.run(["bash", "-n"], input=block.body, capture_output=True, text=True, check=False)
            assert done.returncode == 0, f"line {block.line}: {done.stderr}"


def test_the_service_is_one_that_systemd_takes(tmp_path):
    if shutil.which("systemd-analyze") is None:
        pytest.skip("there is no systemd-analyze")
    [(_, unit)] = every_block("ini")
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "vault").write_text("#!/bin/sh\n")
    (folder / "vault").chmod(0o755)
    (tmp_path / "vault.service").write_text(unit.body.replace("/opt/vaultfs/bin/vault", str(folder / "vault")))
    command = ["systemd-analyze", "verify", "--man=no", str(tmp_path / "vault.service")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "vault.service" not in done.stderr, done.stderr  # it also complains about units of this machine
    assert done.returncode == 0 or done.stderr


# Blocks that run.

SAME = {  # what documents show -> what a machine may show instead
    r"adhoc-lab7-\d{8}T\d{6}-\d+-[0-9a-f]{6}": r"adhoc-[\w.-]+",
    r"ana@lab7": rf"{re.escape(getpass.getuser())}@{re.escape(socket.gethostname())}",
    r"\d{4}-\d\d-\d\d \d\d:\d\d(?: to \d\d:\d\d)?": r"\d{4}-\d\d-\d\d \d\d:\d\d(?: to \d\d:\d\d)?",
    r"[\d.]+ k?B stored": r"[\d.]+ k?B stored",  # depends on the version of zstd
    r"all [\d.]+ kB read": r"all [\d.]+ kB read",
    r"\d+ packs": r"\d+ packs",  # captures of runs have some of their own, when they are done
    r"\bana\b": re.escape(getpass.getuser()),
}
OF_THESE_DOCUMENTS = {  # the README commits them, and they change all the time
    r"b3:[0-9a-f]{12}": r"b3:[0-9a-f]{12}",
    r"(?<![\w@])\d+(?:\.\d+)?": r"[\d.]+",
}


def replay(page: Path, folder: Path, place: str, more: dict[str, str] | None = None) -> None:
    """Type the console blocks of a page, in order, and compare what they print.

    place: what the folder is called in the page; more: what else may differ there, as SAME.
    """
    variables = {
        "HOME": str(folder),
        "XDG_CACHE_HOME": str(folder / ".cache"),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "LANG": "C.UTF-8",
    }
    same = {re.escape(place): re.escape(str(folder)), **SAME, **(more or {})}
    with Prompt(str(folder), variables) as prompt:
        for block in blocks(page.read_text()):
            if block.name:
                (folder / block.name).write_text(block.body)
            for step in console_steps(block) if block.kind == "console" and not block.opt_out else ():
                done = prompt.type(step.command)
                where = f"{ids(page)}, line {step.line}: $ {step.command}"
                assert pattern(step.shown, same).match(done.output), (
                    f"{where}\nends with {done.status} and prints\n{done.output}\ninstead of\n{step.shown}"
                )


@pytest.fixture
def folder(tmp_path):
    """A folder for a page, from which every mount is taken away at the end."""
    yield tmp_path
    for path in [path for path in mount_types() if path.startswith(f"{tmp_path}/")]:
        subprocess.run(["umount", "--lazy", path], check=False)


needs_mount = pytest.mark.skipif(bool(why_not_mountable("direct")), reason=why_not_mountable("direct") or "-")


@pytest.mark.fuse
@needs_mount
def test_the_first_hour_goes_as_printed(folder):
    replay(DOCS / "tutorial" / "first-hour.md", folder, "/home/ana/first-hour")


@pytest.mark.fuse
@needs_mount
def test_the_mess_becomes_reproducible_as_printed(folder):
    of_git = {r"git [0-9a-f]{12}": r"git [0-9a-f]{12}"}
    replay(DOCS / "tutorial" / "from-mess-to-reproducible.md", folder, "/home/ana/mess", of_git)


@pytest.mark.fuse
@needs_mount
def test_the_quick_start_goes_as_printed(folder):
    shutil.copytree(DOCS, folder / "docs")
    replay(ROOT / "README.md", folder, "/home/ana", OF_THESE_DOCUMENTS)


def test_console_blocks_are_in_pages_that_are_run():
    replayed = {"README.md", "first-hour.md", "from-mess-to-reproducible.md"}
    for page, block in every_block("console"):
        assert page.name in replayed or block.opt_out, f"{ids(page)}, line {block.line}: nothing runs this block"


PYTHON_PAGES = sorted({page for page, block in every_block("python") if not block.name})


@pytest.mark.parametrize("page", PYTHON_PAGES, ids=ids)
def test_python_blocks_run(page, tmp_path, monkeypatch):
    for shape in ("disc", "square"):
        (tmp_path / "images" / shape).mkdir(parents=True)
        for number in range(3):
            (tmp_path / "images" / shape / f"{number}.pgm").write_bytes(b"P5 1 1 255\n%c" % number)
    (tmp_path / "images" / "labels.csv").write_text("disc/0.pgm,disc\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VAULTFS_CACHE_DIR", str(tmp_path / "cache"))
    names: dict[str, object] = {}
    for block in blocks(page.read_text()):
        if block.kind == "python" and not block.name and not block.opt_out:
            with contextlib.redirect_stdout(None):
                exec(compile(block.body, f"{page}:{block.line}", "exec"), names)
