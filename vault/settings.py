"""What the user has chosen once and for all: environment variables, then `config.toml`, then defaults.

    VAULTFS_STORE      store        folder or URL of the store
    VAULTFS_CACHE_DIR  cache_dir    where indexes, maps and spools lie
    VAULTFS_ENGINE     engine       how to mount: direct or fusepy

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
VARIABLES: Final = {"store": "VAULTFS_STORE", "cache_dir": "VAULTFS_CACHE_DIR", "engine": "VAULTFS_ENGINE"}
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


@dataclass(frozen=True, slots=True)
class Settings:
    """Choices; an empty text means none was made. `cache_dir` is absolute."""

    store: str
    cache_dir: str
    engine: str


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
    return Settings(chosen["store"], absolute(chosen["cache_dir"] or _platform_dir("user_cache_dir")), chosen["engine"])


def config_path() -> str:
    """Return where `config.toml` is looked for."""
    return os.path.join(_platform_dir("user_config_dir"), CONFIG_FILE)


def absolute(path: str) -> str:
    """Return a path as an absolute one, with `~` replaced by the home of the user."""
    return os.path.abspath(os.path.expanduser(path))


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
        if name != "engine" and value and not (value.startswith(("/", "~")) or _URL.match(value)):
            # It would mean another folder in each folder that a command is started in.
            raise UsageError(f"{path}: {name} must be a path that starts with '/' or '~'; it is {value!r}")
    return found
