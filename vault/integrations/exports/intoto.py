"""A run as an in-toto Statement v1 with a predicate of our own (docs/format/run_statement.md). Not signed. Pure.

Subjects are what the run made, and its record. What it opened are dependencies. Threads: pure.
"""

from typing import Final

import msgspec

from vault.format.dsse import Subject, encode_statement
from vault.integrations.exports.facts import TREE_ALGORITHM, Facts

PREDICATE_TYPE: Final = "urn:vaultfs:run:v1"


def encode(facts: Facts) -> bytes:
    """Return the statement of a run."""
    run = facts.run
    subjects = [
        Subject(name=f"{made.dataset}@v{made.version}", digest={TREE_ALGORITHM: made.snapshot}) for made in run.outputs
    ]
    subjects += [
        Subject(name=f"{head.journal}/{head.n}", digest={"sha256": head.sha256, "blake3": head.blake3})
        for head in facts.heads
    ]
    predicate = {
        "run": run.run,
        "store": facts.store_id,
        "identity": run.identity,
        "command": list(run.command),
        "started": run.started,
        "ended": run.ended if run.is_over else None,
        "exitStatus": run.exit_status,
        "hosts": list(run.hosts),
        "users": list(run.users),
        "claim": "opened",
        "inputs": [
            {
                "name": used.ref,
                "digest": {TREE_ALGORITHM: used.snapshot.hex()},
                "filesOpened": used.opened,
                "filesTotal": total,
                "firstOpen": used.first_open,
                "lastOpen": used.last_open,
            }
            for used, total in facts.inputs
        ],
        "attempts": [
            {
                "host": attempt.start.host,
                "started": attempt.start.started,
                "ended": attempt.ended,
                "how": attempt.how,
                "code": [
                    {"digest": {TREE_ALGORITHM: tree.snapshot}, "script": tree.script, "head": tree.head, "vcs": tree.vcs}
                    for tree in (attempt.capture.code if attempt.capture else ())
                ],
                "environment": _environment(attempt.capture.environment.snapshot)
                if attempt.capture and attempt.capture.environment
                else None,
                "platform": attempt.capture.platform if attempt.capture else {},
            }
            for attempt in run.history
        ],
        "params": run.params,
        "metrics": {name: summary.last for name, summary in run.metrics.items()},
        "verdicts": [msgspec.to_builtins(verdict) for verdict in run.verdicts],
        "gaps": list(run.gaps),
    }
    return encode_statement(subjects, PREDICATE_TYPE, predicate) + b"\n"


def _environment(snapshot: str) -> dict[str, object]:
    return {"digest": {TREE_ALGORITHM: snapshot}}
