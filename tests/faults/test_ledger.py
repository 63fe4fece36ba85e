"""Notaries that die after each durable step, and several at once while records come in: one ledger, whole and true."""

from pathlib import Path

from vault.format.journal import DATASET_KINDS, VersionEntry, encode_entry
from vault.ops.audit_verify import LedgerVerification
from vault.ops.ledger import Ledger
from vault.repo.journals import Journal
from vault.repo.repository import Repository
from vault.signing.ed25519 import PrivateKey, new_key
from vault.stores.local import LocalStore
from vault.testing.crash import Step, each_crash
from vault.testing.places import Place
from vault.testing.together import together

KEY = PrivateKey(bytes(range(32)))
TIME = "2026-01-02T03:04:05.000000Z"
NOTARIES = 4
ROUNDS = 6


def append(store: LocalStore, journal: str, count: int) -> None:
    into = Journal(store, journal, DATASET_KINDS)
    for _ in range(count):
        into.append(
            lambda n, prev: encode_entry(
                VersionEntry(
                    n=n, prev=prev, writer="w", time=TIME, version=n, snapshot="4f" * 32, author="a", files=1, bytes=1
                )
            )
        )


def extend(place: str, on_step: Step) -> None:
    made = Place(place)
    Ledger(Repository.open(made.store(on_step), made.cache())).extend(KEY)


def work(root: str, number: int) -> int:
    """Add records and fold them in, over and over, as a machine of its own. Returns how many entries went in."""
    place = Place(root)
    repository = place.repository(f"cache{number}")
    taken = 0
    for _ in range(ROUNDS):
        append(place.store(), "datasets/shared", 3)
        append(place.store(), f"runs/job/{number}", 2)
        taken += Ledger(repository).extend(new_key()).entries
    return taken


def test_a_crash_after_each_step_of_a_checkpoint(fast_path: Path) -> None:
    def prepare(step: int) -> str:
        place = Place.make(fast_path / str(step))
        append(place.store(), "datasets/a", 5)
        extend(place.root, lambda what, key: None)
        append(place.store(), "datasets/b", 300)  # fills a tile and a bundle
        return place.root

    crashes = 0
    for crash in each_crash(extend, prepare):
        place = Place(crash.place)
        assert list(LedgerVerification(place.repository())) == [], "what is signed is whole"
        made = Ledger(place.repository()).extend(KEY)
        assert made.checkpoint is not None and made.checkpoint.checkpoint.size == 305
        verification = LedgerVerification(place.repository(), key=KEY.public)
        assert list(verification) == [] and verification.result.uncovered == 0
        crashes += 1
    assert (
        crashes >= 3 * 6
    )  # batch, full tile, full bundle, two partial tiles, partial bundle, checkpoint: three steps each


def test_several_notaries_at_once(fast_path: Path) -> None:
    place = Place.make(fast_path)
    taken = together(work, [(place.root, number) for number in range(NOTARIES)])
    last = Ledger(place.repository()).extend(KEY)
    assert sum(taken) + last.entries == NOTARIES * ROUNDS * 5, "each entry was signed first by one of them"
    verification = LedgerVerification(place.repository())
    assert list(verification) == []
    assert verification.result.entries == NOTARIES * ROUNDS * 5 and verification.result.uncovered == 0
