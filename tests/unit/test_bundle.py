"""A bundle of one run: what is in it and what is not, that it is a store, and that every change to it is refused."""

import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest
from blake3 import blake3

from vault.api import Vault
from vault.errors import (
    BundleError,
    IntegrityError,
    NotInBundle,
    ObjectMissing,
    RefNotFound,
    SourceUnreadable,
    TargetUnwritable,
)
from vault.format.bundle import ENVELOPE_KEY, PREDICATE_TYPE, PROOF_KEY, decode_manifest
from vault.format.dsse import Subject, decode_envelope, decode_statement, encode_envelope, encode_statement, to_be_signed
from vault.format.layout import BUNDLE_KEY, PARTIAL_KEY
from vault.format.records import Environment, Finish, Metric, Output, Start
from vault.ids import Digest, RunId, parse_ref
from vault.ops.bundle import BundlePlan, plan_bundle, write_bundle
from vault.ops.bundle_verify import BundleChecked, verify_bundle
from vault.ops.commit import commit
from vault.ops.freeze import freeze
from vault.ops.ledger import Ledger
from vault.ops.verify import verify
from vault.repo.repository import Repository
from vault.repo.run_writer import RunWriter
from vault.signing.ed25519 import PrivateKey
from vault.stores.registry import open_store
from vault.stores.zip_writer import ZipWriter
from vault.stores.zipfile import ZipStore
from vault.testing.places import SMALL_CHUNKS, Place
from vault.testing.runs import TIME, record_run
from vault.testing.trees import Tree, noise, read_tree, text, write_tree

RUN = RunId("run-1")
KEY, OTHER_KEY = PrivateKey(b"k" * 32), PrivateKey(b"o" * 32)
WHOLE = noise(5 << 20)
RECIPE = text(6 << 20)  # compresses: stored in chunks
DATA: Tree = {
    b"train": {b"%03d" % number: noise(3000, seed=number) for number in range(40)},
    b"large": WHOLE,
    b"log": RECIPE,
    b"empty": b"",
}
CODE: Tree = {b"train.py": b"import sys\n", b"lib": {b"net.py": b"width = 3\n"}}
HOME = "/home/ada/proj"


class Shop:
    """A store with a run worth publishing, and much that is nobody's business."""

    def __init__(self, root: Path) -> None:
        self.place = Place.make(root)
        self.root = root
        repository = self.place.repository()
        commit(
            repository, self.place.write({b"secret-history": b"removed later"}), "digits", author="ada", message="by ada"
        )
        commit(repository, self.place.write(DATA), "digits", author="ada", message="from node7")
        weights = commit(repository, self.place.write({b"model": b"weights" * 100}), "weights", author="ada", run=RUN)
        record_run(repository, RUN, {"digits@v2": [b"train/003", b"train/017", b"large"]})
        record_run(repository, "run-of-somebody-else", {"digits@v1": [b"secret-history"]})
        writer = RunWriter(repository.store, RUN, "node7-launch")
        start = Start(
            identity="vault run",
            uid=1000,
            user="ada",
            host="node7.lab.example",
            started=TIME,
            pid=1,
            command=("python", f"{HOME}/train.py", "--out", "/scratch/ada/out", "--name=ada-at-node7"),
            executable="/usr/bin/python3",
            cwd=HOME,
            mountpoint="/vault",
            boot="b00t",
            details={"queue": "lab-of-ada"},
            trackers={"wandb": "ada/x"},
        )
        writer.report(launch=start, params={"lr": "0.1", "home": HOME})
        code = self.freeze(CODE)
        environment = self.freeze({b"environment.json": b'{"interpreter":"CPython 3.11.2","packages":[]}\n'})
        writer.capture(
            code=[
                {"root": HOME, "snapshot": code.hex(), "files": 2, "bytes": 21, "script": "train.py", "remote": "git:ada"}
            ],
            environment=Environment(snapshot=environment.hex(), interpreter="CPython 3.11.2", prefix="/home/ada/venv"),
            platform={"cpu": "some", "container": "c0ffee"},
            gaps=(f"code: {HOME}/lib belongs to another user (eve-the-admin), so git was not asked",),
        )
        made = Output(
            dataset="weights", version=1, snapshot=weights.snapshot.hex(), time=TIME, path="/scratch/ada/out", step=3
        )
        writer.report(outputs=[made], metrics=[Metric(name="acc", value=0.5, time=TIME)])
        writer.report(finish=Finish(ended=TIME, exit_status=0, output_tail="done on node7 by ada in /home/ada/proj/x\n"))

    def freeze(self, tree: Tree) -> Digest:
        folder = self.root / "frozen"
        shutil.rmtree(folder, ignore_errors=True)
        write_tree(os.fsencode(folder), tree)
        return freeze(self.place.repository(), os.fsencode(folder)).snapshot

    def plan(self, **options: object) -> BundlePlan:
        return plan_bundle(self.place.repository(), RUN, **options)  # type: ignore[arg-type]

    def bundle(self, name: str = "b.vault", *, key: PrivateKey | None = None, **options: object) -> Path:
        path = self.root / name
        write_bundle(self.plan(**options), str(path), key=key)
        return path


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    return Shop(tmp_path_factory.mktemp("shop"))


@pytest.fixture(scope="module")
def signed(shop: Shop) -> Path:
    return shop.bundle("signed.vault", key=KEY)


@pytest.fixture(scope="module")
def opened(shop: Shop) -> Path:
    return shop.bundle("opened.vault", only_opened=True)


def open_bundle(path: Path, tmp_path: Path) -> Vault:
    return Vault(Repository.open(open_store(str(path)), str(tmp_path / "fresh-cache")))


def contents(path: Path) -> dict[str, bytes]:
    store = ZipStore(str(path))
    return {entry.key: store.get(entry.key) for entry in store.entries()}


# What is in it.


def test_it_is_a_store_with_the_same_snapshots(shop: Shop, signed: Path, tmp_path: Path) -> None:
    vault, origin = open_bundle(signed, tmp_path), shop.place.repository()
    assert vault.datasets() == ["digits", "weights"]
    version = vault.version("digits@v2")
    known = origin.datasets.resolve(parse_ref("digits@v2")).version
    assert known is not None
    assert (version.snapshot, version.time, version.files) == (known.snapshot, known.time, known.files)
    assert vault.version("digits@latest") == version
    with pytest.raises(RefNotFound):
        vault.version("digits@v1")
    vault.checkout("digits@v2", tmp_path / "out")
    assert read_tree(os.fsencode(tmp_path / "out")) == DATA
    assert list(verify(vault.repository, data=True)) == []
    assert vault.read("weights@v1/model") == b"weights" * 100


def test_its_record_is_the_run_and_no_other(shop: Shop, signed: Path, tmp_path: Path) -> None:
    vault = open_bundle(signed, tmp_path)
    assert [run.run for run in vault.runs()] == [RUN]
    run = vault.run(RUN)
    assert run.params["lr"] == "0.1" and run.metrics["acc"].last == 0.5 and run.exit_status == 0
    assert [(used.ref, used.opened) for used in run.inputs] == [("digits@v2", 3)]
    assert sorted(found.path for found in vault.opened_files(RUN)) == [b"large", b"train/003", b"train/017"]
    assert [read.opens for read in vault.audit("digits@v2/large")] == [1]
    assert vault.version("weights@v1").run == RUN


def test_names_are_replaced_consistently(shop: Shop, signed: Path, tmp_path: Path) -> None:
    run = open_bundle(signed, tmp_path).run(RUN)
    code = "/tmp/bundle/code-1"
    launch = next(attempt for attempt in run.history if attempt.is_launch)
    assert launch.capture is not None and launch.capture.code[0].root == code == launch.start.cwd
    assert launch.start.command == ("python", f"{code}/train.py", "--out", "/tmp/bundle/out-1", "--name=user-1-at-host-1")
    assert (launch.start.user, launch.start.uid, launch.start.mountpoint) == ("user-1", 65534, "/vault")
    assert launch.output_tail == f"done on host-1 by user-1 in {code}/x\n"
    assert run.params["home"] == code and run.outputs[0].path == "/tmp/bundle/out-1"
    assert {attempt.start.host for attempt in run.history} == {"host-1"}, "node7 and node7.lab.example"


def test_nothing_else_is_in_it(shop: Shop, signed: Path) -> None:
    data = signed.read_bytes()
    for word in (
        b"ada",
        b"node7",
        b"somebody-else",
        b"secret-history",
        b"removed later",
        b"lab-of",
        b"b00t",
        b"c0ffee",
        b"eve-",
    ):
        assert word not in data.replace(b"metadata", b""), word
    assert shop.place.repository().config.store.encode() not in data


def test_with_host_it_is_the_record_as_it_is(shop: Shop) -> None:
    path = shop.bundle("host.vault", with_host=True)
    store = shop.place.store()
    record = {key: data for key, data in contents(path).items() if key.startswith("runs/")}
    assert record == {key: store.get(key) for key in store.list(f"runs/{RUN}/")}
    checked = verify_bundle(str(path))
    assert not checked.manifest.redacted and checked.proven_by == ""


def test_the_same_run_makes_the_same_bytes(shop: Shop, signed: Path) -> None:
    assert shop.bundle("again.vault", key=KEY).read_bytes() == signed.read_bytes()


def test_chunks_in_whole_files_of_others_come_along(tmp_path: Path) -> None:
    """Where a file's chunks lie in another's whole file, or small files in large ones."""
    place = Place.make(tmp_path, chunking=SMALL_CHUNKS)
    large = noise(5 << 20)
    commit(place.repository(), place.write({b"a": large}), "first")
    tree: Tree = {b"b": large[: 4 << 20] + noise(1 << 20, seed=2) + large[:100]}
    commit(place.repository(), place.write(tree), "d")
    record_run(place.repository(), RUN, {"d@v1": [b"b"]})
    plan = plan_bundle(place.repository(), RUN)
    write_bundle(plan, str(tmp_path / "b.vault"))
    verify_bundle(str(tmp_path / "b.vault"))
    assert open_bundle(tmp_path / "b.vault", tmp_path).read("d@v1/b") == tree[b"b"]


# Only what was opened.


def test_only_opened_keeps_the_id_and_leaves_contents_out(shop: Shop, signed: Path, opened: Path, tmp_path: Path) -> None:
    vault = open_bundle(opened, tmp_path)
    assert vault.version("digits@v2").snapshot == open_bundle(signed, tmp_path).version("digits@v2").snapshot
    assert len(list(vault.ls("digits@v2", recursive=True))) == 44
    assert vault.read("digits@v2/large") == WHOLE
    assert vault.read("digits@v2/train/017") == noise(3000, seed=17)
    with pytest.raises(NotInBundle, match="only the files that its run opened"):
        vault.read("digits@v2/train/018")
    with pytest.raises(NotInBundle):
        vault.read("digits@v2/log")
    verification = verify(vault.repository, data=True)
    assert list(verification) == [] and verification.result.absent == 39  # the empty file is no content
    checked = verify_bundle(str(opened))
    assert (checked.manifest.contents, checked.absent) == ("opened", 39)
    assert opened.stat().st_size < signed.stat().st_size


def test_a_tenth_of_the_data_is_about_a_tenth_of_the_size(tmp_path: Path) -> None:
    place = Place.make(tmp_path)
    names = [b"%03d" % number for number in range(200)]
    commit(place.repository(), place.write({name: noise(20_000, seed=int(name)) for name in names}), "d")
    record_run(place.repository(), RUN, {"d@v1": names[::10]})
    for name, only in (("all", False), ("part", True)):
        write_bundle(plan_bundle(place.repository(), RUN, only_opened=only), str(tmp_path / f"{name}.vault"))
    whole, part = (os.path.getsize(tmp_path / f"{name}.vault") for name in ("all", "part"))
    assert 0.09 < part / whole < 0.13


def test_outputs_are_the_last_all_or_none(shop: Shop) -> None:
    assert [pin.name for pin in shop.plan(outputs="none").pins if pin.role == "output"] == []
    assert [pin.name for pin in shop.plan(outputs="all").pins if pin.role == "output"] == ["weights@v1"]


# What is refused when it is made.


def test_what_exists_stays(shop: Shop, signed: Path, tmp_path: Path) -> None:
    with pytest.raises(TargetUnwritable):
        write_bundle(shop.plan(), str(signed))
    with pytest.raises(TargetUnwritable):
        write_bundle(shop.plan(), str(tmp_path / "no" / "folder" / "b.vault"))
    with pytest.raises(RefNotFound):
        plan_bundle(shop.place.repository(), RunId("none"))


def test_lost_data_stops_it_and_leaves_nothing(tmp_path: Path) -> None:
    place = Place.make(tmp_path)
    commit(place.repository(), place.write({b"large": WHOLE}), "d")
    record_run(place.repository(), RUN, {"d@v1": [b"large"]})
    plan = plan_bundle(place.repository(), RUN)
    (whole,) = Path(place.store_path, "whole").glob("*/*[0-9a-f]")
    whole.chmod(0o600)
    whole.write_bytes(WHOLE[:-1] + bytes([WHOLE[-1] ^ 1]))
    (tmp_path / "out").mkdir()
    with pytest.raises((IntegrityError, ObjectMissing)):
        write_bundle(plan, str(tmp_path / "out" / "b.vault"))
    assert os.listdir(tmp_path / "out") == []


SECRETS = {
    b"config.py": b"\n\naws = 'AKIAIOSFODNN7EXAMPLE'\n",
    b"db.py": b"url = 'postgres://ada:hunter22@db/x'\n",
    b"key.pem": b"-----BEGIN RSA PRIVATE KEY-----\nabc\n",
    b"settings.py": b'API_PASSWORD = "correct-horse"\n',
    b".env": b"WANDB_API_KEY=0123456789abcdef\n",
    b"late.txt": b"x" * (3 << 20) + b"\nghp_0123456789abcdefghij\n",
}
HARMLESS = {
    b"a.py": b'token = "<pad>"\npassword = os.environ["PASSWORD"]\nkey = "{secret}"\nurl = "https://example.org/a:b"\n',
    b"b.py": b"secret = 'your-secret-here'\npassword='***'\nfor token in tokens: pass\nssh://git@github.com/x\n",
    b"c.bin": b"\0\1ghp_0123456789abcdefghij",
}


def test_secrets_in_code_and_record_are_found(tmp_path: Path) -> None:
    shop = Shop(tmp_path)
    assert shop.plan().secrets == ()
    writer = RunWriter(shop.place.repository().store, RUN, "node8-x")
    code = shop.freeze({**SECRETS, **HARMLESS})
    start = Start(identity="x", uid=1, host="h", started=TIME, command=("curl", "https://u:hunter22@x"))
    writer.report(launch=start)
    writer.capture(code=[{"root": "/home/ada/c", "snapshot": code.hex(), "files": 9, "bytes": 9}])
    found = shop.plan().secrets
    assert {os.path.basename(secret.where).encode() for secret in found if secret.where.startswith("code")} == set(SECRETS)
    assert [secret.line for secret in found if secret.where == "code/config.py"] == [3]
    assert [secret.what for secret in found if secret.where.startswith("record")] == ["credentials in a URL"]
    assert "hunter22" not in repr(found)


# What is refused when it is checked.


def test_a_good_one_is_good(signed: Path) -> None:
    checked = verify_bundle(str(signed), key=KEY.public)
    assert (checked.is_trusted, checked.signer, checked.absent) == (True, KEY.public.fingerprint, 0)
    assert not verify_bundle(str(signed)).is_trusted
    assert {pin.role for pin in checked.manifest.pins} == {"input", "output", "code", "environment"}


def test_another_key_or_none(shop: Shop, signed: Path, opened: Path) -> None:
    with pytest.raises(BundleError, match="another key"):
        verify_bundle(str(signed), key=OTHER_KEY.public)
    assert verify_bundle(str(opened)).signer == ""
    with pytest.raises(BundleError, match="nobody has signed"):
        verify_bundle(str(opened), key=KEY.public)


def rebuilt(path: Path, target: Path, changes: dict[str, bytes | None], *, restate: bool = False) -> Path:
    """Write a bundle again with some entries changed, added or left out; with another statement if that is to fit."""
    files = {key: data for key, data in (contents(path) | changes).items() if data is not None}
    if restate:
        del files[ENVELOPE_KEY]
        subjects = [
            Subject(name=key, digest={"sha256": hashlib.sha256(data).hexdigest(), "blake3": blake3(data).hexdigest()})
            for key, data in sorted(files.items())
        ]
        files[ENVELOPE_KEY] = encode_envelope(encode_statement(subjects, PREDICATE_TYPE, {}), {})
    with ZipWriter(str(target)) as writer:
        for key, data in files.items():
            writer.put(key, data)
        writer.finish()
    return target


def test_a_change_to_any_entry_is_seen(signed: Path, tmp_path: Path) -> None:
    for number, (key, data) in enumerate(contents(signed).items()):
        for what, changed in (("cut", data[:-1]), ("flipped", bytes([data[0] ^ 1]) + data[1:]), ("gone", None)):
            target = rebuilt(signed, tmp_path / f"{number}-{what}.vault", {key: changed})
            with pytest.raises(BundleError):
                verify_bundle(str(target), key=KEY.public)
            target.unlink()


def test_a_cut_or_flipped_file_is_seen(signed: Path, tmp_path: Path) -> None:
    data = signed.read_bytes()
    path = tmp_path / "b.vault"
    for place in range(0, len(data), len(data) // 40):
        for changed in (data[:place], data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :]):
            path.write_bytes(changed)
            with pytest.raises(BundleError):
                verify_bundle(str(path), key=KEY.public)
    with pytest.raises(SourceUnreadable):
        verify_bundle(str(tmp_path / "none.vault"))


def test_a_forged_signature_is_seen(signed: Path, tmp_path: Path) -> None:
    payload, signatures = decode_envelope(contents(signed)[ENVELOPE_KEY])
    for raw in (bytes(64), signatures[0][1][::-1], b"", OTHER_KEY.sign(to_be_signed(payload))):
        envelope = encode_envelope(payload, {KEY.public.fingerprint: raw})
        target = rebuilt(signed, tmp_path / f"{raw.hex()[:9]}.vault", {ENVELOPE_KEY: envelope})
        for key in (KEY.public, None):
            with pytest.raises(BundleError, match="signature"):
                verify_bundle(str(target), key=key)
    bare = rebuilt(signed, tmp_path / "bare.vault", {ENVELOPE_KEY: encode_envelope(payload, {})})
    with pytest.raises(BundleError, match="nobody has signed"):
        verify_bundle(str(bare))


def test_its_statement_is_one_to_others(signed: Path) -> None:
    attestation = pytest.importorskip("in_toto_attestation.v1.statement")
    payload, _ = decode_envelope(contents(signed)[ENVELOPE_KEY])
    statement = attestation.Statement.copy_from_pb(
        pytest.importorskip("google.protobuf.json_format").Parse(payload, attestation.spb.Statement())
    )
    statement.validate()
    assert len(statement.pb.subject) == len(contents(signed)) - 1


def test_a_statement_about_something_else(signed: Path, tmp_path: Path) -> None:
    statement = decode_statement(decode_envelope(contents(signed)[ENVELOPE_KEY])[0])
    payload = encode_statement(statement.subject, "https://slsa.dev/provenance/v1", {})
    envelope = encode_envelope(payload, {"": KEY.sign(to_be_signed(payload))})
    with pytest.raises(BundleError, match="about something else"):
        verify_bundle(str(rebuilt(signed, tmp_path / "s.vault", {ENVELOPE_KEY: envelope})), key=KEY.public)


def check_restated(path: Path, tmp_path: Path, changes: dict[str, bytes | None]) -> BundleChecked:
    """Check a bundle that somebody changed who could also write a statement that fits: nobody's signature is asked for."""
    return verify_bundle(str(rebuilt(path, tmp_path / f"{len(os.listdir(tmp_path))}.vault", changes, restate=True)))


def test_changes_that_the_statement_admits_are_seen_in_what_they_hurt(opened: Path, tmp_path: Path) -> None:
    files = contents(opened)
    check_restated(opened, tmp_path, {})
    first = next(key for key in files if key.startswith("runs/") and key.endswith("2.json")).replace("2.json", "1.json")
    last = max(key for key in files if key.startswith(first.rpartition("/")[0]))
    whole = next(key for key in files if key.startswith("whole/") and not key.endswith(".idx"))
    pack = next(key for key in files if key.endswith(".pack"))
    dataset = "datasets/digits/0000000001.json"
    manifest = json.loads(files[BUNDLE_KEY])
    other_run = {**manifest, "run": "run-2"}
    unpinned = {**manifest, "pins": [pin for pin in manifest["pins"] if pin["role"] != "input"]}
    no_code = {**manifest, "pins": [pin for pin in manifest["pins"] if pin["role"] != "code"]}
    moved = {**json.loads(files[dataset]), "version": 3}
    all_of_it = {**manifest, "contents": "all"}
    cases: dict[str, dict[str, bytes | None]] = {
        "chain": {first: files[first].replace(b'"n":1', b'"n":1 ', 1)},
        "end of the record": {last: None},
        "a large file": {whole: files[whole][:-1] + b"x"},
        "a large file gone": {whole: None, f"{whole}.idx": None},
        "a pack": {pack: files[pack][:-1] + b"x"},
        "a pack gone": {pack: None, pack.replace(".pack", ".idx"): None},
        "dataset gone": {dataset: None},
        "version moved": {dataset: json.dumps(moved).encode() + b"\n"},
        "another run": {f"runs/other/{first.split('/')[2]}/0000000001.json": files[first]},
        "another name": {BUNDLE_KEY: json.dumps(other_run).encode()},
        "pins gone": {BUNDLE_KEY: json.dumps(unpinned).encode()},
        "code gone": {BUNDLE_KEY: json.dumps(no_code).encode()},
        "contents": {BUNDLE_KEY: json.dumps(all_of_it).encode()},
        "no part of a bundle": {"payload.exe": b"MZ"},
        "partial without saying": {PARTIAL_KEY: None},
        "newer": {BUNDLE_KEY: json.dumps({**manifest, "bundle": 0}).encode()},
    }
    for name, changes in cases.items():
        with pytest.raises(BundleError):
            check_restated(opened, tmp_path, changes)
            pytest.fail(f"{name} was not seen")


# The ledger.


def test_a_proof_travels_and_is_checked(tmp_path: Path) -> None:
    shop = Shop(tmp_path)
    Ledger(shop.place.repository()).extend(KEY)
    path = shop.bundle("proven.vault", with_host=True, key=OTHER_KEY)
    checked = verify_bundle(str(path), ledger_key=KEY.public)
    assert checked.proven_by.startswith("vaultfs/")
    with pytest.raises(BundleError, match="not signed by the key"):
        verify_bundle(str(path), ledger_key=OTHER_KEY.public)
    other = Shop(tmp_path / "other")
    RunWriter(other.place.repository().store, RUN, "node9-x").report(params={"a": "1"})
    Ledger(other.place.repository()).extend(KEY)
    proof = contents(other.bundle("other.vault", with_host=True))[PROOF_KEY]
    (tmp_path / "r").mkdir()
    with pytest.raises(BundleError, match="proof is of another record"):
        check_restated(shop.bundle("bare.vault", with_host=True), tmp_path / "r", {PROOF_KEY: proof})
    assert PROOF_KEY not in contents(shop.bundle("redacted.vault")), "its leaves name hosts"


def test_the_manifest_says_what_it_was_made_from(shop: Shop, signed: Path) -> None:
    manifest = decode_manifest(contents(signed)[BUNDLE_KEY])
    assert [head.origin_entries for head in manifest.journals] == [head.entries for head in manifest.journals]
    last = shop.place.store().get(f"runs/{RUN}/node7-launch/{manifest.journals[1].origin_entries:010d}.json")
    assert blake3(last).hexdigest() in {head.origin_head for head in manifest.journals}
