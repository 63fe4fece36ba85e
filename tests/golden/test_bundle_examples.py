"""The examples of docs/format/bundle.md are what the code writes and reads, for ever."""

import re
import zlib
from pathlib import Path

from vault.format.bundle import PREDICATE_TYPE
from vault.format.dsse import Subject, decode_envelope, decode_statement, encode_envelope, encode_statement, to_be_signed
from vault.signing.ed25519 import PrivateKey
from vault.stores.zip_layout import Directory, ZipEntry, encode_central, encode_end, encode_local
from vault.stores.zip_writer import ZipWriter
from vault.stores.zipfile import ZipStore

PAGE = (Path(__file__).parents[2] / "docs" / "format" / "bundle.md").read_text()
KEY = PrivateKey(bytes(range(32)))
HELLO = b"hello\n"


def example(kind: str) -> str:
    found = re.search(rf"^```{kind}\n(.*?)\n^```", PAGE, re.M | re.S)
    assert found
    return found[1]


def test_zip(tmp_path: Path) -> None:
    data = bytes.fromhex(example("hex zip"))
    entry = ZipEntry("whole/x", 6, zlib.crc32(HELLO), 0)
    row, end = encode_central(entry), encode_end(Directory(1, entry.end, len(encode_central(entry))))
    assert encode_local(entry) + HELLO + row + end == data
    (tmp_path / "read.vault").write_bytes(data)
    assert ZipStore(str(tmp_path / "read.vault")).get("whole/x") == HELLO
    with ZipWriter(str(tmp_path / "written.vault")) as writer:
        writer.put("whole/x", HELLO)
        writer.finish()
    assert (tmp_path / "written.vault").read_bytes() == data


def test_statement_and_signature() -> None:
    payload, envelope = example("json statement").encode(), example("json envelope").encode() + b"\n"
    subject = decode_statement(payload).subject
    assert [(one.name, len(one.digest["blake3"])) for one in subject] == [("whole/x", 64)]
    assert (
        encode_statement([Subject(name=one.name, digest=one.digest) for one in subject], PREDICATE_TYPE, {"run": "run-1"})
        == payload
    )
    assert encode_envelope(payload, {KEY.public.fingerprint: KEY.sign(to_be_signed(payload))}) == envelope
    found, [(keyid, signature)] = decode_envelope(envelope)
    assert (found, keyid) == (payload, KEY.public.fingerprint)
    assert KEY.public.verify(signature, to_be_signed(payload)) and KEY.public.text in PAGE
