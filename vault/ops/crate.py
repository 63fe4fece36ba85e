"""ro-crate-metadata.json of a bundle: Process Run Crate 0.5 on RO-Crate 1.1. Pure.

A run is a CreateAction: what it used is its `object`, what it made its `result`, the script its `instrument`. Snapshots lie
in packs and have no path in the zip, so they are named by `urn:vaultfs:b3:<snapshot>`.
"""

from collections.abc import Sequence
from typing import Final

import msgspec

from vault.format.bundle import Pin
from vault.repo.run_model import Run

_CRATE: Final = "https://w3id.org/ro/crate/1.1"
_PROCESS: Final = "https://w3id.org/ro/wfrun/process/0.5"
_ACTION: Final = "#run"
_PARTS_MAX: Final = 4096
_WORDS: Final = {"input": "Data that the run read", "output": "What the run made"}
_ENCODER: Final = msgspec.json.Encoder(order="sorted")


def encode_crate(run: Run, pins: Sequence[Pin], *, published: str, software: str) -> bytes:
    """Return the metadata of a bundle.

    Args:
        run: as the bundle has it: redacted, or not.
        pins: what the bundle holds.
        published: the time that the crate gives as its own.
        software: the version of this program.
    """
    snapshots = list({pin.snapshot: _snapshot(pin) for pin in pins[:_PARTS_MAX]}.values())
    by_role = {role: _references(pins, role) for role in ("input", "output", "code", "environment")}
    instrument = by_role["code"][:1] or [{"@id": "#command"}]
    command = " ".join(run.command)[:4096] or "unknown command"
    action: dict[str, object] = {
        "@id": _ACTION,
        "@type": "CreateAction",
        "name": f"Run {run.run}",
        "description": f"Command: {command}",
        "instrument": {"@id": "#command"},
        "object": [*by_role["input"], *by_role["code"], *by_role["environment"], *_parameters(run, "references")],
        "result": _one_or_all(by_role["output"]),
        "startTime": _to_the_second(run.started),
        "actionStatus": _status(run),
    }
    if run.ended:
        action["endTime"] = _to_the_second(run.ended)
    if run.exit_status:
        action["error"] = f"exit status {run.exit_status}"
    root = {
        "@id": "./",
        "@type": "Dataset",
        "name": f"Run {run.run}",
        "description": f"One recorded run with the code, environment and data that it used: {command[:512]}",
        "datePublished": _to_the_second(published),
        "license": "Not stated: the licences of the data and code in this bundle apply",
        "conformsTo": {"@id": _PROCESS},
        "hasPart": [{"@id": entity["@id"]} for entity in snapshots],
        "mentions": {"@id": _ACTION},
    }
    program = {
        "@id": "#command",
        "@type": "SoftwareApplication",
        "name": (run.command[0] if run.command else "unknown")[:1024],
        "description": command,
        "version": "as in the code and environment snapshots",
        "softwareRequirements": instrument + by_role["environment"],
    }
    graph = [
        {
            "@id": "ro-crate-metadata.json",
            "@type": "CreativeWork",
            "about": {"@id": "./"},
            "conformsTo": {"@id": _CRATE},
            "sdPublisher": {"@id": "#vaultfs"},
        },
        root,
        {"@id": _PROCESS, "@type": "CreativeWork", "name": "Process Run Crate", "version": "0.5"},
        {"@id": "#vaultfs", "@type": "SoftwareApplication", "name": "vaultfs", "version": software},
        action,
        program,
        *snapshots,
        *_parameters(run, "entities"),
    ]
    context = [f"{_CRATE}/context", "https://w3id.org/ro/terms/workflow-run/context"]
    document = {"@context": context, "@graph": graph}
    return msgspec.json.format(_ENCODER.encode(document), indent=2) + b"\n"


def _snapshot(pin: Pin) -> dict[str, object]:
    words = _WORDS.get(pin.role, f"The {pin.role} of the run")
    return {
        "@id": f"urn:vaultfs:b3:{pin.snapshot}",
        "@type": "Dataset",
        "name": pin.name or pin.role,
        "description": f"{words}: {pin.files} files with {pin.bytes} bytes, {pin.files_held} of them in this bundle",
        "identifier": f"b3:{pin.snapshot}",
    }


def _one_or_all(references: list[dict[str, str]]) -> object:
    return references[0] if len(references) == 1 else references


def _to_the_second(time: str) -> str:
    return f"{time[:19]}Z" if time else time


def _references(pins: Sequence[Pin], role: str) -> list[dict[str, str]]:
    named = dict.fromkeys(f"urn:vaultfs:b3:{pin.snapshot}" for pin in pins[:_PARTS_MAX] if pin.role == role)
    return [{"@id": name} for name in named]


def _parameters(run: Run, form: str) -> list[dict[str, str]]:
    named = sorted(run.params.items())[:_PARTS_MAX]
    if form == "references":
        return [{"@id": f"#param-{number}"} for number, _ in enumerate(named)]
    return [
        {"@id": f"#param-{number}", "@type": "PropertyValue", "name": name, "value": value}
        for number, (name, value) in enumerate(named)
    ]


def _status(run: Run) -> str:
    last = run.history[-1] if run.history else None
    if not run.is_over:
        return "http://schema.org/ActiveActionStatus"
    failed = last is not None and (last.exit_status or last.signal)
    return "http://schema.org/FailedActionStatus" if failed else "http://schema.org/CompletedActionStatus"
