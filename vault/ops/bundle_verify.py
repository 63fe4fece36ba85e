"""Checks a bundle with nothing else at hand: no store, no network, no cache that was there before.

From the outside in: the zip's structure and checksums; that the statement names every entry, and its signature; that
everything in the store that it is hashes to its name; that the record is whole, and what it says was opened is there. The
first thing that is wrong ends it: a bundle is good, or is not.
"""

import hashlib
import os
import tempfile
from dataclasses import dataclass
from typing import Final

from blake3 import blake3

from vault.errors import BundleError, FormatError, KeyNotFound, UnsupportedVersion, VaultError
from vault.format.bundle import (
    CRATE_KEY,
    ENVELOPE_KEY,
    MANIFEST_SIZE_MAX,
    PREDICATE_TYPE,
    PROOF_KEY,
    Manifest,
    decode_manifest,
)
from vault.format.dsse import ENVELOPE_SIZE_MAX, decode_envelope, decode_statement, encode_envelope, to_be_signed
from vault.format.journal import ENTRY_SIZE_MAX, entry_digest
from vault.format.layout import BUNDLE_KEY, CONFIG_KEY, DATASETS, MAPS, PACKS, PARTIAL_KEY, RUNS, WHOLE
from vault.format.ledger import PROOF_SIZE_MAX, decode_proof
from vault.format.note import parse_checkpoint, parse_note
from vault.format.records import run_journal
from vault.ids import RunId, parse_digest, parse_ref
from vault.ops.bundle_content import Wanted, wanted_files
from vault.ops.ledger import check_proof
from vault.ops.verify import NamedTree, verify
from vault.progress import SILENT, Progress
from vault.repo.repository import Repository
from vault.repo.runs import Runs
from vault.signing.ed25519 import PublicKey, parse_public_key
from vault.stores.zipfile import ZipStore

_KEYS: Final = frozenset({CONFIG_KEY, BUNDLE_KEY, PARTIAL_KEY, CRATE_KEY, ENVELOPE_KEY, PROOF_KEY})
_FOLDERS: Final = (DATASETS, MAPS, PACKS, RUNS, WHOLE)


@dataclass(frozen=True, slots=True)
class BundleChecked:
    """What a good bundle is."""

    manifest: Manifest
    entries: int
    size_bytes: int
    files: int
    absent: int  # files that it leaves out on purpose
    signer: str  # fingerprint of the key; "" if nobody signed
    is_trusted: bool  # that key is the one that the caller gave
    proven_by: str  # the ledger that proves its record; "" if it has no proof


def verify_bundle(
    path: str,
    *,
    key: PublicKey | None = None,
    ledger_key: PublicKey | None = None,
    progress: Progress = SILENT,
) -> BundleChecked:
    """Check every byte of a bundle.

    Args:
        path: where it is.
        key: whose signature it must have; None takes whatever key it names, or none.
        ledger_key: of the ledger that must prove its record; None takes whatever proof it has, or none.
        progress: told what was read so far.

    Raises:
        BundleError: it is cut off, was changed, or is not signed by this key.
        SourceUnreadable: there is no such file.
        UnsupportedVersion: a newer vault made it.
    """
    store = ZipStore(path)
    try:
        return _check(store, path, key, ledger_key, progress)
    except (BundleError, UnsupportedVersion):
        raise
    except KeyNotFound as error:
        raise BundleError(path, f"it has no {error.key}") from error
    except FormatError as error:
        raise BundleError(path, str(error)) from error


def _check(
    store: ZipStore, path: str, key: PublicKey | None, ledger_key: PublicKey | None, progress: Progress
) -> BundleChecked:
    entries = store.entries()
    for entry in entries:
        if entry.key not in _KEYS and not entry.key.startswith(_FOLDERS):
            raise BundleError(path, f"{entry.key} has no place in a bundle")
    manifest = decode_manifest(store.get(BUNDLE_KEY, length=MANIFEST_SIZE_MAX + 1))
    signer = _check_signature(store, path, manifest, key)
    _check_digests(store, path, progress)
    with tempfile.TemporaryDirectory(prefix="vault-bundle-") as scratch:
        repository = Repository.open(store, os.path.join(scratch, "cache"))
        files, absent = _check_store(repository, path, manifest, progress)
        _check_record(repository, path, manifest)
        proven = _check_proof(store, path, manifest, ledger_key)
    size_bytes = sum(entry.size for entry in entries)
    return BundleChecked(manifest, len(entries), size_bytes, files, absent, signer, key is not None, proven)


def _check_signature(store: ZipStore, path: str, manifest: Manifest, key: PublicKey | None) -> str:
    """Return the fingerprint of the key that signed, after checking that it did."""
    data = store.get(ENVELOPE_KEY, length=ENVELOPE_SIZE_MAX + 1)
    payload, signatures = decode_envelope(data)
    if encode_envelope(payload, dict(signatures)) != data:
        raise BundleError(path, f"{ENVELOPE_KEY} is not in the one form that it has")
    if not signatures:
        if key is not None or manifest.signer:
            raise BundleError(path, "nobody has signed it")
        return ""
    if key is None:
        if not manifest.signer:
            raise BundleError(path, "it is signed, and does not say by which key")
        try:
            key = parse_public_key(manifest.signer)
        except VaultError as error:
            raise BundleError(path, f"the key that it names is none: {error}") from error
    elif manifest.signer and manifest.signer != key.text:
        raise BundleError(path, "it is signed with another key than this one")
    message = to_be_signed(payload)
    if not any(key.verify(signature, message) for _, signature in signatures):
        raise BundleError(path, f"its signature is not one of key {key.fingerprint}")
    return key.fingerprint


def _check_digests(store: ZipStore, path: str, progress: Progress) -> None:
    """Check that the statement names every entry but the one that it is in, with the digests that they have."""
    payload, _ = decode_envelope(store.get(ENVELOPE_KEY, length=ENVELOPE_SIZE_MAX + 1))
    statement = decode_statement(payload)
    if statement.predicate_type != PREDICATE_TYPE:
        raise BundleError(path, f"its statement is about something else: {statement.predicate_type}")
    named = {subject.name: subject.digest for subject in statement.subject}
    done = 0
    for number, entry in enumerate(store.entries(), 1):
        sha256, own = hashlib.sha256(), blake3(max_threads=blake3.AUTO)
        for data in store.check_bytes(entry.key):
            sha256.update(data)
            own.update(data)
            done += len(data)
            progress.update(phase="reading", files=number, size_bytes=done)
        if entry.key == ENVELOPE_KEY:
            continue
        digests = named.pop(entry.key, None)
        if digests is None:
            raise BundleError(path, f"its statement does not name {entry.key}")
        if digests != {"sha256": sha256.hexdigest(), "blake3": own.hexdigest()}:
            raise BundleError(path, f"{entry.key} was changed: its statement has other digests")
    if named:
        raise BundleError(path, f"its statement names {next(iter(named))}, which is not there")


def _check_store(repository: Repository, path: str, manifest: Manifest, progress: Progress) -> tuple[int, int]:
    """Check that all hashes to its name. Returns how many files there are, and how many were left out."""
    named = [
        NamedTree(f"{pin.role} {pin.name}", parse_digest(pin.snapshot), pin.files, pin.bytes)
        for pin in manifest.pins
        if pin.role in ("code", "environment")
    ]
    verification = verify(repository, data=True, trees=named, progress=progress)
    for problem in verification:
        raise BundleError(path, f"{problem.where}: {problem.reason}")
    result = verification.result
    if result.absent and manifest.contents != "opened":
        raise BundleError(path, f"{result.absent} files are missing")
    if result.runs != 1:
        raise BundleError(path, f"it holds the record of {result.runs} runs")
    return result.files - result.absent, result.absent


def _check_record(repository: Repository, path: str, manifest: Manifest) -> None:
    """Check that what the run used is pinned and there."""
    runs = Runs(repository.store)
    ends = {writer: number for (_, writer), number in runs.journals().items()}
    if ends != {head.writer: head.entries for head in manifest.journals}:
        raise BundleError(path, "its record has other journals than bundle.json says, or fewer entries")
    try:
        run, counts = runs.load(next(iter(runs.journals()))[0])
    except VaultError as error:
        raise BundleError(path, str(error)) from error
    if run.run != manifest.run:
        raise BundleError(path, f"it holds the record of {run.run}, and says {manifest.run}")
    pinned = {(pin.name, pin.snapshot) for pin in manifest.pins}
    frozen = {pin.snapshot for pin in manifest.pins if pin.role in ("code", "environment")}
    for attempt in run.history:
        if attempt.capture is not None:
            had = {tree.snapshot for tree in attempt.capture.code}
            if attempt.capture.environment is not None:
                had.add(attempt.capture.environment.snapshot)
            if had - frozen:
                raise BundleError(path, "code or an environment that the run had is not in it")
    objects = repository.object_reader()
    try:
        for used in run.inputs:
            version = repository.datasets.resolve(parse_ref(used.ref))
            if (used.ref, used.snapshot.hex()) not in pinned or version.snapshot != used.snapshot:
                raise BundleError(path, f"the run read {used.ref}, which is not in it under this name")
            opened = tuple(count for (snapshot, _), count in counts.items() if snapshot == used.snapshot)
            for entry in wanted_files(objects, Wanted(used.snapshot, opened)):
                if entry.size and objects.find(entry.digest) is None:
                    name = entry.name.decode(errors="backslashreplace")
                    raise BundleError(path, f"a file that the run opened is not in it: {name} of {used.ref}")
    except VaultError as error:
        if isinstance(error, BundleError):
            raise
        raise BundleError(path, str(error)) from error
    finally:
        objects.close()


def _check_proof(store: ZipStore, path: str, manifest: Manifest, key: PublicKey | None) -> str:
    """Check that a ledger proves the journals of the record. Returns which; "" if there is no proof."""
    try:
        data = store.get(PROOF_KEY, length=PROOF_SIZE_MAX + 1)
    except KeyNotFound:
        if key is not None:
            raise BundleError(path, "it has no proof of a ledger") from None
        return ""
    proof = decode_proof(data)
    for reason in check_proof(proof, key=key):
        raise BundleError(path, f"its proof of the ledger: {reason}")
    proven = set()
    for entry in proof.entries:
        try:
            there = entry_digest(store.get(entry.leaf.key, length=ENTRY_SIZE_MAX + 1))
        except KeyNotFound:
            there = ""
        if there != entry.digest:
            raise BundleError(path, f"its proof is of another record: {entry.leaf.key} is not what the ledger has")
        proven.add(entry.journal)
    for head in manifest.journals:
        if run_journal(RunId(manifest.run), head.writer) not in proven:
            raise BundleError(path, f"its proof of the ledger leaves out the journal {head.writer}")
    return parse_checkpoint(parse_note(proof.checkpoint.encode()).text).origin
