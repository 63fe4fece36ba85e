"""`vault ledger checkpoint`, `vault ledger show`, `vault ledger prove`, `vault ledger check` and `vault audit verify`."""

import click

from vault.cli.commands import examples
from vault.cli.exit_codes import FINDINGS, OK
from vault.cli.options import Session, complete_ref, session_options
from vault.cli.output import count_text, one_line, time_text
from vault.errors import RefNotFound, SourceUnreadable, TargetUnwritable, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vault.api import Vault

_key = click.option("--key", "key_file", metavar="FILE", default="", help="The public key of the notary, from elsewhere.")
_output = click.option("-o", "--output", metavar="FILE", default="", help="Write it to this new file.")
_since = click.option("--since", metavar="FILE", default="", help="A checkpoint that was kept outside of the store.")


@click.command(
    name="ledger checkpoint",
    epilog=examples(
        "vault ledger checkpoint --key notary.key", "vault ledger checkpoint --key notary.key -o kept.checkpoint"
    ),
)
@click.option("--key", "key_file", metavar="FILE", required=True, help="Private key that signs; 'vault key new' makes one.")
@_output
@session_options
def checkpoint(session: Session, key_file: str, output: str) -> int:
    """Take all records that are new into the ledger, and sign it.

    Entries of all journals, of datasets and of runs, become leaves of a Merkle tree. From then on it is provable if one is
    edited, removed or cut off. Keep a checkpoint outside of the store now and then, with -o. Any number of machines may do
    this at once.
    """
    from vault.ops.ledger import Ledger
    from vault.signing.ed25519 import load_private_key

    key, vault, out = load_private_key(key_file), session.open(), session.out
    _refuse_existing(output)
    vault.open_audit()  # takes along what mounts of this machine have seen
    made = Ledger(vault.repository).extend(key)
    signed = made.checkpoint
    if signed is not None and output:
        _write(output, signed.data)
    for error in made.left_out:
        out.answer("problem", {"where": error.what, "reason": error.reason}, one_line(str(error)))
    record = {
        "checkpoint": signed.number if signed else 0,
        "new_entries": made.entries,
        "entries": signed.checkpoint.size if signed else 0,
        "journals": made.journals,
        "problems": len(made.left_out),
        "root": signed.checkpoint.root.hex() if signed else None,
        "fingerprint": key.public.fingerprint,
    }
    text = (
        f"checkpoint {signed.number}: {count_text(signed.checkpoint.size, 'entry')}"
        if signed
        else "nothing is on record yet"
    )
    out.summary(record, f"{text}, {made.entries:,} of them new" if signed else text)
    return FINDINGS if made.left_out else OK


@click.command(name="ledger show", epilog=examples("vault ledger show", "vault ledger show -o kept.checkpoint"))
@_output
@session_options
def show(session: Session, output: str) -> None:
    """List the checkpoints, the newest first; with -o, write the newest one to a file."""
    from vault.ops.ledger import Ledger

    ledger, out = Ledger(session.open().repository), session.out
    _refuse_existing(output)
    count, newest = 0, None
    for signed, time in ledger.checkpoints():
        newest, count = newest or signed, count + 1
        tree = signed.checkpoint
        record = {
            "checkpoint": signed.number,
            "entries": tree.size,
            "root": tree.root.hex(),
            "time": time,
            "key_ids": [line.key_id.hex() for line in signed.note.signatures],
        }
        text = f"{signed.number}  {time_text(time)}  {count_text(tree.size, 'entry')}  root {tree.root.hex()[:16]}"
        out.answer("checkpoint", record, text)
    if newest is None:
        out.note("there is no checkpoint yet: 'vault ledger checkpoint --key FILE' makes one")
    elif output:
        _write(output, newest.data)
    out.summary({"checkpoints": count, "origin": ledger.files.origin, "note": newest.data.decode() if newest else None})


@click.command(
    name="ledger prove",
    epilog=examples(
        "vault ledger prove imagenet@v2 -o imagenet.proof.json",
        "vault ledger prove RUN --since kept.checkpoint -o run.proof.json",
    ),
)
@click.argument("target", shell_complete=complete_ref)
@_since
@_output
@session_options
def prove(session: Session, target: str, since: str, output: str) -> None:
    """Prove that TARGET is on record: a run, a dataset, or a version of one.

    The proof is JSON, small, and can be checked without the store: 'vault ledger check'. With --since it also proves that
    the ledger still begins with an earlier checkpoint.
    """
    import msgspec

    from vault.format.ledger import encode_proof
    from vault.ops.ledger import Ledger

    vault, out = session.open(), session.out
    _refuse_existing(output)
    ledger = Ledger(vault.repository)
    kept = ledger.files.parse(0, _read(since), since) if since else None
    proof = ledger.prove(_wanted(vault, target), since=kept)
    if output:
        _write(output, encode_proof(proof))
    elif not session.as_json:
        out.raw(encode_proof(proof))
    text = f"{output}: {count_text(len(proof.entries), 'entry')} of {target} proven; 'vault ledger check' checks it"
    record = {"target": target, "entries": len(proof.entries), "proof": msgspec.to_builtins(proof)}
    out.summary(record, text if output else None)


@click.command(
    name="ledger check",
    epilog=examples("vault ledger check run.proof.json", "vault ledger check run.proof.json --key notary.key.pub"),
)
@click.argument("proof_file", metavar="FILE")
@_key
@_since
@session_options
def check(session: Session, proof_file: str, key_file: str, since: str) -> int:
    """Check a proof that 'vault ledger prove' wrote. Needs no store.

    Without --key the signature is compared with the key that the proof names itself, which anybody can have made.
    """
    from vault.format.ledger import PROOF_SIZE_MAX, decode_proof
    from vault.format.note import parse_checkpoint, parse_note, parse_verifier_key
    from vault.ops.ledger import check_proof
    from vault.signing.ed25519 import PublicKey, load_public_key

    proof = decode_proof(_read(proof_file, PROOF_SIZE_MAX + 1))
    key = load_public_key(key_file) if key_file else None
    kept = parse_checkpoint(parse_note(_read(since)).text) if since else None
    out, problems = session.out, list(check_proof(proof, key=key, since=kept))
    for reason in problems:
        out.answer("problem", {"where": proof_file, "reason": reason}, one_line(f"{proof_file}: {reason}"))
    for entry in () if problems else proof.entries:
        record = {"journal": entry.journal, "n": entry.n, "digest": entry.digest, "index": entry.index}
        out.answer("entry", record, f"{entry.journal}, entry {entry.n}: on record as {entry.digest[:16]}")
    if not problems and key is None:
        key = PublicKey(parse_verifier_key(proof.key)[1])
        out.note(f"signed by the key {key.fingerprint}, which the proof itself names: --key FILE compares with yours")
    out.summary({"problems": len(problems), "entries": len(proof.entries), "fingerprint": key.fingerprint if key else None})
    return FINDINGS if problems else OK


@click.command(
    name="audit verify",
    epilog=examples("vault audit verify", "vault audit verify --key notary.key.pub --since kept.checkpoint"),
)
@_key
@_since
@session_options
def verify(session: Session, key_file: str, since: str) -> int:
    """Check all records against the ledger, and name what was edited, removed or cut off.

    Reads the store and nothing else. Whoever can write to the store could have written it anew as a whole, ledger and
    all: that shows against a checkpoint (--since) or a key (--key) that was kept elsewhere.
    """
    from vault.ops.audit_verify import LedgerVerification
    from vault.signing.ed25519 import load_public_key

    key = load_public_key(key_file) if key_file else None
    vault, out = session.open(), session.out
    verification = LedgerVerification(vault.repository, key=key, since=_read(since) if since else None)
    for problem in verification:
        record: dict[str, object] = {"where": problem.where, "reason": problem.reason, "checkpoint": problem.checkpoint}
        covered = f" (checkpoint {problem.checkpoint})" if problem.checkpoint is not None else ""
        out.answer("problem", record, one_line(f"{problem.where}: {problem.reason}{covered}"))
    result = verification.result
    out.summary(
        {
            "problems": result.problems,
            "checkpoints": result.checkpoints,
            "entries": result.entries,
            "uncovered": result.uncovered,
            "journals": result.journals,
            "signed_by": result.signed_by,
            "since": result.since,
        },
        f"{count_text(result.problems, 'problem')}: {count_text(result.checkpoints, 'checkpoint')} over "
        f"{count_text(result.entries, 'entry')} of {count_text(result.journals, 'journal')}, "
        f"{result.uncovered:,} not covered yet",
    )
    if not result.checkpoints:
        out.note("there is no checkpoint yet: 'vault ledger checkpoint --key FILE' makes one")
    elif key is None:
        out.note("the keys are those that the store names: --key FILE compares with one from elsewhere")
    if result.checkpoints and not since:
        out.note("a store that was written anew as a whole shows only against a checkpoint kept elsewhere: --since FILE")
    return FINDINGS if result.problems else OK


def _wanted(vault: "Vault", target: str) -> list[tuple[str, int | None]]:
    """Return the journals, or the one entry, that a target names."""
    from vault.format.journal import DATASET_KINDS, VersionEntry
    from vault.format.layout import DATASETS, RUNS
    from vault.ids import parse_ref
    from vault.repo.journals import Journal
    from vault.repo.ledger import all_journals

    store = vault.repository.store
    journals = all_journals(store)
    if DATASETS + target in journals:
        return [(DATASETS + target, None)]
    if "@" in target:
        ref = parse_ref(target)
        if ref.path:
            raise UsageError(f"a proof is of a version as a whole: leave the path of {target} away")
        version = vault.version(target)
        for number, entry in Journal(store, DATASETS + ref.name, DATASET_KINDS).entries():
            if isinstance(entry, VersionEntry) and entry.version == version.number:
                return [(DATASETS + ref.name, number)]
    try:
        run = vault.run(target).run
    except RefNotFound as error:
        raise RefNotFound(target, "run or dataset", error.near) from None
    return [(prefix, None) for prefix in journals if prefix.startswith(f"{RUNS}{run}/")]


def _read(path: str, length: int = 1 << 20) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(length)
    except OSError as error:
        raise SourceUnreadable(path, error.strerror or str(error)) from error


def _refuse_existing(path: str) -> None:
    """Refuse before the work is done what `_write` would refuse after it."""
    import os

    if path and os.path.lexists(path):
        raise TargetUnwritable(path, "there is something already")


def _write(path: str, data: bytes) -> None:
    try:
        with open(path, "xb") as file:
            file.write(data)
    except OSError as error:
        raise TargetUnwritable(path, error.strerror or str(error)) from error
