"""A run as W3C PROV-JSON: the run is an activity, snapshots are entities, its user is an agent.

What was opened is `used`, with the role "opened". Nothing is said to be derived from anything: nobody saw that. Pure.
Threads: pure.
"""

import json
from collections import defaultdict
from typing import Final

from vault.integrations.exports.facts import Facts, safe

_PREFIXES: Final = {"vault": "urn:vaultfs:", "xsd": "http://www.w3.org/2001/XMLSchema#"}

Record = dict[str, object]


def encode(facts: Facts) -> bytes:
    """Return the document of a run."""
    run = facts.run
    sections: dict[str, dict[str, Record]] = defaultdict(dict)
    activity, agent = f"vault:run/{safe(run.run)}", f"vault:user/{safe(run.user or 'unknown')}"
    sections["activity"][activity] = {
        "prov:startTime": run.started,
        **({"prov:endTime": run.ended} if run.ended and run.is_over else {}),
        "prov:type": _name("vault:Run"),
        "vault:command": " ".join(run.command),
        "vault:host": run.host,
        "vault:identity": run.identity,
        "vault:attempts": run.attempts,
        "vault:store": facts.store_id,
        **({"vault:exitStatus": run.exit_status} if run.exit_status is not None else {}),
        **{f"vault:param/{safe(name)}": value for name, value in sorted(run.params.items())},
    }
    sections["agent"][agent] = {"prov:type": _name("prov:Person"), "vault:login": run.user}
    _add(sections, "wasAssociatedWith", {"prov:activity": activity, "prov:agent": agent})
    for used, total in facts.inputs:
        attributes: Record = {"vault:ref": used.ref}
        if total is not None:
            attributes["vault:files"] = total
        entity = _snapshot(sections, used.snapshot.hex(), **attributes)
        opened: Record = {"prov:activity": activity, "prov:entity": entity, "prov:time": used.first_open}
        _add(sections, "used", {**opened, "prov:role": "opened", "vault:filesOpened": used.opened, "vault:ref": used.ref})
    seen = set()
    for capture in facts.captures:
        snapshots = [("code", tree.snapshot) for tree in capture.code]
        snapshots += [("environment", capture.environment.snapshot)] if capture.environment is not None else []
        for role, snapshot in snapshots:
            if (role, snapshot) not in seen:
                seen.add((role, snapshot))
                used_as = {"prov:activity": activity, "prov:entity": _snapshot(sections, snapshot), "prov:role": role}
                _add(sections, "used", {**used_as, "prov:time": capture.captured})
    for made in run.outputs:
        entity = _snapshot(sections, made.snapshot, **{"vault:ref": f"{made.dataset}@v{made.version}"})
        generated = {"prov:entity": entity, "prov:activity": activity, "prov:time": made.time}
        _add(sections, "wasGeneratedBy", {**generated, **({"vault:step": made.step} if made.step is not None else {})})
    return json.dumps({"prefix": _PREFIXES, **sections}, sort_keys=True, indent=1).encode() + b"\n"


def _snapshot(sections: dict[str, dict[str, Record]], snapshot: str, **attributes: object) -> str:
    """Add an entity for a snapshot. The same snapshot under several names is one entity: the first name is told."""
    name = f"vault:snapshot/{snapshot}"
    known = sections["entity"].setdefault(name, {"prov:type": _name("vault:Snapshot")})
    for key, value in attributes.items():
        known.setdefault(key, value)
    return name


def _add(sections: dict[str, dict[str, Record]], kind: str, record: Record) -> None:
    sections[kind][f"_:{kind}{len(sections[kind]) + 1}"] = record


def _name(name: str) -> Record:
    return {"$": name, "type": "prov:QUALIFIED_NAME"}
