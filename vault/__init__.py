"""Vault: datasets and checkpoints that cannot drift, and training runs that record themselves.

The public names load on first use (PEP 562), so that `import vault` costs nothing that a script does not need.
"""

from typing import Final

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vault.api import Found, Vault
    from vault.api import init_vault as init
    from vault.api import open_vault as open
    from vault.errors import VaultError

_PLACES: Final = {
    "Found": ("vault.api", "Found"),
    "Vault": ("vault.api", "Vault"),
    "VaultError": ("vault.errors", "VaultError"),
    "init": ("vault.api", "init_vault"),
    "open": ("vault.api", "open_vault"),
}

__all__ = ["Found", "Vault", "VaultError", "init", "open"]


def __getattr__(name: str) -> object:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    module, attribute = _PLACES[name]
    return getattr(importlib.import_module(module), attribute)
