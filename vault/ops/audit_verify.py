"""`vault audit verify`: replay the ledger and every journal entry that it covers, offline; name what was changed.

What a checkpoint covers can be edited, taken out or cut off by whoever may write to the store, and all of that shows here.
A ledger that was rewritten as a whole shows only against what was kept elsewhere: a public key, or an earlier checkpoint.
Memory: the last entry of each journal, and what is missing of it. Threads: one verification in each.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

from vault.errors import Damaged, IntegrityError, KeyNotFound, UnsupportedVersion
from vault.format.journal import ENTRY_SIZE_MAX, entry_digest
from vault.format.ledger import LEDGER, Leaf, batch_key, checkpoint_key
from vault.format.tlog import TreeBuilder
from vault.ops.ledger import signature_by
from vault.repo.journals import START, Journal, Position
from vault.repo.ledger import LedgerFiles, SignedCheckpoint, all_journals
from vault.repo.repository import Repository
from vault.signing.ed25519 import PublicKey

RANGES_MAX: Final = 64  # of missing entries that are told of one journal


@dataclass(frozen=True, slots=True)
class LedgerProblem:
    """One finding."""

    where: str  # a store key, or the prefix of a journal
    reason: str
    checkpoint: int | None = None  # the first one that covers it


@dataclass(slots=True)
class Replay:
    """What was looked at."""

    checkpoints: int = 0
    entries: int = 0  # that checkpoints cover
    uncovered: int = 0  # entries that no checkpoint covers yet
    journals: int = 0
    problems: int = 0
    signed_by: list[str] = field(default_factory=list)  # fingerprints of the keys whose signatures hold
    since: int | None = None  # leaves of the kept checkpoint, once the ledger is known to begin with it


class LedgerVerification:
    """A verification under way: iterate to carry it out."""

    def __init__(
        self,
        repository: Repository,
        *,
        key: PublicKey | None = None,
        since: bytes | None = None,
        told: Callable[[int], None] = lambda _: None,
    ) -> None:
        """Name what is to be verified.

        Args:
            repository: whose ledger.
            key: the notary's public key, from a source other than the store; None takes those that the store names.
            since: a checkpoint that was kept elsewhere, with which the ledger has to begin.
            told: called with how many entries were looked at so far.

        Raises:
            Damaged: `since` is no checkpoint of this store.
        """
        self.result = Replay()
        self._store = repository.store
        self._files = LedgerFiles(repository.store, repository.config.store)
        self._keys = [key] if key is not None else [PublicKey(raw) for raw in self._files.public_keys()]
        self._key_is_given = key is not None
        self._since = None if since is None else self._files.parse(0, since, "the checkpoint that was kept")
        self._since_met = False
        self._told = told
        self._heads: dict[str, Position] = {}
        self._missing: dict[str, list[list[int]]] = {}  # by journal: [first, last, checkpoint] of entries that are gone

    def __iter__(self) -> Iterator[LedgerProblem]:
        """Carry it out; yield what is wrong."""
        for problem in self._problems():
            self.result.problems += 1
            yield problem

    def _problems(self) -> Iterator[LedgerProblem]:
        if self._since is not None:
            yield from self._check_signatures(self._since, "the checkpoint that was kept")
        tree = TreeBuilder()
        yield from self._replay(tree)
        if self._since is not None and self._since.checkpoint.size > tree.size:
            reason = f"it has {tree.size:,} of the {self._since.checkpoint.size:,} entries of the checkpoint that was kept"
            yield LedgerProblem(LEDGER, f"{reason}: its end was cut off")
        yield from self._removed()
        yield from self._check_journals()

    def _replay(self, tree: TreeBuilder) -> Iterator[LedgerProblem]:
        signed, batches = self._files.last_checkpoint(), self._files.last_batch()
        yield from self._check_since(tree)
        for number in range(1, max(signed, batches - 1) + 1):  # the last batch may still wait for its checkpoint
            try:
                batch = self._files.batch(number, tree.size)
            except (IntegrityError, UnsupportedVersion) as error:
                yield _problem(batch_key(number), error, number)
                return  # what comes after it hangs in the air
            for leaf in batch.leaves:
                yield from self._check_tiles(tree.append(leaf.encode()), number)
                yield from self._check_leaf(leaf, number)
                yield from self._check_since(tree)
            yield from self._check_tiles(tree.partial_tiles(), number)
            yield from self._check_checkpoint(number, tree)
            self.result.checkpoints = number
            self._told(self.result.entries)

    def _check_leaf(self, leaf: Leaf, number: int) -> Iterator[LedgerProblem]:
        self.result.entries += 1
        head = self._heads.get(leaf.journal, START)
        if leaf.n != head.number + 1:
            yield LedgerProblem(batch_key(number), f"its leaf of {leaf.key} follows entry {head.number}", number)
        self._heads[leaf.journal] = Position(leaf.n, leaf.digest)
        try:
            found = entry_digest(self._store.get(leaf.key, length=ENTRY_SIZE_MAX + 1))
        except KeyNotFound:
            ranges = self._missing.setdefault(leaf.journal, [])
            if ranges and ranges[-1][1] == leaf.n - 1:
                ranges[-1][1] = leaf.n
            elif len(ranges) < RANGES_MAX:
                ranges.append([leaf.n, leaf.n, number])
            return
        if found != leaf.digest:
            reason = f"it was changed: the ledger has {leaf.digest[:12]}, its bytes hash to {found[:12]}"
            yield LedgerProblem(leaf.key, reason, number)

    def _check_tiles(self, tiles: Iterator[tuple[str, bytes]], number: int) -> Iterator[LedgerProblem]:
        for name, expected in tiles:
            key = f"{LEDGER}{name}"
            try:
                if self._store.get(key, length=len(expected) + 1) != expected:
                    yield LedgerProblem(key, "this tile does not say what the batches say", number)
            except KeyNotFound:
                yield LedgerProblem(key, "this tile is missing", number)

    def _check_checkpoint(self, number: int, tree: TreeBuilder) -> Iterator[LedgerProblem]:
        key = checkpoint_key(number)
        try:
            signed = self._files.checkpoint(number)
        except Damaged as error:
            yield _problem(key, error, number)
            return
        if (signed.checkpoint.size, signed.checkpoint.root) != (tree.size, tree.root()):
            yield LedgerProblem(key, "it is not the tree of its batches: leaves or the checkpoint were replaced", number)
        yield from self._check_signatures(signed, key)

    def _check_signatures(self, signed: SignedCheckpoint, where: str) -> Iterator[LedgerProblem]:
        good = False
        for key in self._keys:
            holds = signature_by(signed.note, signed.checkpoint.origin, key)
            if holds is False:
                yield LedgerProblem(where, f"its signature by the key {key.fingerprint} is forged", signed.number or None)
            if holds:
                good = True
                if key.fingerprint not in self.result.signed_by:
                    self.result.signed_by.append(key.fingerprint)
        if not good:
            which = f"the key {self._keys[0].fingerprint}" if self._key_is_given else "any key that the store names"
            yield LedgerProblem(where, f"it is not signed by {which}", signed.number or None)

    def _check_since(self, tree: TreeBuilder) -> Iterator[LedgerProblem]:
        if self._since is None or tree.size != self._since.checkpoint.size or self._since_met:
            return
        self._since_met = True
        if tree.root() == self._since.checkpoint.root:
            self.result.since = tree.size
        else:
            yield LedgerProblem(LEDGER, "it does not begin with the checkpoint that was kept: it was rewritten")

    def _removed(self) -> Iterator[LedgerProblem]:
        for journal, ranges in self._missing.items():
            for first, last, number in ranges:
                which = f"entry {first} was" if first == last else f"entries {first} to {last} were"
                cut = " off its end" if last == self._heads[journal].number else ""
                yield LedgerProblem(journal, f"{which} taken{cut or ' out of it'}", number)

    def _check_journals(self) -> Iterator[LedgerProblem]:
        """Follow what no checkpoint covers yet: its chain hangs on what they cover."""
        last = all_journals(self._store)
        self.result.journals = len(last.keys() | self._heads.keys())
        for journal, end in last.items():
            head = self._heads.get(journal, START)
            if end <= head.number:
                continue
            reached = head.number
            try:
                for position, _ in Journal(self._store, journal, {}).follow(head):
                    reached = position.number
                    self.result.uncovered += 1
            except (Damaged, UnsupportedVersion) as error:
                yield _problem(f"{journal}/{reached + 1:010d}.json", error, None)
                continue
            if reached < end and journal not in self._missing:
                yield LedgerProblem(f"{journal}/{reached + 1:010d}.json", "it is missing, though later entries exist")


def _problem(where: str, error: Exception, checkpoint: int | None) -> LedgerProblem:
    if isinstance(error, Damaged):
        return LedgerProblem(error.what, error.reason, checkpoint)
    return LedgerProblem(where, str(error), checkpoint)
