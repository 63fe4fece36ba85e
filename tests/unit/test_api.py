"""What programs script against."""

import inspect
import os
import re
import resource
import subprocess
import sys
import textwrap
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

import vault
from vault import errors
from vault.testing.trees import Link, write_tree


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A folder to commit."""
    path = tmp_path / "imagenet"
    write_tree(
        os.fsencode(path), {b"labels.csv": b"a,b\n", b"link": Link(b"labels.csv"), b"train": {b"1.JPEG": b"x" * 1000}}
    )
    return path


@pytest.fixture
def store(tmp_path: Path, source: Path) -> vault.Vault:
    """A store with one version of `imagenet`."""
    store = vault.init(str(tmp_path / "store"), cache_dir=str(tmp_path / "cache"))
    store.commit(source, "imagenet", message="as downloaded", author="ana")
    return store


def test_the_example_of_the_module_runs_as_it_stands(tmp_path, source, monkeypatch, capsys):
    import vault.api

    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("VAULTFS_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    example = re.search(r"\n\n((?:    .*\n|\n)+)", vault.api.__doc__ or "")
    assert example is not None
    exec(compile(textwrap.dedent(example[1]), "example", "exec"), {})
    shown = capsys.readouterr().out
    assert shown.startswith("imagenet@v1 2 ")
    assert "b'train/1.JPEG' 1000\n" in shown


def test_public_names_are_there_and_load_lazily():
    for name in vault.__all__:
        assert getattr(vault, name) is not None
    assert set(vault.__all__) <= set(dir(vault))
    assert re.fullmatch(r"\d+\.\d+\.\d+.*", vault.__version__)
    assert vault.errors is errors
    with pytest.raises(AttributeError, match="no attribute 'opne'"):
        vault.opne  # noqa: B018


def test_everything_public_is_documented_and_typed():
    for name in vault.__all__:
        assert inspect.getdoc(getattr(vault, name)), name
    for name, method in inspect.getmembers(vault.Vault, inspect.isfunction):
        if not name.startswith("_"):
            assert method.__doc__, name
            hints = inspect.get_annotations(method)
            assert "return" in hints and len(hints) == len(inspect.signature(method).parameters), name


def test_commit_tells_what_it_made(store, source):
    (source / "new.txt").write_text("new")
    made = store.commit(str(source), "imagenet")
    assert (made.ref, made.version, made.files, made.unchanged) == ("imagenet@v2", 2, 3, False)
    again = store.commit(os.fsencode(source), "imagenet", message="again")
    assert (again.ref, again.unchanged) == ("imagenet@v2", True)
    assert store.commit(source, "imagenet", allow_unchanged=True).ref == "imagenet@v3"
    assert store.commit(source, "other", exclude=["*.txt", b"train/"]).files == 1
    assert (repr(store), store.url) == (f"Vault({store.url!r})", str(source.parent / "store"))


def test_datasets_versions_and_labels(store, source):
    (source / "labels.csv").write_text("changed\n")
    store.commit(source, "imagenet")
    assert store.datasets() == ["imagenet"]
    dataset = store.dataset("imagenet")
    assert [version.number for version in dataset.versions] == [1, 2]
    assert (dataset.versions[0].author, dataset.versions[0].message) == ("ana", "as downloaded")
    assert store.label("imagenet@v1", "golden").number == 1
    assert store.version("imagenet@golden").number == 1
    assert store.version("imagenet").number == 2
    assert store.dataset("imagenet").labels == {"golden": 1}
    store.remove_label("imagenet", "golden")
    with pytest.raises(errors.RefNotFound):
        store.version("imagenet@golden")


def test_looking_into_versions(store):
    found = store.find("imagenet@latest/train")
    assert (found.ref, found.path, found.entry.files, found.version.number) == ("imagenet@v1/train", b"train", 1, 1)
    assert found.snapshot == store.version("imagenet").snapshot
    assert [path for path, _ in store.ls("imagenet@v1")] == [b"labels.csv", b"link", b"train"]
    assert [path for path, _ in store.ls("imagenet", recursive=True)][-1] == b"train/1.JPEG"
    assert {path: entry.kind for path, entry in store.ls("imagenet")}[b"train"] == vault.Kind.DIRECTORY
    assert store.read("imagenet@v1/labels.csv") == b"a,b\n"
    assert b"".join(store.read_pieces("imagenet@v1/train/1.JPEG")) == b"x" * 1000


def test_large_files_come_in_pieces_that_stay(store, tmp_path):
    content = os.urandom(9 << 20)
    (tmp_path / "large").write_bytes(content)
    store.commit(tmp_path / "large", "large")
    pieces = list(store.read_pieces("large@v1/large"))
    assert len(pieces) > 1 and b"".join(pieces) == content


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda s: s.find("imagent@v1"), errors.RefNotFound, "did you mean imagenet?"),
        (lambda s: s.find("imagenet@v2"), errors.RefNotFound, "did you mean imagenet@v1?"),
        (lambda s: s.find("imagenet@v1/label.csv"), errors.RefNotFound, "did you mean imagenet@v1/labels.csv?"),
        (lambda s: s.find("imagenet/train/1.JPEG"), errors.InvalidRef, "did you mean imagenet@latest/train/1.JPEG?"),
        (lambda s: s.find("imagenet/train"), errors.RefNotFound, "did you mean imagenet@latest/train?"),
        (lambda s: s.find("imagenet/train@v1"), errors.RefNotFound, "did you mean imagenet@v1/train?"),
        (lambda s: s.find("/mnt/imagenet@v1/x"), errors.InvalidRef, "did you mean imagenet@v1/x?"),
        (lambda s: s.find("./imagenet@v1"), errors.InvalidRef, "did you mean imagenet@v1?"),
        (lambda s: s.find("Imagenet@v1"), errors.InvalidRef, "lower-case"),
        (lambda s: s.read("imagenet@v1/train"), vault.VaultError, "is a folder"),
        (lambda s: s.read("imagenet@v1/link"), vault.VaultError, "is a symlink to labels.csv"),
        (lambda s: s.read("imagenet@v1/no"), errors.RefNotFound, "there is no path imagenet@v1/no"),
        (lambda s: list(s.audit("imagenet@v1/no")), errors.RefNotFound, "there is no path imagenet@v1/no"),
        (lambda s: list(s.audit("imagent")), errors.RefNotFound, "did you mean imagenet?"),
        (lambda s: list(s.audit("b3:12")), errors.InvalidRef, "64 lower-case hex digits"),
        (lambda s: list(s.runs(classes=["trainig"])), vault.VaultError, "'trainig' is not a valid"),
        (lambda s: s.run("x"), errors.RefNotFound, "there is no run x"),
        (lambda s: s.checkout("imagenet@v1", "/etc"), vault.VaultError, "/etc exists"),
        (lambda s: s.commit("/no/such", "x"), errors.SourceUnreadable, "/no/such"),
        (lambda s: vault.open("/no/such"), errors.NotARepository, "/no/such is not a vault store"),
        (lambda s: vault.init(s.url), errors.AlreadyARepository, "is a vault store already"),
    ],
)  # fmt: skip
def test_errors_say_what_and_what_is_near(store, call, error, says):
    with pytest.raises(error) as caught:
        call(store)
    assert says in str(caught.value) and isinstance(caught.value, vault.VaultError)


def test_open_takes_what_the_environment_says(store, monkeypatch, tmp_path):
    monkeypatch.setenv("VAULTFS_STORE", store.url)
    monkeypatch.setenv("VAULTFS_CACHE_DIR", str(tmp_path / "other cache"))
    assert vault.open().datasets() == ["imagenet"]
    assert vault.open().repository.cache_root == str(tmp_path / "other cache")
    monkeypatch.setenv("VAULTFS_STORE", "")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    with pytest.raises(errors.UsageError, match="no store is named"):
        vault.open()


def test_diff_checkout_and_verify(store, source, tmp_path):
    (source / "labels.csv").write_text("a,b,c\n")
    store.commit(source, "imagenet")
    [change] = store.diff("imagenet@v1", "imagenet@v2")
    assert (change.kind, change.path) == (vault.ChangeKind.CHANGED, b"labels.csv")
    done = store.checkout("imagenet@v1", tmp_path / "out")
    assert (done.files, (tmp_path / "out/labels.csv").read_text()) == (2, "a,b\n")
    verification = store.verify(data=True)
    assert list(verification) == [] and verification.result.versions == 2


def test_what_others_commit_meanwhile_can_be_read(store, source, tmp_path):
    """On another machine: with another cache, so that nobody tells this one's index."""
    assert store.read("imagenet@v1/labels.csv")
    (source / "later.txt").write_text("later")
    vault.open(store.url, cache_dir=str(tmp_path / "elsewhere")).commit(source, "imagenet")
    assert store.read("imagenet@v2/later.txt") == b"later"
    assert len(list(store.ls("imagenet@v2"))) == 4


def test_many_reads_take_no_more_descriptors(store):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = len(os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 20, hard))
    try:
        for _ in range(100):
            assert store.read("imagenet@v1/labels.csv") == b"a,b\n"
            next(iter(store.ls("imagenet@v1")))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_runs_of_a_store_that_nobody_has_read(store):
    assert list(store.runs()) == list(store.audit("imagenet")) == []
    yesterday = datetime.now(UTC) - timedelta(days=1)
    assert list(store.runs(dataset="imagenet", user="ana", host="lab7", since=yesterday, classes=["training"])) == []
    audit = store.open_audit()
    assert list(store.audit_with(audit, "imagenet@v1/labels.csv", content=True)) == []


def test_types_are_seen_by_type_checkers(tmp_path):
    pytest.importorskip("mypy")
    (tmp_path / "script.py").write_text(
        "import vault\n"
        "store = vault.open('x')\n"
        "reveal_type(store)\n"
        "reveal_type(store.commit('a', 'b').ref)\n"
        "reveal_type(next(store.audit('x')).run.command)\n"
        "read: vault.Read | vault.Run | vault.CommitResult\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(tmp_path / ".cache"), str(tmp_path / "script.py")],
        capture_output=True, text=True, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert re.findall(r'Revealed type is "(.*)"', done.stdout) == ["vault.api.Vault", "str", "tuple[str, ...]"], done.stdout
    assert done.returncode == 0, done.stdout
