"""Ed25519 keys in small text files, and what is signed and verified with them (docs/format/ledger.md, section 6).

A key file is one line: `vaultfs-ed25519-private:` and the 32-byte seed, or `vaultfs-ed25519-public:` and the 32-byte public
key, in Base64. Knows nothing of what is signed. The package `cryptography` is loaded when a key is used. Threads: safe.
"""

import base64
import binascii
import contextlib
import os
import stat
from dataclasses import dataclass, field
from typing import Final

from vault.errors import SourceUnreadable, TargetUnwritable, UsageError

PRIVATE_PREFIX: Final = "vaultfs-ed25519-private:"
PUBLIC_PREFIX: Final = "vaultfs-ed25519-public:"
KEY_SIZE: Final = 32
SIGNATURE_SIZE: Final = 64
_FILE_SIZE_MAX: Final = 4096

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import ModuleType


@dataclass(frozen=True, slots=True)
class PublicKey:
    """What signatures are verified with."""

    raw: bytes  # 32 bytes

    @property
    def text(self) -> str:
        """The key as a public key file has it, without the newline."""
        return PUBLIC_PREFIX + base64.b64encode(self.raw).decode()

    @property
    def fingerprint(self) -> str:
        """What people compare: the first 32 hex digits of the SHA-256 of the key."""
        import hashlib

        return hashlib.sha256(self.raw).hexdigest()[:32]

    def verify(self, signature: bytes, message: bytes) -> bool:
        """Tell whether this key's owner signed the message. Whatever the bytes are, nothing is raised."""
        if len(signature) != SIGNATURE_SIZE:
            return False
        ed25519 = _ed25519()
        from cryptography.exceptions import InvalidSignature

        try:
            ed25519.Ed25519PublicKey.from_public_bytes(self.raw).verify(signature, message)
        except (InvalidSignature, ValueError):
            return False
        return True


@dataclass(frozen=True, slots=True)
class PrivateKey:
    """What signatures are made with."""

    seed: bytes = field(repr=False)  # 32 bytes

    @property
    def text(self) -> str:
        """The key as a private key file has it, without the newline."""
        return PRIVATE_PREFIX + base64.b64encode(self.seed).decode()

    @property
    def public(self) -> PublicKey:
        """The other half."""
        return PublicKey(_ed25519().Ed25519PrivateKey.from_private_bytes(self.seed).public_key().public_bytes_raw())

    def sign(self, message: bytes) -> bytes:
        """Return the signature, 64 bytes. Equal messages have equal signatures."""
        signature: bytes = _ed25519().Ed25519PrivateKey.from_private_bytes(self.seed).sign(message)
        return signature


def new_key() -> PrivateKey:
    """Return a new key."""
    return PrivateKey(os.urandom(KEY_SIZE))


def load_private_key(path: str) -> PrivateKey:
    """Read a private key file.

    Raises:
        SourceUnreadable: there is none, or others may read it.
        UsageError: it is no private key.
    """
    return PrivateKey(_parse(_read(path, is_private=True), PRIVATE_PREFIX, "private", path))


def load_public_key(path: str) -> PublicKey:
    """Read a public key file. Raises as `load_private_key`."""
    return PublicKey(_parse(_read(path, is_private=False), PUBLIC_PREFIX, "public", path))


def parse_public_key(text: str) -> PublicKey:
    """Return the key in the text of a public key file. Raises UsageError."""
    return PublicKey(_parse(text, PUBLIC_PREFIX, "public", "this text"))


def save_key(key: PrivateKey, path: str) -> str:
    """Write a private key file that only its owner may read, and the public one beside it, as `<path>.pub`.

    Returns:
        the path of the public key file.

    Raises:
        TargetUnwritable: one of the two exists already, or cannot be written; neither stays.
    """
    public_path = f"{path}.pub"
    _write(public_path, key.public.text, 0o644)
    try:
        _write(path, key.text, 0o600)
    except TargetUnwritable:
        with contextlib.suppress(OSError):
            os.unlink(public_path)
        raise
    return public_path


def _read(path: str, *, is_private: bool) -> str:
    try:
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK | os.O_CLOEXEC)) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise SourceUnreadable(path, "it is no file")
            if is_private and status.st_mode & 0o077:
                raise SourceUnreadable(path, f"others may read this private key: run 'chmod 600 {path}'")
            return file.read(_FILE_SIZE_MAX).decode("ascii", "replace")
    except OSError as error:
        raise SourceUnreadable(path, error.strerror or str(error)) from error


def _parse(text: str, prefix: str, which: str, where: str) -> bytes:
    line = text.strip()
    try:
        raw = base64.b64decode(line.removeprefix(prefix), validate=True) if line.startswith(prefix) else b""
    except (binascii.Error, ValueError):
        raw = b""
    if len(raw) == KEY_SIZE:
        return raw
    others = {PRIVATE_PREFIX: "a private key", PUBLIC_PREFIX: "a public key"}
    found = next((name for start, name in others.items() if start != prefix and line.startswith(start)), "something else")
    raise UsageError(f"{where} is no {which} key: it holds {found}; 'vault key new' makes a pair")


def _write(path: str, text: str, mode: int) -> None:
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    except OSError as error:
        raise TargetUnwritable(path, error.strerror or str(error)) from error
    try:
        with open(fd, "w", encoding="ascii") as file:
            file.write(text + "\n")
            file.flush()
            os.fsync(fd)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.unlink(path)
        raise TargetUnwritable(path, error.strerror or str(error)) from error


def _ed25519() -> "ModuleType":
    """Return the module that does the arithmetic. Raises UsageError where it is not installed."""
    try:
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError:
        raise UsageError("signatures need the package 'cryptography': run pip install 'vaultfs[sign]'") from None
    return ed25519
