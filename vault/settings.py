"""What the user has chosen once and for all: environment variables, then `config.toml`, then defaults.

    VAULTFS_STORE      store        folder or URL of the store
    VAULTFS_CACHE_DIR  cache_dir    where indexes, maps and spools lie
    VAULTFS_ENGINE     engine       how to mount: direct or fusepy

The left column beats the middle one; command-line options beat both. Nothing else in vault reads the environment.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from vault.errors import UsageError

APPLICATION: Final = "vaultfs"
CONFIG_FILE: Final = "config.toml"
CONFIG_SIZE_MAX: Final = 1 << 20
_VARIABLES: Final = {"store": "VAULTFS_STORE", "cache_dir": "VAULTFS_CACHE_DIR", "engine": "VAULTFS_ENGINE"}


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
        UsageError: `config.toml` is no TOML, or holds what is not known.
    """
    environment = os.environ if environment is None else environment
    chosen = {name: environment.get(variable, "") for name, variable in _VARIABLES.items()}
    if not all(chosen.values()):
        configured = _load_config(config_path())
        chosen = {name: value or configured.get(name, "") for name, value in chosen.items()}
    cache_dir = chosen["cache_dir"] or _platform_dirs("user_cache_dir")
    return Settings(chosen["store"], os.path.abspath(os.path.expanduser(cache_dir)), chosen["engine"])


def config_path() -> str:
    """Return where `config.toml` is looked for."""
    return os.path.join(_platform_dirs("user_config_dir"), CONFIG_FILE)


def _platform_dirs(name: str) -> str:
    import platformdirs

    return str(getattr(platformdirs, name)(APPLICATION, appauthor=False))


def _load_config(path: str) -> dict[str, str]:
    try:
        with open(path, "rb") as file:
            data = file.read(CONFIG_SIZE_MAX)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    import tomllib

    try:
        found = tomllib.loads(data.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: {error}") from error
    for name, value in found.items():
        if name not in _VARIABLES:
            raise UsageError(f"{path}: there is no setting {name!r}; known are {', '.join(_VARIABLES)}")
        if not isinstance(value, str):
            raise UsageError(f"{path}: {name} must be a text in quotes")
    return found
