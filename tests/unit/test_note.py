"""Signed notes: the known answer of Go's implementation, and everything that is refused."""

import base64

import pytest

from vault.errors import FormatError
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
from vault.signing.ed25519 import PrivateKey, PublicKey

# The key and the note with which golang.org/x/mod/sumdb/note tests itself.
VERIFIER = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
SEED = base64.b64decode("AYEKFALVFGyNhPJEMzD1QIDr+Y7hfZx09iUvxdXHKDFz")[1:]
TEXT = "If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n"
LINE = "— PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n"


def test_the_known_note_comes_out_and_verifies() -> None:
    key = PrivateKey(SEED)
    assert format_verifier_key("PeterNeumann", key.public.raw) == VERIFIER
    assert parse_verifier_key(VERIFIER) == ("PeterNeumann", key.public.raw)
    signature = NoteSignature("PeterNeumann", key_id("PeterNeumann", key.public.raw), key.sign(TEXT.encode()))
    note = Note(TEXT, (signature,))
    assert format_note(note) == f"{TEXT}\n{LINE}".encode()
    assert parse_note(format_note(note)) == note
    assert PublicKey(key.public.raw).verify(note.signatures[0].signature, note.signed)


def test_the_text_goes_to_the_last_empty_line() -> None:
    assert parse_note(f"one\n\ntwo\n\n{LINE}{LINE}".encode()).text == "one\n\ntwo\n"


@pytest.mark.parametrize(
    "note",
    [
        b"",
        b"text\n",
        b"text\n\n",
        f"{TEXT}{LINE}".encode(),
        f"{TEXT}\n{LINE}"[:-1].encode(),
        f"{TEXT}\n{LINE}\n".encode(),
        f"{TEXT}\n-{LINE[1:]}".encode(),
        f"{TEXT}\n{LINE.replace('PeterNeumann', 'Peter+Neumann')}".encode(),
        f"{TEXT}\n{LINE.replace('=', '')}".encode(),
        f"{TEXT}\n{LINE.replace('x08', 'x*8')}".encode(),
        f"{TEXT}\n— PeterNeumann AAAA\n".encode(),
        f"te\txt\n\n{LINE}".encode(),
        b"\xff\n\n" + LINE.encode(),
        f"{TEXT}\n{LINE * 33}".encode(),
        b"x" * 100_000 + f"\n\n{LINE}".encode(),
    ],
)
def test_what_is_no_note_is_refused(note) -> None:
    with pytest.raises(FormatError):
        parse_note(note)


def test_no_part_of_a_verifier_key_is_one() -> None:
    for start in range(len(VERIFIER)):
        for end in range(start + 1, len(VERIFIER) + 1):
            if (start, end) != (0, len(VERIFIER)):
                with pytest.raises(FormatError):
                    parse_verifier_key(VERIFIER[start:end])


def test_checkpoints() -> None:
    checkpoint = Checkpoint("example.com/log", 109482, bytes(range(32)))
    text = format_checkpoint(checkpoint)
    assert text == "example.com/log\n109482\nAAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\n"
    assert parse_checkpoint(text) == checkpoint == parse_checkpoint(text + "extension\n")
    for bad in (
        "",
        "a\n1\n",
        "\n1\n" + text.split("\n")[2] + "\n",
        text.replace("109482", "01"),
        text.replace("=", ""),
        "a\n1\nAA==\n",
    ):
        with pytest.raises(FormatError):
            parse_checkpoint(bad)
