"""What the user has chosen once and for all: environment variables, then `config.toml`, then defaults.

    VAULTFS_STORE            store            folder or URL of the store
    VAULTFS_CACHE_DIR        cache_dir        where indexes, maps and spools lie
    VAULTFS_ENGINE           engine           how to mount: direct or fusepy
    VAULTFS_NODE_CACHE       node_cache       where this machine keeps what it reads of a remote store
    VAULTFS_NODE_CACHE_SIZE  node_cache_size  how much that may take: 2TB, 500GiB, 10%

The left column beats the middle one; command-line options beat both (docs/reference/configuration.md). NO_COLOR and TERM
are read here too, and nothing else in vault reads the environment. VAULTFS_RUN is not read but found: in the environment
of the processes that open files.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from vault.errors import UsageError

APPLICATION: Final = "vaultfs"
CONFIG_FILE: Final = "config.toml"
CONFIG_SIZE_MAX: Final = 1 << 20
VARIABLES: Final = {
    "store": "VAULTFS_STORE",
    "cache_dir": "VAULTFS_CACHE_DIR",
    "engine": "VAULTFS_ENGINE",
    "node_cache": "VAULTFS_NODE_CACHE",
    "node_cache_size": "VAULTFS_NODE_CACHE_SIZE",
}
_PATHS: Final = ("store", "cache_dir", "node_cache")
_SIZE = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,3})?)\s*(%|[KMGTP]i?B|B)\Z", re.IGNORECASE)
_POWERS: Final = "BKMGTP"
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


@dataclass(frozen=True, slots=True)
class Settings:
    """Choices; an empty text means none was made. Folders are absolute."""

    store: str
    cache_dir: str
    engine: str
    node_cache: str = ""
    node_cache_size: str = ""


def load_settings(environment: Mapping[str, str] | None = None) -> Settings:
    """Return the settings of this user.

    Args:
        environment: what to look into instead of `os.environ`.

    Raises:
        UsageError: `config.toml` cannot be read, is no TOML, or holds what is not known.
    """
    environment = os.environ if environment is None else environment
    chosen = {name: environment.get(variable, "") for name, variable in VARIABLES.items()}
    if not all(chosen.values()):
        configured = _load_config(config_path())
        chosen = {name: value or configured.get(name, "") for name, value in chosen.items()}
    return Settings(
        store=chosen["store"],
        cache_dir=absolute(chosen["cache_dir"] or _platform_dir("user_cache_dir")),
        engine=chosen["engine"],
        node_cache=absolute(chosen["node_cache"]) if chosen["node_cache"] else "",
        node_cache_size=chosen["node_cache_size"],
    )


def config_path() -> str:
    """Return where `config.toml` is looked for."""
    return os.path.join(_platform_dir("user_config_dir"), CONFIG_FILE)


def state_dir() -> str:
    """Return where this user's list of edit views lies: it outlives the cache directory."""
    return _platform_dir("user_state_dir")


def absolute(path: str) -> str:
    """Return a path as an absolute one, with `~` replaced by the home of the user."""
    return os.path.abspath(os.path.expanduser(path))


def size_in_bytes(text: str, folder: str) -> int:
    """Return a size as a number of bytes: `2TB`, `500GiB`, or `10%` of the disk on which a folder lies, or will.

    Raises:
        UsageError: the text is no size.
    """
    match = _SIZE.match(text.strip())
    if match is None:
        raise UsageError(f"{text!r} is no size: write 2TB, 500GiB or 10%")
    number, unit = float(match[1]), match[2].upper()
    if unit != "%":
        return int(number * (1024 if "I" in unit else 1000) ** _POWERS.index(unit[0]))
    if number > 100:
        raise UsageError(f"{text!r} is more than there is")
    folder = absolute(folder)
    while not os.path.exists(folder):
        folder = os.path.dirname(folder)
    disk = os.statvfs(folder)
    return int(disk.f_frsize * disk.f_blocks * number / 100)


def wants_color(environment: Mapping[str, str] | None = None) -> bool:
    """Return whether colours may be used where there is a terminal (https://no-color.org)."""
    environment = os.environ if environment is None else environment
    return not environment.get("NO_COLOR") and environment.get("TERM", "") != "dumb"


def _platform_dir(name: str) -> str:
    import platformdirs

    return str(getattr(platformdirs, name)(APPLICATION, appauthor=False))


def _load_config(path: str) -> dict[str, str]:
    try:
        with open(path, "rb") as file:
            data = file.read(CONFIG_SIZE_MAX + 1)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        if not os.path.lexists(path):
            return {}  # in a home that is not ours, as after `sudo -u`
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    if len(data) > CONFIG_SIZE_MAX:
        raise UsageError(f"{path} is larger than {CONFIG_SIZE_MAX:,} bytes")
    import tomllib

    try:
        found = tomllib.loads(data.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: {error}") from error
    for name, value in found.items():
        if name not in VARIABLES:
            raise UsageError(f"{path}: there is no setting {name!r}; known are {', '.join(VARIABLES)}")
        if not isinstance(value, str):
            raise UsageError(f"{path}: {name} must be a text in quotes")
        if name in _PATHS and value and not (value.startswith(("/", "~")) or _URL.match(value)):
            # It would mean another folder in each folder that a command is started in.
            raise UsageError(f"{path}: {name} must be a path that starts with '/' or '~'; it is {value!r}")
    return found
