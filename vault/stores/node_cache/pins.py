"""What is not to be evicted: small files that name keys. Made by `vault cache pin`, read by every eviction.

A pin keeps what is here of its keys, and fetches nothing. Threads: none.
"""

import os
import secrets
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from typing import Final, NamedTuple

from vault.stores.node_cache.layout import NEW_PREFIX, PINS

PIN_KEYS_MAX: Final = 1 << 22
PINS_MAX: Final = 1 << 12


class Pin(NamedTuple):
    """Keys that stay, and why."""

    name: str  # a file name
    about: str  # for people: the ref that was pinned
    keys: tuple[str, ...]


def write_pin(root: str, pin: Pin) -> None:
    """Keep keys from being evicted; a pin of the same name is replaced. Raises OSError."""
    path = os.path.join(root, PINS, pin.name)
    new = os.path.join(root, PINS, f"{NEW_PREFIX}{secrets.token_hex(8)}")
    try:
        with open(new, "x", encoding="utf-8") as file:
            file.writelines(f"{line}\n" for line in (pin.about.replace("\n", " "), *pin.keys))
        os.replace(new, path)
    except OSError:
        with suppress(FileNotFoundError):
            os.unlink(new)
        raise


def remove_pin(root: str, name: str) -> bool:
    """Let keys be evicted again. Returns whether there was such a pin. Raises OSError."""
    try:
        os.unlink(os.path.join(root, PINS, name))
    except FileNotFoundError:
        return False
    return True


def read_pins(root: str) -> Iterator[Pin]:
    """Yield all pins. Raises OSError."""
    try:
        names = sorted(os.listdir(os.path.join(root, PINS)))
    except FileNotFoundError:
        return
    for name in names[:PINS_MAX]:
        if name.startswith("."):
            continue
        with suppress(FileNotFoundError), open(os.path.join(root, PINS, name), encoding="utf-8", errors="replace") as file:
            about = file.readline().rstrip("\n")
            yield Pin(name, about, tuple(line.rstrip("\n") for line in islice(file, PIN_KEYS_MAX)))


def pinned_keys(root: str) -> set[str]:
    """Return all keys that a pin names. Raises OSError."""
    return {key for pin in read_pins(root) for key in pin.keys}
