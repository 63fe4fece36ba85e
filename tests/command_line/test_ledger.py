"""`vault ledger …` and `vault audit verify`: their answers, and what they refuse."""

import json
import os

import pytest

from vault.cli.exit_codes import DAMAGED, FINDINGS, NOT_FOUND, SOURCE, USAGE
from vault.signing.ed25519 import new_key, save_key
from vault.testing.mounts import Site


@pytest.fixture
def notary(site, tmp_path) -> str:
    """A key, and a site with one version of one dataset. The test runs in its folder."""
    key = str(tmp_path / "notary.key")
    save_key(new_key(), key)
    (tmp_path / "source").mkdir()
    commit(site, tmp_path, "first")
    return key


def commit(site: Site, tmp_path, content: str) -> None:
    (tmp_path / "source/a").write_text(content)
    site.vault("commit", str(tmp_path / "source"), "digits")


def answer(reference, site: Site, command: str, *arguments: str, status: int = 0) -> list[dict]:
    done = site.vault(*command.split(), *arguments, "--json", status=status)
    return reference.check(command, done.stdout)


def test_from_a_checkpoint_to_a_proof(reference, site, notary, tmp_path) -> None:
    kept, proof = str(tmp_path / "kept"), str(tmp_path / "proof")
    [made] = answer(reference, site, "ledger checkpoint", "--key", notary, "-o", kept)
    assert (made["checkpoint"], made["entries"], made["new_entries"]) == (1, 1, 1)
    commit(site, tmp_path, "second")
    [made] = answer(reference, site, "ledger checkpoint", "--key", notary)
    assert (made["checkpoint"], made["entries"], made["new_entries"]) == (2, 2, 1)
    newest, first, summary = answer(reference, site, "ledger show")
    assert (newest["entries"], first["entries"], summary["checkpoints"]) == (2, 1, 2)
    assert newest["root"] == made["root"] and summary["note"].startswith(summary["origin"] + "\n2\n")
    site.vault("ledger", "prove", "digits@v1", "--since", kept, "-o", proof)
    [entry, summary] = answer(
        reference, Site("", site.cache), "ledger check", proof, "--key", f"{notary}.pub", "--since", kept
    )
    assert (entry["journal"], entry["n"], summary["fingerprint"]) == ("datasets/digits", 1, made["fingerprint"])
    [summary] = answer(reference, site, "audit verify", "--since", kept, "--key", f"{notary}.pub")
    assert (summary["problems"], summary["entries"], summary["since"]) == (0, 2, 1)
    [summary] = answer(reference, site, "ledger prove", "digits")
    assert summary["proof"] == {**summary["proof"], "v": 1, "consistency": None}
    assert [found["n"] for found in summary["proof"]["entries"]] == [2]
    for command in ("ledger show", "ledger prove"):
        assert not reference.never_seen(command)


def test_what_was_changed_is_named_and_is_a_finding(reference, site, notary, tmp_path) -> None:
    site.vault("ledger", "checkpoint", "--key", notary)
    entry = os.path.join(site.store, "datasets/digits/0000000001.json")
    os.chmod(entry, 0o644)
    with open(entry, "r+b") as file:
        changed = file.read().replace(b'"files":1', b'"files":2')
        file.seek(0)
        file.write(changed)
    [problem, summary] = answer(reference, site, "audit verify", status=FINDINGS)
    assert (problem["where"], problem["checkpoint"]) == ("datasets/digits/0000000001.json", 1)
    assert summary["problems"] == 1
    os.unlink(entry)
    [problem, _] = answer(reference, site, "audit verify", status=FINDINGS)
    assert problem["reason"] == "entry 1 was taken off its end"
    [problem, _] = answer(reference, site, "ledger checkpoint", "--key", notary, status=FINDINGS)
    assert problem["where"] == "datasets/digits"
    for command in ("audit verify", "ledger checkpoint"):
        assert not reference.never_seen(command)


def test_a_proof_that_was_changed_is_a_finding(reference, site, notary, tmp_path) -> None:
    site.vault("ledger", "checkpoint", "--key", notary)
    path = tmp_path / "proof"
    site.vault("ledger", "prove", "digits", "-o", str(path))
    proof = json.loads(path.read_text())
    proof["entries"][0]["n"] = 7
    path.write_text(json.dumps(proof))
    [problem, summary] = answer(reference, site, "ledger check", str(path), status=FINDINGS)
    assert "not proven" in problem["reason"] and summary["problems"] == 1
    path.write_text("{}")
    assert "not a valid proof" in site.vault("ledger", "check", str(path), status=DAMAGED).stderr


def test_an_empty_store_has_no_ledger(reference, site, notary, tmp_path) -> None:
    empty = Site.make(str(tmp_path / "empty"))
    [made] = answer(reference, empty, "ledger checkpoint", "--key", notary)
    assert (made["checkpoint"], made["root"]) == (0, None)
    assert "there is no checkpoint yet" in empty.vault("ledger", "show").stderr
    assert "there is no checkpoint yet" in empty.vault("audit", "verify").stderr


def test_what_makes_no_sense_is_refused(site, notary, tmp_path) -> None:
    def refused(status: int, *arguments: str) -> str:
        done = site.vault(*arguments, status=status)
        assert done.stdout == "" and "Traceback" not in done.stderr
        return done.stderr

    assert "--key" in refused(USAGE, "ledger", "checkpoint")
    assert "did you mean" in refused(USAGE, "ledger")
    os.chmod(f"{notary}.pub", 0o600)
    assert "it holds a public key" in refused(USAGE, "ledger", "checkpoint", "--key", f"{notary}.pub")
    assert "No such file" in refused(SOURCE, "ledger", "checkpoint", "--key", "missing")
    assert "'vault ledger checkpoint' takes in" in refused(NOT_FOUND, "ledger", "prove", "digits")
    assert "'vault ls' the datasets" in refused(NOT_FOUND, "ledger", "prove", "nothing")
    assert "leave the path" in refused(USAGE, "ledger", "prove", "digits@v1/a")
    assert "there is something already" in refused(SOURCE, "ledger", "checkpoint", "--key", notary, "-o", notary)
    assert "checkpoint that was kept is damaged" in refused(DAMAGED, "audit", "verify", "--since", notary)
    assert "it holds a private key" in refused(USAGE, "audit", "verify", "--key", notary)
    assert not os.path.exists(os.path.join(site.store, "ledger")), "nothing was written"
