"""Exports of runs and versions: valid by the published schemas and libraries, and saying what the record says."""

import dataclasses
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
from jsonschema import Draft202012Validator, FormatChecker
from referencing import Registry, Resource

from vault.api import Vault
from vault.format.journal import encode_entry
from vault.format.records import (
    RUN_KINDS,
    CaptureEntry,
    CodeTree,
    Environment,
    Finish,
    Metric,
    Output,
    ReportEntry,
    Start,
    run_journal,
)
from vault.ids import RunId
from vault.integrations.exports import croissant, intoto, openlineage, prov
from vault.integrations.exports.facts import Facts, collect
from vault.ops.commit import commit
from vault.repo.journals import Journal
from vault.repo.run_model import Attempt
from vault.testing.places import STORE_ID, Place
from vault.testing.runs import record_run

ROOT = Path(__file__).parents[2]
SCHEMAS = ROOT / "tests" / "schemas" / "openlineage"
OURS = ROOT / "vault" / "integrations" / "exports" / "schemas" / "openlineage-facets.json"
TIME = "2026-01-02T04:00:00.000000Z"
COMMON: dict[str, Any] = {"writer": "vault-run-1", "time": TIME}


@pytest.fixture
def place(tmp_path) -> Place:
    made = Place.make(tmp_path)
    tree = {b"a.txt": b"a", b"none": b"", b"n\xff.JPG": b"j", b"train": {b"b.jpg": b"b", b".hidden": b"h"}}
    commit(made.repository(), made.write(tree), "digits", message="as downloaded", author="ada")
    record_run(made.repository(), "run+1", {"digits@v1": [b"a.txt", b"train/b.jpg"]})
    return made


def report(place: Place, *, finish: Finish | None) -> None:
    """Add what `vault run` tells: a launch, a capture, an output, and how it ended."""
    journal = Journal(place.store(), run_journal(RunId("run+1"), "vault-run-1"), RUN_KINDS)
    start = Start(identity="VAULTFS_RUN", uid=1000, user="ada", host="node7", started=TIME, command=("python", "train.py"))
    made = Output(dataset="weights", version=3, snapshot="5a" * 32, time=TIME, step=7)
    code = CodeTree(
        root="/home/ada", snapshot="6b" * 32, files=1, bytes=1, script="train.py", vcs="git", head="c0ffee",
        branch="main", remote="https://example.com/ada/train.git",
    )  # fmt: skip
    environment = Environment(snapshot="7c" * 32, interpreter="CPython 3.11.2")
    for entry in (
        lambda n, prev: ReportEntry(n=n, prev=prev, launch=start, params={"lr rate": "0.1"}, **COMMON),
        lambda n, prev: CaptureEntry(
            n=n, prev=prev, captured=TIME, code=(code,), environment=environment, variables={"OMP_NUM_THREADS": "4"},
            gaps=("no GPU driver",), **COMMON,
        ),
        lambda n, prev: ReportEntry(
            n=n, prev=prev, outputs=(made,), metrics=(Metric(name="acc", value=0.5, time=TIME),), finish=finish, **COMMON
        ),
    ):  # fmt: skip
        journal.append(lambda n, prev, entry=entry: encode_entry(entry(n, prev)))


def facts(place: Place) -> Facts:
    return collect(Vault(place.repository()), "run+1")


def events(place: Place) -> list[dict[str, Any]]:
    return [json.loads(line) for line in openlineage.encode(facts(place)).splitlines()]


# OpenLineage.


def registry() -> Registry:
    found = [json.loads(path.read_text()) for path in (*SCHEMAS.glob("*.json"), OURS)]
    return Registry().with_resources([(schema["$id"], Resource.from_contents(schema)) for schema in found])


def facets(value: object) -> list[dict[str, Any]]:
    """Return all facets below a value."""
    if isinstance(value, list):
        return [facet for item in value for facet in facets(item)]
    if not isinstance(value, dict):
        return []
    return ([value] if "_schemaURL" in value else []) + [facet for item in value.values() for facet in facets(item)]


def check_events(found: list[dict[str, Any]]) -> None:
    known = registry()
    spec = {"$ref": "https://openlineage.io/spec/2-0-2/OpenLineage.json"}
    for event in found:
        Draft202012Validator(spec, registry=known, format_checker=FormatChecker()).validate(event)
        for facet in facets(event):
            Draft202012Validator({"$ref": facet["_schemaURL"]}, registry=known).validate(facet)


def test_openlineage_events_are_valid_and_say_opened(place) -> None:
    report(place, finish=Finish(ended=TIME, exit_status=0))
    start, end = found = events(place)
    check_events(found)
    assert (start["eventType"], end["eventType"]) == ("START", "COMPLETE")
    assert start["run"]["runId"] == end["run"]["runId"] == openlineage.run_uuid(facts(place))
    assert end["job"]["namespace"] == f"vaultfs/{STORE_ID}" and end["job"]["name"] == "train.py"
    assert end["job"]["facets"]["sourceCodeLocation"]["version"] == "c0ffee"
    [used] = end["inputs"]
    opened = used["inputFacets"]["vaultfs_opened"]
    assert (used["name"], opened["claim"], opened["filesOpened"], opened["filesTotal"]) == ("digits", "opened", 2, 5)
    assert used["facets"]["version"]["datasetVersion"] == "v1"
    [made] = end["outputs"]
    assert (made["name"], made["facets"]["vaultfs_snapshot"]["snapshot"]) == ("weights", "5a" * 32)
    assert end["run"]["facets"]["executionParameters"]["parameters"] == [{"key": "lr rate", "value": "0.1"}]
    assert end["run"]["facets"]["vaultfs_run"]["gaps"] == ["no GPU driver"]
    assert len(facets(end)) == 11


@pytest.mark.parametrize(
    ("finish", "kind"),
    [
        (Finish(ended=TIME, exit_status=3), "FAIL"),
        (Finish(ended=TIME, signal="SIGKILL"), "ABORT"),
        (Finish(ended=TIME), "COMPLETE"),
        (None, "RUNNING"),
    ],
)
def test_how_a_run_ended_is_told(place, finish, kind) -> None:
    report(place, finish=finish)
    found = events(place)
    check_events(found)
    assert [event["eventType"] for event in found] == ["START", kind]


def test_a_run_of_which_little_is_known_is_valid(place) -> None:
    found = events(place)
    check_events(found)
    assert found[1]["outputs"] == [] and "sourceCodeLocation" not in found[1]["job"]["facets"]


def without_uri(attempt: Attempt) -> Attempt:
    """Return an attempt whose code is from a remote in the form that only git knows."""
    if attempt.capture is None:
        return attempt
    replace = msgspec.structs.replace
    code = tuple(replace(tree, remote="git@example.com:ada/train.git") for tree in attempt.capture.code)
    return replace(attempt, capture=replace(attempt.capture, code=code))


def test_a_remote_that_is_no_uri_is_left_out(place) -> None:
    report(place, finish=Finish(ended=TIME, exit_status=0))
    known = facts(place)
    history = tuple(without_uri(attempt) for attempt in known.run.history)
    changed = dataclasses.replace(known, run=msgspec.structs.replace(known.run, history=history))
    found = [json.loads(line) for line in openlineage.encode(changed).splitlines()]
    check_events(found)
    assert "sourceCodeLocation" not in found[0]["job"]["facets"]


# PROV.


def test_prov_is_read_by_the_library_of_w3c_provenance(place) -> None:
    from prov.model import ProvActivity, ProvDocument, ProvEntity, ProvGeneration, ProvUsage

    report(place, finish=Finish(ended=TIME, exit_status=0))
    data = prov.encode(facts(place))
    document = ProvDocument.deserialize(content=data.decode(), format="json")
    [activity] = document.get_records(ProvActivity)
    assert activity.identifier.uri == "urn:vaultfs:run/run%2B1"
    assert len(list(document.get_records(ProvEntity))) == 4  # input, code, environment, output
    roles = sorted(str(next(iter(used.get_attribute("prov:role")))) for used in document.get_records(ProvUsage))
    assert roles == ["code", "environment", "opened"]
    assert len(list(document.get_records(ProvGeneration))) == 1
    assert "wasDerivedFrom" not in json.loads(data)


# in-toto.


def test_the_statement_is_read_by_the_library_of_in_toto(place) -> None:
    from google.protobuf.json_format import Parse
    from in_toto_attestation.v1 import statement_pb2
    from in_toto_attestation.v1.statement import Statement

    report(place, finish=Finish(ended=TIME, exit_status=0))
    data = intoto.encode(facts(place))
    Statement.copy_from_pb(Parse(data, statement_pb2.Statement())).validate()
    statement = json.loads(data)
    assert statement["predicateType"] == "urn:vaultfs:run:v1"
    output, *heads = statement["subject"]
    assert output == {"name": "weights@v3", "digest": {"vaultfsTree": "5a" * 32}}
    assert len(heads) == 2
    for head in heads:
        journal, _, number = head["name"].rpartition("/")
        entry = place.store().get(f"{journal}/{int(number):010d}.json")
        assert head["digest"]["sha256"] == hashlib.sha256(entry).hexdigest()
    predicate = statement["predicate"]
    assert predicate["claim"] == "opened" and predicate["inputs"][0]["filesOpened"] == 2
    assert predicate["metrics"] == {"acc": 0.5} and predicate["gaps"] == ["no GPU driver"]


def test_the_fields_of_the_predicate_are_those_of_its_page(place) -> None:
    report(place, finish=Finish(ended=TIME, exit_status=0))
    page = (ROOT / "docs" / "format" / "run_statement.md").read_text()
    predicate = json.loads(intoto.encode(facts(place)))["predicate"]
    assert set(re.findall(r"^\| `(\w+)` \|", page.partition("## 2.")[2], re.M)) == set(predicate)


# Croissant.


def describe(place: Place) -> tuple[dict[str, Any], bytes]:
    vault = Vault(place.repository())
    manifest = croissant.Manifest("digits.manifest.jsonl")
    lines = b"".join(manifest.lines(vault.ls("digits@v1", recursive=True)))
    version = vault.version("digits@v1")
    return json.loads(croissant.encode("digits", version, manifest, license_url="https://example.com/l")), lines


def test_croissant_names_what_the_manifest_holds(place) -> None:
    document, lines = describe(place)
    assert document["conformsTo"] == "http://mlcommons.org/croissant/1.1" and document["isLiveDataset"] is False
    manifest, *sets = document["distribution"]
    assert manifest["sha256"] == hashlib.sha256(lines).hexdigest() and manifest["contentSize"] == f"{len(lines)} B"
    assert [(found["includes"], found["encodingFormat"]) for found in sets] == [
        ("**/*.JPG", "image/jpeg"),
        ("**/*.jpg", "image/jpeg"),
        ("**/*.txt", "text/plain"),
    ]
    assert all(found["containedIn"] == {"@id": "manifest"} for found in sets)
    records = {record["path"]: record for record in map(json.loads, lines.splitlines())}
    assert len(records) == 5 and records["a.txt"]["bytes"] == 1
    assert records["n\udcff.JPG"]["blake3"]


def test_croissant_is_read_by_the_library_of_mlcommons(place, tmp_path) -> None:
    mlcroissant = pytest.importorskip("mlcroissant", reason="mlcroissant is not installed: it is large")
    document, _ = describe(place)
    path = tmp_path / "digits.json"
    path.write_text(json.dumps(document))
    issues = mlcroissant.Dataset(str(path)).metadata.issues
    assert issues.errors == set() and issues.warnings == set()
