"""Keys in files: made, read, refused; signatures as RFC 8032 says."""

import os
import sys

import pytest

from vault.errors import SourceUnreadable, TargetUnwritable, UsageError
from vault.signing.ed25519 import PrivateKey, load_private_key, load_public_key, new_key, parse_public_key, save_key


def test_signatures_are_those_of_rfc_8032() -> None:
    """Section 7.1, tests 1 and 2."""
    for seed, public, message, signature in [
        (
            "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
            "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
            "",
            "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b",
        ),
        (
            "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
            "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
            "72",
            "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00",
        ),
    ]:
        key = PrivateKey(bytes.fromhex(seed))
        assert key.public.raw.hex() == public
        assert key.sign(bytes.fromhex(message)).hex() == signature
        assert key.public.verify(bytes.fromhex(signature), bytes.fromhex(message))


def test_a_pair_is_written_and_read_again(tmp_path) -> None:
    key, path = new_key(), str(tmp_path / "key")
    assert save_key(key, path) == path + ".pub"
    assert os.stat(path).st_mode & 0o777 == 0o600
    assert load_private_key(path) == key
    public = load_public_key(path + ".pub")
    assert public == key.public == parse_public_key(public.text)
    assert public.verify(key.sign(b"text"), b"text")
    assert not public.verify(key.sign(b"text"), b"other text")
    assert not public.verify(new_key().sign(b"text"), b"text")
    assert not public.verify(b"short", b"text")
    assert str(key.seed) not in repr(key)


def test_nothing_is_overwritten(tmp_path) -> None:
    path = tmp_path / "key"
    path.write_text("precious")
    with pytest.raises(TargetUnwritable, match="exists"):
        save_key(new_key(), str(path))
    assert path.read_text() == "precious" and not (tmp_path / "key.pub").exists()


def test_a_key_that_others_may_read_is_refused(tmp_path) -> None:
    path = str(tmp_path / "key")
    save_key(new_key(), path)
    os.chmod(path, 0o640)
    with pytest.raises(SourceUnreadable, match="chmod 600"):
        load_private_key(path)


@pytest.mark.parametrize(
    "text", ["", "garbage", "vaultfs-ed25519-private:", "vaultfs-ed25519-private:AAAA", "vaultfs-ed25519-private:€"]
)
def test_what_is_no_key_is_refused(tmp_path, text) -> None:
    path = tmp_path / "key"
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(UsageError, match="vault key new"):
        load_private_key(str(path))


def test_the_wrong_half_of_a_pair_is_named(tmp_path) -> None:
    path = str(tmp_path / "key")
    save_key(new_key(), path)
    with pytest.raises(UsageError, match="it holds a private key"):
        load_public_key(path)
    with pytest.raises(SourceUnreadable, match="No such file"):
        load_private_key(path + ".missing")
    with pytest.raises(SourceUnreadable):
        load_public_key(str(tmp_path))


def test_without_the_package_it_is_said_what_to_install(monkeypatch) -> None:
    key = new_key()
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.asymmetric", None)
    with pytest.raises(UsageError, match=r"pip install 'vaultfs\[sign\]'"):
        key.sign(b"text")
