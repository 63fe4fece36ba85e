"""A run as OpenLineage events, one JSON object a line: what the file transport of its clients writes.

Core 2-0-2. An input is what was *opened*: OpenLineage has no word for that, so each one carries a facet of our own, whose
schema is in schemas/. Pure. Threads: pure.
"""

import json
import uuid
from typing import Final

from vault.integrations.exports.facts import Facts, dataset_of, version_of
from vault.repo.run_model import Input, Run

_SPEC: Final = "https://openlineage.io/spec"
_EVENT: Final = f"{_SPEC}/2-0-2/OpenLineage.json#/$defs/RunEvent"
_OURS: Final = "urn:vaultfs:openlineage:facets:1#/$defs/"
_URI_SCHEMES: Final = ("https://", "http://", "ssh://", "git://", "file://")

Facet = dict[str, object]


def encode(facts: Facts) -> bytes:
    """Return the events of a run: START, and COMPLETE, FAIL or ABORT once it has ended."""
    events = [_event(facts, "START", facts.run.started)]
    ended = facts.run.ended if facts.run.is_over else None
    events.append(_event(facts, _how(facts.run), ended) if ended else _event(facts, "RUNNING", facts.run.last_seen))
    return "".join(json.dumps(event, sort_keys=True) + "\n" for event in events).encode()


def run_uuid(facts: Facts) -> str:
    """Return the UUID of a run: the same whenever and by whomever it is exported."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"urn:vaultfs:{facts.store_id}:run:{facts.run.run}"))


def _how(run: Run) -> str:
    """Return how it ended. Without an exit status on record nobody knows that it failed: it is called complete."""
    last = run.history[-1] if run.history else None
    if last is not None and last.signal:
        return "ABORT"
    return "FAIL" if run.exit_status else "COMPLETE"


def _event(facts: Facts, kind: str, time: str) -> dict[str, object]:
    return {
        "eventType": kind,
        "eventTime": time,
        "producer": _producer(facts),
        "schemaURL": _EVENT,
        "run": {"runId": run_uuid(facts), "facets": _run_facets(facts)},
        "job": {"namespace": facts.namespace, "name": facts.job, "facets": _job_facets(facts)},
        "inputs": [] if kind == "START" else [_input(facts, used, total) for used, total in facts.inputs],
        "outputs": [] if kind == "START" else _outputs(facts),
    }


def _run_facets(facts: Facts) -> dict[str, Facet]:
    run = facts.run
    facets = {
        "vaultfs_run": _facet(
            facts,
            f"{_OURS}RunRunFacet",
            run=run.run,
            identity=run.identity,
            command=list(run.command),
            user=run.user,
            hosts=list(run.hosts),
            attempts=run.attempts,
            exitStatus=run.exit_status,
            gaps=list(run.gaps),
        )
    }
    variables = {name: value for capture in facts.captures for name, value in capture.variables.items()}
    if variables:
        facets["environmentVariables"] = _facet(
            facts,
            f"{_SPEC}/facets/1-0-0/EnvironmentVariablesRunFacet.json#/$defs/EnvironmentVariablesRunFacet",
            environmentVariables=[{"name": name, "value": value} for name, value in sorted(variables.items())],
        )
    if run.params:
        facets["executionParameters"] = _facet(
            facts,
            f"{_SPEC}/facets/1-0-0/ExecutionParametersRunFacet.json#/$defs/ExecutionParametersRunFacet",
            parameters=[{"key": name, "value": value} for name, value in sorted(run.params.items())],
        )
    return facets


def _job_facets(facts: Facts) -> dict[str, Facet]:
    facets = {
        "jobType": _facet(
            facts,
            f"{_SPEC}/facets/2-0-4/JobTypeJobFacet.json#/$defs/JobTypeJobFacet",
            processingType="BATCH",
            integration="VAULTFS",
            jobType="COMMAND",
        )
    }
    trees = (tree for capture in facts.captures for tree in capture.code)
    tree = next((tree for tree in trees if tree.vcs and tree.remote.startswith(_URI_SCHEMES)), None)
    if tree is not None:
        facets["sourceCodeLocation"] = _facet(
            facts,
            f"{_SPEC}/facets/1-1-0/SourceCodeLocationJobFacet.json#/$defs/SourceCodeLocationJobFacet",
            type=tree.vcs,
            url=tree.remote,
            repoUrl=tree.remote,
            path=tree.script,
            version=tree.head,
            branch=tree.branch,
        )
    return facets


def _input(facts: Facts, used: Input, total: int | None) -> dict[str, object]:
    snapshot = used.snapshot.hex()
    return {
        "namespace": facts.namespace,
        "name": dataset_of(used.ref),
        "facets": _dataset_facets(facts, used.ref, snapshot),
        "inputFacets": {
            "inputStatistics": _facet(
                facts,
                f"{_SPEC}/facets/1-0-0/InputStatisticsInputDatasetFacet.json#/$defs/InputStatisticsInputDatasetFacet",
                fileCount=used.opened,
            ),
            "vaultfs_opened": _facet(
                facts,
                f"{_OURS}OpenedInputDatasetFacet",
                claim="opened",
                snapshot=snapshot,
                filesOpened=used.opened,
                filesTotal=total,
                firstOpen=used.first_open,
                lastOpen=used.last_open,
            ),
        },
    }


def _outputs(facts: Facts) -> list[dict[str, object]]:
    return [
        {
            "namespace": facts.namespace,
            "name": made.dataset,
            "facets": _dataset_facets(facts, f"{made.dataset}@v{made.version}", made.snapshot),
        }
        for made in facts.run.outputs
    ]


def _dataset_facets(facts: Facts, ref: str, snapshot: str) -> dict[str, Facet]:
    return {
        "version": _facet(
            facts,
            f"{_SPEC}/facets/1-0-1/DatasetVersionDatasetFacet.json#/$defs/DatasetVersionDatasetFacet",
            datasetVersion=version_of(ref, snapshot),
        ),
        "vaultfs_snapshot": _facet(facts, f"{_OURS}SnapshotDatasetFacet", snapshot=snapshot),
    }


def _facet(facts: Facts, schema: str, **fields: object) -> Facet:
    return {"_producer": _producer(facts), "_schemaURL": schema, **fields}


def _producer(facts: Facts) -> str:
    return f"urn:vaultfs:producer:{facts.vault_version}"
