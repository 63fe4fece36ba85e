"""The ledger: fold what is new in all journals into a signed checkpoint, and prove that entries are in it.

Notaries need no lock. A batch, created once, decides which leaves come next; tiles and checkpoint follow from the batches,
so whoever comes next finishes what a notary left behind (docs/format/ledger.md, section 5). Time and memory of a
checkpoint: all leaves are read once, in batches; kept is the last entry of each journal. Threads: one Ledger in each.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

from vault.clock import format_time, now_ns
from vault.errors import Damaged, IntegrityError, KeyExists, KeyNotFound, RefNotFound, StoreUnavailable, UnsupportedVersion
from vault.format.journal import ENTRY_SIZE_MAX, entry_digest
from vault.format.ledger import (
    BATCH_LEAVES_MAX,
    LEDGER,
    Batch,
    Consistency,
    Leaf,
    LedgerProof,
    ProvenEntry,
    checkpoint_key,
    origin_of,
    unhex,
)
from vault.format.note import (
    Checkpoint,
    Note,
    NoteSignature,
    format_checkpoint,
    format_note,
    format_verifier_key,
    key_id,
    parse_checkpoint,
    parse_note,
    parse_verifier_key,
)
from vault.format.tlog import (
    TreeBuilder,
    consistency_proof,
    inclusion_proof,
    leaf_hash,
    range_hash,
    verify_consistency,
    verify_inclusion,
)
from vault.repo.journals import START, Journal, Position
from vault.repo.ledger import LedgerFiles, SignedCheckpoint, all_journals
from vault.repo.repository import Repository
from vault.signing.ed25519 import PrivateKey, PublicKey

LEDGER_ENTRY: Final = "entry in the ledger for"
ATTEMPTS_MAX: Final = 100  # each one lost means that another notary's batch went in

Told = Callable[[int], None]  # called with how many entries were taken in so far


@dataclass(slots=True)
class Extension:
    """What one call added."""

    before: int = 0  # leaves that the ledger had
    entries: int = 0  # leaves of the checkpoints that this call has created: no two calls count the same
    journals: int = 0  # that were looked at
    checkpoint: SignedCheckpoint | None = None  # the last one now; None while there is none
    left_out: list[Damaged] = field(default_factory=list)  # journals that no notary can vouch for


@dataclass(slots=True)
class _Replayed:
    """The ledger as its batches tell it."""

    tree: TreeBuilder
    heads: dict[str, Position]
    batches: int = 0
    checkpoint: SignedCheckpoint | None = None


class Ledger:
    """The ledger of a repository."""

    def __init__(self, repository: Repository) -> None:
        """Reads nothing yet."""
        self._store = repository.store
        self.files = LedgerFiles(repository.store, repository.config.store)

    def checkpoints(self) -> Iterator[tuple[SignedCheckpoint, str]]:
        """Yield every checkpoint, the newest first, with the time that its maker claims. Raises Damaged."""
        for number in range(self.files.last_checkpoint(), 0, -1):
            yield self.files.checkpoint(number), self.files.batch(number).time

    def latest(self) -> SignedCheckpoint | None:
        """Return the newest checkpoint; None if there is none. Its signatures are not verified."""
        number = self.files.last_checkpoint()
        return self.files.checkpoint(number) if number else None

    def extend(self, key: PrivateKey, told: Told = lambda _: None) -> Extension:
        """Fold all new entries in, and sign the tree. Without any new one, nothing is written.

        Args:
            key: of the notary.
            told: how far it has come.

        Raises:
            Damaged: the ledger itself is, so there is nothing to build on.
            StoreUnavailable: other notaries were always first. A retry may help.
        """
        key.sign(b"")  # where signatures cannot be made, nothing is to be written
        result = Extension()
        for _ in range(ATTEMPTS_MAX):
            state = self._replay(key, result)
            try:
                self._fold(state, key, result, told)
            except KeyExists:
                continue
            result.checkpoint = state.checkpoint
            return result
        raise StoreUnavailable(LEDGER, f"{ATTEMPTS_MAX} attempts to add a batch met those of other notaries")

    def prove(self, wanted: Iterable[tuple[str, int | None]], *, since: SignedCheckpoint | None = None) -> LedgerProof:
        """Return what proves to others that entries are in the ledger.

        Args:
            wanted: journals by their prefixes, each with an entry's number, or None for the last one that the ledger has:
                the chain of a journal makes one stand for all before it.
            since: an earlier checkpoint, to prove that the ledger still begins with it.

        Raises:
            RefNotFound: the ledger has no such entry yet.
            Damaged: the ledger is.
        """
        signed = self.latest()
        found: dict[tuple[str, int | None], tuple[int, Leaf]] = dict.fromkeys(wanted, (-1, Leaf("", 0, "")))
        for index, leaf in self._leaves(signed.number if signed else 0):
            for asked in ((leaf.journal, leaf.n), (leaf.journal, None)):
                if asked in found:
                    found[asked] = (index, leaf)
        missing = [journal for (journal, _), (index, _) in found.items() if index < 0]
        if signed is None or missing:
            raise RefNotFound(", ".join(missing), LEDGER_ENTRY)
        tree = signed.checkpoint
        read = self.files.subtrees(tree.size)
        if range_hash(0, tree.size, read) != tree.root:
            raise Damaged(LEDGER, "its tiles do not add up to its checkpoint: run 'vault audit verify'")
        proof = LedgerProof(
            checkpoint=signed.data.decode(),
            key=next((format_verifier_key(tree.origin, raw) for raw in self._signers(signed)), ""),
            entries=tuple(
                ProvenEntry(
                    journal=leaf.journal,
                    n=leaf.n,
                    digest=leaf.digest,
                    index=index,
                    proof=tuple(h.hex() for h in inclusion_proof(index, tree.size, read)),
                )
                for index, leaf in sorted(set(found.values()), key=lambda pair: pair[0])
            ),
            consistency=None if since is None else self._consistency(since.checkpoint, tree, signed.number),
        )
        problems = list(check_proof(proof))
        if problems:
            raise Damaged(LEDGER, f"what its tiles prove does not hold: {problems[0]}; run 'vault audit verify'")
        return proof

    def _consistency(self, old: Checkpoint, new: Checkpoint, number: int) -> Consistency:
        if old.size > new.size:
            raise Damaged(
                checkpoint_key(number), f"it has {new.size:,} leaves, the kept one {old.size:,}: the end was cut off"
            )
        proof = consistency_proof(old.size, new.size, self.files.subtrees(new.size))
        if not verify_consistency(old.size, old.root, new.size, new.root, proof):
            raise Damaged(checkpoint_key(number), "it does not begin with the kept checkpoint: the ledger was rewritten")
        return Consistency(size=old.size, root=old.root.hex(), proof=tuple(h.hex() for h in proof))

    def _signers(self, signed: SignedCheckpoint) -> Iterator[bytes]:
        for raw in self.files.public_keys():
            if signature_by(signed.note, signed.checkpoint.origin, PublicKey(raw)) is True:
                yield raw

    def _leaves(self, batches: int) -> Iterator[tuple[int, Leaf]]:
        index = 0
        for number in range(1, batches + 1):
            for leaf in self.files.batch(number, index).leaves:
                yield index, leaf
                index += 1

    def _replay(self, key: PrivateKey, result: Extension) -> _Replayed:
        """Read the ledger up to now; finish the last batch if its notary did not come to sign it."""
        state = _Replayed(TreeBuilder(), {})
        # Batches first: whoever makes one has seen the checkpoint of the one before, so that is there now.
        batches, signed = self.files.last_batch(), self.files.last_checkpoint()
        if signed > batches:  # others went on meanwhile
            batches = min(self.files.last_batch(), signed)
        if signed > batches:
            raise Damaged(f"{LEDGER}batches", f"checkpoint {signed} exists, but the batches end with {batches}")
        if batches > signed + 1:
            raise Damaged(checkpoint_key(signed + 1), "it is missing, though later batches exist")
        for number in range(1, signed + 1):
            for leaf in self.files.batch(number, state.tree.size).leaves:
                _take(state, leaf)
                for _ in state.tree.append(leaf.encode()):
                    pass  # written long ago
            state.batches = number
            state.checkpoint = self.files.checkpoint(number)
            found = state.checkpoint.checkpoint
            if (found.size, found.root) != (state.tree.size, state.tree.root()):
                raise Damaged(checkpoint_key(number), "it is not the tree of its batches: run 'vault audit verify'")
        result.before = state.tree.size
        if batches > signed:
            pending = self.files.batch(batches, state.tree.size)
            for leaf in pending.leaves:
                self._check_leaf(leaf)
                _take(state, leaf)
            result.entries += self._sign(state, pending, key)
        return state

    def _fold(self, state: _Replayed, key: PrivateKey, result: Extension, told: Told) -> None:
        """Add batches until nothing is new. Raises KeyExists if another notary was first."""
        result.left_out = []
        pending: list[Leaf] = []
        for leaf in self._news(state, result):
            pending.append(leaf)
            if len(pending) == BATCH_LEAVES_MAX:
                self._add(state, pending, key, result, told)
        if pending:
            self._add(state, pending, key, result, told)

    def _news(self, state: _Replayed, result: Extension) -> Iterator[Leaf]:
        """Yield the new entries of all journals. Those that are damaged are noted, and left out from there on."""
        last = all_journals(self._store)
        result.journals = len(last)
        for journal in sorted(state.heads.keys() - last.keys()):
            result.left_out.append(Damaged(journal, "all its entries are gone, which the ledger has"))
        for journal, end in last.items():
            try:
                yield from self._new_leaves(journal, state.heads.get(journal, START), end)
            except (IntegrityError, UnsupportedVersion) as error:
                result.left_out.append(error if isinstance(error, Damaged) else Damaged(journal, str(error)))

    def _new_leaves(self, journal: str, head: Position, end: int) -> Iterator[Leaf]:
        """Yield the entries of a journal behind its head, their chain verified."""
        if end < head.number:
            raise Damaged(journal, f"it ends with entry {end}, the ledger has entry {head.number}: its end was cut off")
        reached = head.number
        for position, _ in Journal(self._store, journal, {}).follow(head):
            reached = position.number
            assert position.digest is not None
            yield Leaf(journal, reached, position.digest)
        if reached < end:
            raise Damaged(f"{journal}/{reached + 1:010d}.json", "it is missing, though later entries exist")

    def _add(self, state: _Replayed, pending: list[Leaf], key: PrivateKey, result: Extension, told: Told) -> None:
        batch = Batch(state.batches + 1, state.tree.size, format_time(now_ns()), tuple(pending))
        self.files.put_batch(batch)
        for leaf in batch.leaves:
            _take(state, leaf)
        result.entries += self._sign(state, batch, key)
        pending.clear()
        told(result.entries)

    def _sign(self, state: _Replayed, batch: Batch, key: PrivateKey) -> int:
        """Write the tiles of a batch, then its checkpoint: who sees a checkpoint finds all that it stands on.

        Returns how many leaves are signed by that: none if another notary was first.
        """
        for leaf in batch.leaves:
            for name, tile in state.tree.append(leaf.encode()):
                self.files.put_same(f"{LEDGER}{name}", tile)
        for name, tile in state.tree.partial_tiles():
            self.files.put_same(f"{LEDGER}{name}", tile)
        self.files.put_key(key.public.raw)
        tree = Checkpoint(self.files.origin, state.tree.size, state.tree.root())
        text = format_checkpoint(tree)
        signature = NoteSignature(tree.origin, key_id(tree.origin, key.public.raw), key.sign(text.encode()))
        data = format_note(Note(text, (signature,)))
        signed = len(batch.leaves)
        try:
            self._store.put(checkpoint_key(batch.number), data)
        except KeyExists:  # another notary has finished this batch: its signature is as good
            if self.files.checkpoint(batch.number).checkpoint != tree:
                raise Damaged(checkpoint_key(batch.number), "it is not the tree of its batches") from None
            signed = 0
        state.batches = batch.number
        state.checkpoint = self.files.checkpoint(batch.number)
        return signed

    def _check_leaf(self, leaf: Leaf) -> None:
        """Refuse to sign what somebody else put into a batch, unless it is so."""
        try:
            found = entry_digest(self._store.get(leaf.key, length=ENTRY_SIZE_MAX + 1))
        except KeyNotFound:
            found = ""
        if found != leaf.digest:
            reason = "it is not what the last batch of the ledger says, which nobody has signed"
            raise Damaged(leaf.key, f"{reason}: restore it, or remove that batch once no notary is at work")


def signature_by(note: Note, name: str, key: PublicKey) -> bool | None:
    """Tell whether a note's signature by this key is good; None if it has none by it."""
    wanted = key_id(name, key.raw)
    found = [line.signature for line in note.signatures if (line.name, line.key_id) == (name, wanted)]
    return all(key.verify(signature, note.signed) for signature in found) if found else None


def check_proof(
    proof: LedgerProof, *, key: PublicKey | None = None, since: Checkpoint | None = None, store_id: str = ""
) -> Iterator[str]:
    """Yield what is wrong with a proof: nothing, if the log that its checkpoint names has its entries.

    Args:
        proof: as it came.
        key: the notary's; None takes the one that the proof names, which then is only as good as where it came from.
        since: a checkpoint kept from earlier, with which the log has to begin.
        store_id: the store that is to be the log's; empty if that does not matter.
    """
    try:
        note = parse_note(proof.checkpoint.encode())
        tree = parse_checkpoint(note.text)
        if key is None:
            name, raw = parse_verifier_key(proof.key)
            if name != tree.origin:
                yield f"its key is one of {name}, its checkpoint one of {tree.origin}"
            key = PublicKey(raw)
    except ValueError as error:
        yield str(error)
        return
    if signature_by(note, tree.origin, key) is not True:
        yield f"its checkpoint is not signed by the key {key.fingerprint}"
    if store_id and tree.origin != origin_of(store_id):
        yield f"it is a proof of {tree.origin}, another store"
    for entry in proof.entries:
        leaf = leaf_hash(entry.leaf.encode())
        if not verify_inclusion(leaf, entry.index, tree.size, unhex(entry.proof), tree.root):
            yield f"entry {entry.n} of {entry.journal} is not proven to be in the log"
    old = proof.consistency
    if old is not None and not verify_consistency(
        old.size, bytes.fromhex(old.root), tree.size, tree.root, unhex(old.proof)
    ):
        yield f"its log is not proven to begin with the one of {old.size:,} leaves"
    if since is not None:
        claimed = None if old is None else (old.size, old.root)
        if since.origin != tree.origin or (claimed != (since.size, since.root.hex()) and since != tree):
            yield "it does not prove that its log begins with the checkpoint that was kept"


def _take(state: _Replayed, leaf: Leaf) -> None:
    """Note a journal's new head. Raises Damaged if the leaf does not follow the one before."""
    if leaf.n != state.heads.get(leaf.journal, START).number + 1:
        raise Damaged(LEDGER, f"its leaves of {leaf.journal} skip to entry {leaf.n}: run 'vault audit verify'")
    state.heads[leaf.journal] = Position(leaf.n, leaf.digest)
