"""Makes a bundle of one run: a zip that is itself a store, with no other run and no earlier version in it.

Two steps, so that a user sees what is going to be given away before it is: `plan_bundle` looks, `write_bundle` writes.
Format: docs/format/bundle.md. The file appears all at once, whole and durable. The same run gives the same bytes.
"""

import os
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Final

from blake3 import blake3

from vault.errors import RefError, RefNotFound, TargetUnwritable, UsageError
from vault.format.bundle import (
    CRATE_KEY,
    ENVELOPE_KEY,
    PREDICATE_TYPE,
    PROOF_KEY,
    VERSION,
    JournalHead,
    Manifest,
    Pin,
    encode_manifest,
)
from vault.format.config import Config, encode_config
from vault.format.dsse import Subject, encode_envelope, encode_statement, to_be_signed
from vault.format.journal import BundledEntry, decode_entry, encode_entry, entry_digest, entry_key
from vault.format.layout import BUNDLE_KEY, CONFIG_KEY, DATASETS, PARTIAL_KEY
from vault.format.ledger import encode_proof
from vault.format.records import RUN_KINDS, run_journal
from vault.format.tree import sum_totals
from vault.ids import Digest, RunId, parse_digest, parse_ref
from vault.ops.bundle_content import ContentWriter, Wanted, wanted_files
from vault.ops.bundle_record import Record, Redactor, strings_of
from vault.ops.crate import encode_crate
from vault.ops.ledger import Ledger
from vault.ops.secret_scan import FINDINGS_MAX, SecretFound, scan_text, scan_tree
from vault.progress import SILENT, Progress
from vault.repo.content import read_content
from vault.repo.datasets import Version
from vault.repo.index import open_index
from vault.repo.objects import ObjectReader
from vault.repo.repository import Repository
from vault.repo.run_model import Run, add_entry
from vault.repo.runs import Runs
from vault.repo.trees import TreeReader
from vault.signing.ed25519 import PrivateKey
from vault.stores.zip_writer import ZipWriter

OUTPUTS: Final = ("last", "all", "none")
_NO_PROOF: Final = "no proof of a ledger goes in: it would tell the names of hosts (--with-host takes it along)"
_TRIES: Final = 3
_SOFTWARE: Final = "1"  # of bundles; the program's own version would make equal bundles differ


@dataclass(frozen=True, slots=True)
class BundlePlan:
    """What a bundle is going to hold."""

    repository: Repository
    run: Run  # as it is on record
    shown: Run  # as the bundle has it
    pins: tuple[Pin, ...]
    wanted: tuple[Wanted, ...]
    versions: tuple[tuple[str, Version], ...]  # dataset, version: under the numbers that they have
    journals: tuple[JournalHead, ...]
    record: Record
    record_entries: int
    is_partial: bool
    is_redacted: bool
    secrets: tuple[SecretFound, ...]
    notes: tuple[str, ...]
    proof: bytes  # that a ledger has the record; b"" if none does, or if it would tell names

    @property
    def files(self) -> int:
        """How many files it will hold."""
        return sum(pin.files_held for pin in self.pins)

    @property
    def size_bytes(self) -> int:
        """How many plain bytes they have."""
        return sum(pin.bytes_held for pin in self.pins)


@dataclass(frozen=True, slots=True)
class Bundled:
    """A bundle that was written."""

    path: str
    run: RunId
    size_bytes: int  # of the zip
    entries: int
    signer: str  # fingerprint, or ""


def plan_bundle(
    repository: Repository,
    run: RunId,
    *,
    only_opened: bool = False,
    with_host: bool = False,
    outputs: str = "last",
    progress: Progress = SILENT,
) -> BundlePlan:
    """Find out what a bundle of a run has to hold, and look for secrets in it. Writes nothing.

    Args:
        repository: where the run is on record.
        run: its whole ID.
        only_opened: of data that it read, only the files that it opened. Directories stay whole.
        with_host: leave hosts, users and places in the record.
        outputs: which of the versions that it made: the `last` of each dataset, `all` or `none`.
        progress: told what was looked at.

    Raises:
        RefNotFound: there is no such run.
        ObjectMissing, IntegrityError: what it used is not in the store any more, or damaged.
    """
    if outputs not in OUTPUTS:
        raise UsageError(f"outputs are {', '.join(OUTPUTS)}, not {outputs!r}")
    for _ in range(_TRIES):
        plan = _plan(repository, run, only_opened, with_host, outputs, progress)
        if plan.shown.last_seen == plan.run.last_seen:  # else the run goes on, and its record says more than was looked at
            return plan
    raise UsageError(f"run {run} goes on, and its record grows: bundle it once it has ended")


def _plan(
    repository: Repository, run: RunId, only_opened: bool, with_host: bool, outputs: str, progress: Progress
) -> BundlePlan:
    known, counts = Runs(repository.store).load(run)
    objects = repository.object_reader()
    found = _Finder(objects, progress)
    for name, version in _inputs(repository, known):
        opened = tuple(count for (snapshot, _), count in counts.items() if snapshot == version.snapshot)
        found.add("input", f"{name}@v{version.number}", Wanted(version.snapshot, opened if only_opened else None))
        found.versions[name, version.number] = version
    for name, version in _outputs(repository, known, outputs):
        found.add("output", f"{name}@v{version.number}", Wanted(version.snapshot, None))
        found.versions[name, version.number] = version
    datasets = {name for name, _ in found.versions}
    redactor = None if with_host else Redactor(known, datasets)
    for role, snapshot, name in _captured(known):
        found.add(role, name if redactor is None else redactor.text(name), Wanted(snapshot, None))
    look = _Look(Record(repository.store, run, redactor), run)
    proof, why_not = _proof(repository, run, look.journals) if redactor is None else (b"", _NO_PROOF)
    plan = BundlePlan(
        repository=repository,
        run=known,
        shown=look.shown,
        pins=tuple(found.pins),
        wanted=tuple(found.wanted),
        versions=tuple((name, version) for (name, _), version in sorted(found.versions.items())),
        journals=look.journals,
        record=look.record,
        record_entries=look.entries,
        is_partial=only_opened,
        is_redacted=redactor is not None,
        secrets=(*look.secrets, *_secrets(objects, found.pins))[:FINDINGS_MAX],
        notes=(*_notes(known, found.pins, redactor, objects), *((why_not,) if why_not else ())),
        proof=proof,
    )
    objects.close()
    return plan


def write_bundle(plan: BundlePlan, path: str, *, key: PrivateKey | None = None, progress: Progress = SILENT) -> Bundled:
    """Write a planned bundle, durably and all at once.

    Args:
        plan: what goes in.
        path: where; there must be nothing.
        key: signs its statement.
        progress: told what was copied so far.

    Raises:
        TargetUnwritable: there is something at the path, or it cannot be written; nothing stays.
        StoreFull: no space is left; nothing stays.
    """
    path = os.path.abspath(path)
    if os.path.lexists(path):
        raise TargetUnwritable(path, "it exists already: remove it, or choose another name")
    repository = plan.repository
    objects = repository.object_reader()
    with tempfile.TemporaryDirectory(prefix="vault-bundle-") as scratch, ZipWriter(path) as zip_file:
        index = open_index(os.path.join(scratch, "index"), zip_file)
        try:
            copier = ContentWriter(objects, zip_file, index, progress, plan.files, plan.size_bytes)
            copier.copy(list(plan.wanted))
        finally:
            index.close()
            objects.close()
        for file in plan.record.files():
            zip_file.put(file.key, file.data)
        for key_name, data in _dataset_entries(plan):
            zip_file.put(key_name, data)
        if plan.is_partial:
            zip_file.put(PARTIAL_KEY, b"This bundle holds only those files of its inputs that the run opened.\n")
        signer = "" if key is None else key.public.text
        if plan.proof:
            zip_file.put(PROOF_KEY, plan.proof)
        manifest = _manifest(plan, signer)
        zip_file.put(BUNDLE_KEY, encode_manifest(manifest))
        published = plan.shown.last_seen or plan.shown.started
        zip_file.put(CRATE_KEY, encode_crate(plan.shown, plan.pins, published=published, software=_SOFTWARE))
        zip_file.put(CONFIG_KEY, _config(zip_file, repository.config, published))
        zip_file.put(ENVELOPE_KEY, _envelope(zip_file, manifest, key))
        size_bytes = zip_file.finish()
        entries = len(zip_file.written)
    return Bundled(path, plan.run.run, size_bytes, entries, "" if key is None else key.public.fingerprint)


class _Look:
    """What one pass over the record finds: the run as readers of the bundle see it, its journals, and secrets."""

    def __init__(self, record: Record, run: RunId) -> None:
        self.record = record
        self.shown = Run(run=run)
        self.entries = 0
        self.secrets: list[SecretFound] = []
        heads: dict[str, JournalHead] = {}
        for file in record.files():
            self.entries += 1
            heads[file.head.writer] = file.head
            self.shown = add_entry(self.shown, file.head.writer, decode_entry(file.data, RUN_KINDS))
            self.secrets.extend(scan_text(f"record {file.key}", strings_of(file.data)))
        self.journals = tuple(heads.values())


class _Finder:
    """Gathers snapshots, and how much of each is wanted."""

    def __init__(self, objects: ObjectReader, progress: Progress) -> None:
        self._objects = objects
        self._trees = TreeReader(objects)
        self._progress = progress
        self.pins: list[Pin] = []
        self.wanted: list[Wanted] = []
        self.versions: dict[tuple[str, int], Version] = {}

    def add(self, role: str, name: str, wanted: Wanted) -> None:
        totals = [sum_totals(list(leaf.entries())) for leaf in self._trees.leaves(self._trees.load(wanted.snapshot))]
        files, size_bytes = sum(each.files for each in totals), sum(each.size for each in totals)
        held_files, held_bytes = files, size_bytes
        if wanted.opened is not None:
            held_files = held_bytes = 0
            for entry in wanted_files(self._objects, wanted):
                held_files += 1
                held_bytes += entry.size
                self._progress.update(phase="looking", files=held_files, size_bytes=held_bytes)
        pin = Pin(
            role=role,
            name=name,
            snapshot=wanted.snapshot.hex(),
            files=files,
            bytes=size_bytes,
            files_held=held_files,
            bytes_held=held_bytes,
        )
        if pin not in self.pins:
            self.pins.append(pin)
            self.wanted.append(wanted)


def _inputs(repository: Repository, run: Run) -> Iterator[tuple[str, Version]]:
    for used in sorted(run.inputs, key=lambda known: (known.ref, known.snapshot)):
        ref = parse_ref(used.ref)
        version = repository.datasets.load(ref.name).version(ref.version or 0)
        if version is None or version.snapshot != used.snapshot:
            raise RefNotFound(used.ref, "version")
        yield ref.name, version


def _outputs(repository: Repository, run: Run, which: str) -> Iterator[tuple[str, Version]]:
    if which == "none":
        return
    made: dict[tuple[str, int], Version] = {}
    for output in run.outputs:
        try:
            version = repository.datasets.load(output.dataset).version(output.version)
        except RefError:
            continue
        if version is not None and version.snapshot == parse_digest(output.snapshot):
            made[output.dataset, output.version] = version
    last = {name: max(number for other, number in made if other == name) for name, _ in made}
    for (name, number), version in sorted(made.items()):
        if which == "all" or number == last[name]:
            yield name, version


def _captured(run: Run) -> Iterator[tuple[str, Digest, str]]:
    """Yield (role, snapshot, name) of code and environments, each snapshot once."""
    seen = set()
    for attempt in run.history:
        if attempt.capture is None:
            continue
        trees = [("code", tree.snapshot, tree.root) for tree in attempt.capture.code]
        if attempt.capture.environment is not None:
            trees.append(("environment", attempt.capture.environment.snapshot, attempt.capture.environment.interpreter))
        for role, snapshot, name in trees:
            if snapshot not in seen:
                seen.add(snapshot)
                yield role, parse_digest(snapshot), name[:1024]


def _proof(repository: Repository, run: RunId, journals: Iterable[JournalHead]) -> tuple[bytes, str]:
    """Return what proves that the record is in the store's ledger, or why there is none."""
    try:
        proof = Ledger(repository).prove((run_journal(run, head.writer), None) for head in journals)
    except RefNotFound:
        return b"", "the record is in no checkpoint of a ledger: no proof goes in ('vault ledger checkpoint' makes one)"
    return encode_proof(proof), ""


def _secrets(objects: ObjectReader, pins: Iterable[Pin]) -> Iterator[SecretFound]:
    for pin in pins:
        if pin.role in ("code", "environment"):
            yield from islice(scan_tree(objects, pin.role, parse_digest(pin.snapshot)), FINDINGS_MAX)


def _notes(run: Run, pins: Iterable[Pin], redactor: Redactor | None, objects: ObjectReader) -> Iterator[str]:
    """Yield what whoever publishes it should know."""
    roles = {pin.role for pin in pins}
    if "code" not in roles:
        yield "no code is on record for this run: none goes in"
    if "environment" not in roles:
        yield "no environment is on record for this run: none goes in"
    if not run.is_over:
        yield "the run has not ended, as far as is known: the bundle holds what there is by now"
    if redactor is None:
        yield "hosts, users and places stay in the record (--with-host)"
        return
    named = [name for name in redactor.names if name in run.run]
    if named:
        yield f"the run's ID, which stays, names {', '.join(named)}"
    for pin in pins:
        if pin.role in ("code", "environment"):
            count = sum(_mentions(objects, pin, redactor))
            if count:
                yield f"{count} files of {pin.role} {pin.name} name a user or host of the run: contents are never changed"


def _mentions(objects: ObjectReader, pin: Pin, redactor: Redactor) -> Iterator[bool]:
    names = [name.encode() for name in redactor.names if len(name) > 2]
    for entry in wanted_files(objects, Wanted(parse_digest(pin.snapshot), None)):
        data = b"".join(map(bytes, read_content(objects, entry))) if entry.size <= 4 << 20 else b""
        yield any(name in data for name in names)


def _dataset_entries(plan: BundlePlan) -> Iterator[tuple[str, bytes]]:
    """Yield key and bytes of journal entries that give versions the numbers that they have."""
    journals: dict[str, list[Version]] = {}
    for name, version in plan.versions:
        journals.setdefault(name, []).append(version)
    for name, versions in journals.items():
        prev = None
        for number, version in enumerate(versions, 1):
            entry = BundledEntry(
                n=number,
                prev=prev,
                writer="bundle",
                time=version.time,
                version=version.number,
                snapshot=version.snapshot.hex(),
                files=version.files,
                bytes=version.size_bytes,
                run=version.run if version.run == plan.run.run else None,
            )
            data = encode_entry(entry)
            prev = entry_digest(data)
            yield entry_key(DATASETS + name, number), data


def _manifest(plan: BundlePlan, signer: str) -> Manifest:
    return Manifest(
        bundle=VERSION,
        run=plan.run.run,
        contents="opened" if plan.is_partial else "all",
        redacted=plan.is_redacted,
        pins=plan.pins,
        journals=plan.journals,
        signer=signer,
    )


def _config(zip_file: ZipWriter, origin: Config, created: str) -> bytes:
    """Return vault.json: the store's ID is made from all that is in it, so other contents never meet its caches."""
    hasher = blake3()
    for written in sorted(zip_file.written):
        hasher.update(f"{written.key} {written.blake3}\n".encode())
    return encode_config(Config(store=hasher.hexdigest()[:32], created=created, chunking=origin.chunking))


def _envelope(zip_file: ZipWriter, manifest: Manifest, key: PrivateKey | None) -> bytes:
    subjects = [
        Subject(name=written.key, digest={"sha256": written.sha256, "blake3": written.blake3})
        for written in sorted(zip_file.written)
    ]
    predicate = {"run": manifest.run, "contents": manifest.contents, "redacted": manifest.redacted}
    payload = encode_statement(subjects, PREDICATE_TYPE, predicate)
    signatures = {} if key is None else {key.public.fingerprint: key.sign(to_be_signed(payload))}
    return encode_envelope(payload, signatures)
