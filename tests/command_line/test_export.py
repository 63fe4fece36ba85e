"""`vault export`: its answers, and what it refuses."""

import json
import os
from pathlib import Path

import pytest

from vault.cli.exit_codes import NOT_FOUND, SOURCE, USAGE
from vault.repo.repository import Repository
from vault.stores.registry import open_store
from vault.testing.mounts import Site
from vault.testing.runs import record_run


@pytest.fixture
def recorded(site, tmp_path) -> Site:
    """A store with one version and one run that read it."""
    (tmp_path / "source").mkdir()
    (tmp_path / "source/a.txt").write_text("a")
    site.vault("commit", str(tmp_path / "source"), "digits")
    record_run(Repository.open(open_store(site.store), site.cache), "run-1", {"digits@v1": [b"a.txt"]})
    return site


def answer(reference, site: Site, *arguments: str) -> dict:
    [summary] = reference.check("export", site.vault("export", *arguments, "--json").stdout)
    return summary


@pytest.mark.parametrize("form", ["openlineage", "prov", "in-toto"])
def test_a_run_goes_to_standard_output_or_to_a_file(reference, recorded, tmp_path, form) -> None:
    printed = recorded.vault("export", "run-1", "--format", form).stdout
    assert all(
        isinstance(json.loads(line), dict) for line in (printed.splitlines() if form == "openlineage" else [printed])
    )
    assert answer(reference, recorded, "run-1", "--format", form)["document"] == printed
    path = str(tmp_path / "out.json")
    assert answer(reference, recorded, "run-1", "--format", form, "-o", path)["files"] == [path]
    assert Path(path).read_text() == printed
    assert not reference.never_seen("export")


def test_a_version_becomes_two_files(reference, recorded, tmp_path) -> None:
    path, manifest = str(tmp_path / "digits.json"), str(tmp_path / "digits.manifest.jsonl")
    assert answer(reference, recorded, "digits@latest", "--format", "croissant", "-o", path)["files"] == [path, manifest]
    document = json.loads(Path(path).read_text())
    assert (document["name"], document["version"]) == ("digits", "1.0.0")
    assert json.loads(Path(manifest).read_text())["path"] == "a.txt"


def test_what_makes_no_sense_is_refused_and_leaves_nothing(recorded, tmp_path) -> None:
    path = str(tmp_path / "out.json")

    def refused(status: int, *arguments: str) -> str:
        done = recorded.vault("export", *arguments, status=status)
        assert done.stdout == "" and "Traceback" not in done.stderr
        return done.stderr

    assert "--format" in refused(USAGE, "run-1")
    assert "in-toto" in refused(USAGE, "run-1", "--format", "xml")
    assert "there is no run nothing" in refused(NOT_FOUND, "nothing", "--format", "prov")
    assert "there is no dataset" in refused(NOT_FOUND, "nothing@v1", "--format", "croissant", "-o", path)
    assert "-o FILE" in refused(USAGE, "digits@v1", "--format", "croissant")
    assert "leave the path" in refused(USAGE, "digits@v1/a.txt", "--format", "croissant", "-o", path)
    assert "--license" in refused(USAGE, "run-1", "--format", "prov", "--license", "x")
    assert "cannot write" in refused(SOURCE, "run-1", "--format", "prov", "-o", str(tmp_path / "missing/out"))
    (tmp_path / "out.manifest.jsonl").write_text("precious")
    assert "cannot write" in refused(SOURCE, "digits@v1", "--format", "croissant", "-o", path)
    assert (tmp_path / "out.manifest.jsonl").read_text() == "precious" and not os.path.exists(path)
    (tmp_path / "out.json").write_text("precious")
    assert "there is something already" in refused(SOURCE, "run-1", "--format", "prov", "-o", path)
