"""ro-crate-metadata.json is a Process Run Crate 0.5, as its own validator says; and fits the bundle that it is in.

The validator wants the two JSON-LD contexts from the network. It is given what they say of the words that we use: all are
those of schema.org, but one.
"""

import json
from pathlib import Path

import pytest

from vault.format.bundle import CRATE_KEY, Pin
from vault.format.records import Start
from vault.ids import RunId
from vault.ops.crate import encode_crate
from vault.repo.run_model import Attempt, Run
from vault.testing.runs import TIME

CONTEXTS = "https://w3id.org/ro/"
PROFILE = "process-run-crate-0.5"
WORDS = (
    "Dataset CreativeWork CreateAction SoftwareApplication PropertyValue about actionStatus datePublished description "
    "endTime error hasPart identifier instrument license mentions name object result sdPublisher softwareRequirements "
    "startTime value version"
).split()
CONTEXT = {
    "@context": {**{w: f"http://schema.org/{w}" for w in WORDS}, "conformsTo": "http://purl.org/dc/terms/conformsTo"}
}
ROLES = ("input", "input", "output", "code", "environment")


def crate(*, exit_status: int | None = 0) -> bytes:
    start = Start(identity="vault run", uid=1, host="h", started=TIME, command=("python", "train.py"))
    attempt = Attempt(writer="w", start=start, ended=TIME, exit_status=exit_status)
    run = Run(
        run=RunId("run-1"),
        command=start.command,
        started=TIME,
        ended=TIME,
        last_seen=TIME,
        history=(attempt,),
        params={"lr": "0.1", "epochs": "3"},
    )
    pins = [
        Pin(role=role, name=f"d{n}@v1", snapshot=f"{n}" * 64, files=3, bytes=4, files_held=3, bytes_held=4)
        for n, role in enumerate(ROLES)
    ]
    return encode_crate(run, pins, published=TIME, software="1")


@pytest.mark.filterwarnings("default")  # the validator's own are not ours to mend
@pytest.mark.parametrize("exit_status", [0, 3])
def test_the_validator_of_the_profile_accepts_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exit_status: int) -> None:
    import requests
    from rocrate_validator import models, services
    from rocrate_validator.utils.http import HttpRequester

    def get(_self: object, url: str, *_: object, **__: object) -> requests.Response:
        response = requests.Response()
        response.url, response.status_code = url, 404
        if url.startswith(CONTEXTS):
            response.status_code, response._content = 200, json.dumps(CONTEXT).encode()
            response.headers["Content-Type"] = "application/ld+json"
        return response

    monkeypatch.setattr(HttpRequester, "get", get, raising=False)
    (tmp_path / CRATE_KEY).write_bytes(crate(exit_status=exit_status))
    settings = services.ValidationSettings(
        rocrate_uri=str(tmp_path),
        profile_identifier=PROFILE,
        requirement_severity=models.Severity.REQUIRED,
        skip_availability_check=True,
        no_cache=True,
    )
    result = services.validate(settings)
    assert [issue.message for issue in result.get_issues()] == []
    assert result.passed()
    broken = crate().replace(b'"instrument"', b'"about"')
    (tmp_path / CRATE_KEY).write_bytes(broken)
    assert not services.validate(settings).passed(), "the validator looks at what we give it"


def test_every_word_is_known_and_every_reference_leads_somewhere() -> None:
    graph = json.loads(crate())["@graph"]
    ids = [entity["@id"] for entity in graph]
    assert len(set(ids)) == len(ids)
    references = [value["@id"] for entity in graph for value in _references(entity)]
    assert set(references) - set(ids) == {"https://w3id.org/ro/crate/1.1"}
    words = {word for entity in graph for word in (*entity, entity["@type"])} - {"@id", "@type"}
    assert words - {*CONTEXT["@context"]} == set()
    action = next(entity for entity in graph if entity["@type"] == "CreateAction")
    assert [one["@id"] for one in action["object"]][:2] == [f"urn:vaultfs:b3:{n * 64}" for n in "01"]
    assert action["result"] == {"@id": f"urn:vaultfs:b3:{'2' * 64}"}
    assert action["actionStatus"].endswith("/CompletedActionStatus")
    failed = json.loads(crate(exit_status=3))["@graph"]
    assert next(e for e in failed if e["@id"] == "#run")["actionStatus"].endswith("/FailedActionStatus")


def _references(entity: dict[str, object]) -> list[dict[str, str]]:
    found = []
    for value in entity.values():
        found += [one for one in (value if isinstance(value, list) else [value]) if isinstance(one, dict)]
    return found
