"""The ledger: what is new goes in once, whoever else is at work; proofs hold; every change to what it covers is named."""

import msgspec
import pytest

from vault.errors import Damaged, FormatError, RefNotFound, StoreUnavailable
from vault.format.journal import DATASET_KINDS, VersionEntry, encode_entry
from vault.format.ledger import (
    Batch,
    Leaf,
    batch_key,
    checkpoint_key,
    decode_batch,
    decode_leaf,
    decode_proof,
    encode_batch,
    encode_proof,
)
from vault.ops import ledger as ledger_module
from vault.ops.audit_verify import LedgerProblem, LedgerVerification
from vault.ops.ledger import Ledger, check_proof
from vault.repo.journals import Journal
from vault.repo.repository import Repository
from vault.signing.ed25519 import PrivateKey, new_key
from vault.stores.memory import MemoryStore
from vault.testing.faults import FaultyStore, fails_before, interrupts
from vault.testing.places import make_repository

KEY = PrivateKey(bytes(range(32)))
TIME = "2026-01-02T03:04:05.000000Z"


def append(repository: Repository, journal: str, count: int = 1) -> None:
    """Add versions to a journal."""
    into = Journal(repository.store, journal, DATASET_KINDS)
    for _ in range(count):
        into.append(
            lambda n, prev: encode_entry(
                VersionEntry(
                    n=n, prev=prev, writer="w", time=TIME, version=n, snapshot="4f" * 32, author="ada", files=1, bytes=1
                )
            )
        )


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def repository(store, tmp_path) -> Repository:
    made = make_repository(store, str(tmp_path / "cache"))
    append(made, "datasets/digits", 3)
    append(made, "datasets/vision/coco", 2)
    append(made, "runs/job-1/node7-1", 2)
    return made


def problems(repository: Repository, **options) -> list[LedgerProblem]:
    return list(LedgerVerification(repository, **options))


def change(store: MemoryStore, key: str, data: bytes | None) -> None:
    """Do what only somebody with the right to write to the folder can."""
    store.delete(key)
    if data is not None:
        store.put(key, data)


def test_what_is_new_goes_in_once(repository, store) -> None:
    ledger = Ledger(repository)
    assert ledger.latest() is None
    made = ledger.extend(KEY)
    assert (made.before, made.entries, made.journals, made.left_out) == (0, 7, 3, [])
    assert made.checkpoint is not None and made.checkpoint.checkpoint.size == 7
    keys = list(store.list(""))
    again = ledger.extend(KEY)
    assert (again.before, again.entries) == (7, 0) and again.checkpoint == made.checkpoint
    assert list(store.list("")) == keys, "nothing was written"
    append(repository, "datasets/digits")
    append(repository, "datasets/new", 300)
    assert ledger.extend(KEY).entries == 301
    assert [signed.checkpoint.size for signed, _ in ledger.checkpoints()] == [308, 7]
    verification = LedgerVerification(repository, key=KEY.public)
    assert list(verification) == []
    result = verification.result
    assert (result.checkpoints, result.entries, result.uncovered, result.journals) == (2, 308, 0, 4)
    assert result.signed_by == [KEY.public.fingerprint]


def test_an_empty_store_has_an_empty_ledger(tmp_path) -> None:
    repository = make_repository(MemoryStore(), str(tmp_path))
    made = Ledger(repository).extend(KEY)
    assert made.checkpoint is None and made.entries == 0
    assert problems(repository) == []


def test_many_entries_go_into_several_batches(repository, monkeypatch) -> None:
    monkeypatch.setattr(ledger_module, "BATCH_LEAVES_MAX", 4)
    told: list[int] = []
    assert Ledger(repository).extend(KEY, told.append).entries == 7
    assert told == [4, 7] and Ledger(repository).files.last_checkpoint() == 2
    assert problems(repository) == []


def test_a_checkpoint_is_a_signed_note(repository, store) -> None:
    Ledger(repository).extend(KEY)
    text = store.get(checkpoint_key(1)).decode()
    assert text.startswith("vaultfs/00000000000000000000000000000000\n7\n")
    assert "\n\n— vaultfs/00000000000000000000000000000000 " in text
    [key] = list(store.list("ledger/keys/"))
    assert store.get(key).startswith(b"vaultfs/00000000000000000000000000000000+")


# Several notaries.


def test_a_notary_that_was_second_takes_what_is_left(repository, store) -> None:
    other = Ledger(Repository.open(store, repository.cache_root))

    def be_first() -> None:
        append(repository, "datasets/late")
        other.extend(new_key())

    faulty = FaultyStore(store, [interrupts("put", 1, be_first, key_contains="ledger/batches")])
    made = Ledger(Repository.open(faulty, repository.cache_root)).extend(KEY)
    assert faulty.unused == []
    assert (made.before, made.entries) == (8, 0)
    assert problems(repository) == []


@pytest.mark.parametrize("number", range(1, 7))
def test_what_a_notary_left_behind_is_finished(repository, store, number) -> None:
    """It dies before each of its writes in turn; the next one goes on, with another key."""
    append(repository, "datasets/more", 300)
    faulty = FaultyStore(store, [fails_before("put", number, key_contains="ledger/")])
    with pytest.raises(StoreUnavailable):
        Ledger(Repository.open(faulty, repository.cache_root)).extend(new_key())
    made = Ledger(repository).extend(KEY)
    assert made.checkpoint is not None and made.checkpoint.checkpoint.size == 307
    assert problems(repository) == []


def test_nobody_signs_a_batch_of_others_that_is_not_true(repository, store) -> None:
    leaf = Leaf("datasets/digits", 1, "00" * 32)
    store.put(batch_key(1), encode_batch(Batch(1, 0, TIME, (leaf,))))
    with pytest.raises(Damaged, match="nobody has signed"):
        Ledger(repository).extend(KEY)


def test_a_journal_that_is_damaged_is_left_out_and_named(repository, store) -> None:
    change(store, "datasets/digits/0000000002.json", None)
    made = Ledger(repository).extend(KEY)
    assert made.entries == 5, "the entry before the damage is vouched for"
    assert [error.what for error in made.left_out] == ["datasets/digits/0000000002.json"]


# What verification names.


@pytest.mark.parametrize(
    ("key", "edit", "where", "reason"),
    [
        (
            "datasets/digits/0000000002.json",
            lambda data: data.replace(b"ada", b"eve"),
            "datasets/digits/0000000002.json",
            "changed",
        ),
        ("datasets/digits/0000000002.json", None, "datasets/digits", "entry 2 was taken out of it"),
        ("datasets/digits/0000000003.json", None, "datasets/digits", "entry 3 was taken off its end"),
        ("runs/job-1/node7-1/0000000002.json", None, "runs/job-1/node7-1", "entry 2 was taken off its end"),
        ("ledger/batches/0000000001", None, "ledger/batches/0000000001", "missing"),
        (
            "ledger/batches/0000000001",
            lambda data: data.replace(b"digits 3 ", b"digits 4 "),
            "ledger/checkpoints/0000000001",
            "replaced",
        ),
        ("ledger/batches/0000000001", lambda data: data[:-1], "ledger/batches/0000000001", "names no entry"),
        ("ledger/batches/0000000001", lambda _: b"", "ledger/batches/0000000001", "first line"),
        ("ledger/checkpoints/0000000001", None, "ledger/checkpoints/0000000001", "missing"),
        (
            "ledger/checkpoints/0000000001",
            lambda data: data.replace(b"\n7\n", b"\n6\n"),
            "ledger/checkpoints/0000000001",
            "forged",
        ),
        ("ledger/checkpoints/0000000001", lambda data: data[:40], "ledger/checkpoints/0000000001", "no signatures"),
        ("ledger/tile/0/000.p/7", None, "ledger/tile/0/000.p/7", "missing"),
        ("ledger/tile/0/000.p/7", lambda data: bytes(len(data)), "ledger/tile/0/000.p/7", "does not say"),
        ("ledger/tile/entries/000.p/7", lambda data: data + b"x", "ledger/tile/entries/000.p/7", "does not say"),
    ],
)
def test_every_change_is_named(repository, store, key, edit, where, reason) -> None:
    Ledger(repository).extend(KEY)
    append(repository, "datasets/later")
    Ledger(repository).extend(KEY)
    change(store, key, None if edit is None else edit(store.get(key)))
    found = problems(repository, key=KEY.public)
    assert any(problem.where == where and reason in problem.reason for problem in found), found


def test_a_journal_that_is_gone_is_named(repository, store) -> None:
    Ledger(repository).extend(KEY)
    for key in list(store.list("runs/job-1/")):
        store.delete(key)
    [problem] = problems(repository)
    assert (problem.where, problem.reason) == ("runs/job-1/node7-1", "entries 1 to 2 were taken off its end")
    assert [error.what for error in Ledger(repository).extend(KEY).left_out] == ["runs/job-1/node7-1"]


def test_a_journal_that_was_written_anew_is_named(repository, store) -> None:
    """Every link of the new chain holds: only the ledger knows better."""
    Ledger(repository).extend(KEY)
    for key in list(store.list("datasets/digits/")):
        store.delete(key)
    append(repository, "datasets/other", 1)
    data = store.get("datasets/other/0000000001.json").replace(b"ada", b"eve")
    store.put("datasets/digits/0000000001.json", data)
    append(repository, "datasets/digits", 3)
    found = problems(repository)
    assert [problem.where for problem in found if "changed" in problem.reason] == [
        f"datasets/digits/{number:010d}.json" for number in (1, 2, 3)
    ]
    assert any(problem.where == "datasets/digits/0000000004.json" for problem in found)


def test_entries_behind_the_last_checkpoint_are_counted_and_their_chain_is_followed(repository, store) -> None:
    Ledger(repository).extend(KEY)
    append(repository, "datasets/digits", 2)
    verification = LedgerVerification(repository)
    assert list(verification) == [] and verification.result.uncovered == 2
    key = "datasets/digits/0000000004.json"
    change(store, key, store.get(key).replace(b"ada", b"eve"))
    assert [problem.where for problem in problems(repository)] == ["datasets/digits/0000000005.json"]


# What was kept elsewhere.


def test_a_ledger_that_was_cut_off_is_known_by_a_kept_checkpoint(repository, store) -> None:
    ledger = Ledger(repository)
    ledger.extend(KEY)
    append(repository, "datasets/digits")
    kept = ledger.extend(KEY).checkpoint
    assert kept is not None
    verification = LedgerVerification(repository, since=kept.data)
    assert list(verification) == [] and verification.result.since == 8
    for key in (batch_key(2), checkpoint_key(2), "datasets/digits/0000000004.json"):
        store.delete(key)
    assert problems(repository) == [], "from within nothing is to be seen"
    [problem] = problems(repository, since=kept.data)
    assert "end was cut off" in problem.reason


def test_a_ledger_that_was_written_anew_is_known_by_key_and_by_a_kept_checkpoint(repository, store) -> None:
    kept = Ledger(repository).extend(KEY).checkpoint
    assert kept is not None
    for key in [*store.list("ledger/"), *store.list("runs/")]:
        store.delete(key)
    append(repository, "datasets/digits", 9)
    Ledger(repository).extend(new_key())
    assert problems(repository) == []
    assert any("not signed by the key" in problem.reason for problem in problems(repository, key=KEY.public))
    assert any("rewritten" in problem.reason for problem in problems(repository, since=kept.data))


def test_a_checkpoint_of_another_store_is_refused(repository) -> None:
    made = Ledger(repository).extend(KEY).checkpoint
    assert made is not None
    with pytest.raises(Damaged, match="not of vaultfs/"):
        LedgerVerification(repository, since=made.data.replace(b"vaultfs/0", b"vaultfs/1"))


# Proofs.


def test_proofs_hold_without_the_store(repository) -> None:
    ledger = Ledger(repository)
    kept = ledger.extend(KEY).checkpoint
    assert kept is not None
    append(repository, "datasets/digits", 600)
    ledger.extend(KEY)
    proof = ledger.prove([("datasets/digits", None), ("runs/job-1/node7-1", 1)], since=kept)
    again = decode_proof(encode_proof(proof))
    assert again == proof
    assert [(entry.journal, entry.n) for entry in proof.entries] == [("runs/job-1/node7-1", 1), ("datasets/digits", 603)]
    assert list(check_proof(again)) == []
    assert list(check_proof(again, key=KEY.public, since=kept.checkpoint, store_id="0" * 32)) == []
    assert list(check_proof(again, key=new_key().public)) != []
    assert list(check_proof(again, store_id="1" * 32)) == [f"it is a proof of vaultfs/{'0' * 32}, another store"]


def test_several_entries_of_one_journal_are_proven(repository) -> None:
    ledger = Ledger(repository)
    ledger.extend(KEY)
    journal = "datasets/digits"
    proof = ledger.prove([(journal, 1), (journal, 3), (journal, None), (journal, 1)])
    assert [(entry.journal, entry.n) for entry in proof.entries] == [(journal, 1), (journal, 3)]


def test_a_tile_that_is_in_the_way_is_named_and_nothing_is_signed(repository, store, monkeypatch) -> None:
    monkeypatch.setattr(ledger_module, "BATCH_LEAVES_MAX", 4)
    store.put("ledger/tile/0/000.p/4", b"something else")
    with pytest.raises(Damaged, match=r"tile/0/000\.p/4"):
        Ledger(repository).extend(KEY)
    assert list(store.list("ledger/checkpoints/")) == []


def test_a_proof_that_was_changed_proves_nothing(repository) -> None:
    ledger = Ledger(repository)
    kept = ledger.extend(KEY).checkpoint
    append(repository, "datasets/digits", 5)
    ledger.extend(KEY)
    proof = ledger.prove([("datasets/digits", 2)], since=kept)
    [entry] = proof.entries
    replace = msgspec.structs.replace
    assert proof.consistency is not None
    for changed in (
        replace(entry, n=3),
        replace(entry, journal="datasets/vision/coco"),
        replace(entry, digest="00" * 32),
        replace(entry, index=entry.index + 1),
        replace(entry, index=1 << 40),
        replace(entry, proof=entry.proof[1:]),
        replace(entry, proof=(*entry.proof, entry.digest)),
    ):
        assert len(list(check_proof(replace(proof, entries=(changed,))))) == 1
    for bad in (
        replace(proof, checkpoint=proof.checkpoint.replace("\n12\n", "\n13\n")),
        replace(proof, checkpoint="nothing"),
        replace(proof, key="nothing"),
        replace(proof, key=""),
        replace(proof, consistency=replace(proof.consistency, root="00" * 32)),
        replace(proof, consistency=replace(proof.consistency, size=6)),
    ):
        assert list(check_proof(bad)) != []
    assert kept is not None and list(check_proof(replace(proof, consistency=None), since=kept.checkpoint)) != []


def test_what_the_ledger_does_not_have_cannot_be_proven(repository) -> None:
    ledger = Ledger(repository)
    with pytest.raises(RefNotFound, match="datasets/digits"):
        ledger.prove([("datasets/digits", None)])
    ledger.extend(KEY)
    with pytest.raises(RefNotFound, match="datasets/digits"):
        ledger.prove([("datasets/digits", 4)])


def test_tiles_that_were_changed_prove_nothing(repository, store) -> None:
    Ledger(repository).extend(KEY)
    key = "ledger/tile/0/000.p/7"
    good = store.get(key)
    for data in (None, bytes(len(good)), good[:-1]):
        change(store, key, data)
        with pytest.raises(Damaged, match="ledger/"):
            Ledger(repository).prove([("datasets/digits", None)])


@pytest.mark.parametrize(
    "data",
    [b"", b"[]", b"{}", b'{"v": 2}', b'{"v": 1}', b"x" * (17 << 20), b"[" * 10_000],
)
def test_what_is_no_proof_is_refused(data) -> None:
    with pytest.raises(FormatError):
        decode_proof(data)


@pytest.mark.parametrize(
    "data",
    [
        b"datasets/a 1 " + b"0" * 63 + b"\n",
        b"datasets/a 0 " + b"0" * 64 + b"\n",
        b"datasets/a 99999999999 " + b"0" * 64 + b"\n",
        b"elsewhere/a 1 " + b"0" * 64 + b"\n",
        b"datasets/a/../../b 1 " + b"0" * 64 + b"\n",
        b"datasets/a 1 " + b"0" * 64,
        b"datasets/\xff 1 " + b"0" * 64 + b"\n",
    ],
)
def test_what_is_no_leaf_is_refused(data) -> None:
    with pytest.raises(FormatError):
        decode_leaf(data)
    with pytest.raises(FormatError):
        decode_batch(f"vaultfs-ledger-batch/1 1 0 {TIME}\n".encode() + data)


def test_a_newer_batch_is_refused() -> None:
    with pytest.raises(FormatError, match="upgrade"):
        decode_batch(f"vaultfs-ledger-batch/2 1 0 {TIME}\n".encode())
