"""Vault: datasets and checkpoints that cannot drift, and training runs that record themselves.

    import vault

    store = vault.open("~/vault-store")

`vault.api` says what can be done with it. The public names load on first use (PEP 562), so that `import vault` costs
nothing that a script does not need.
"""

from typing import Final

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vault import errors
    from vault.api import Found, Vault, edit, prefetch_plan
    from vault.api import init_vault as init
    from vault.api import open_vault as open
    from vault.errors import VaultError
    from vault.format.tree import Entry, Kind
    from vault.live_run import LiveRun, commit_output, current_run, log_metric, log_params, run
    from vault.ops.audit import Audit, OpenedFile, Read
    from vault.ops.checkout import CheckoutResult
    from vault.ops.commit import CommitResult
    from vault.ops.diff import Change, ChangeKind
    from vault.ops.edit import Edit
    from vault.ops.edit_commit import EditCommit
    from vault.ops.hints import prefetch
    from vault.ops.verify import Problem, Verification
    from vault.progress import Progress
    from vault.repo.datasets import Dataset, Version
    from vault.repo.run_model import Input, Run

    __version__: str

_PLACES: Final = {
    "Audit": "vault.ops.audit:Audit",
    "Change": "vault.ops.diff:Change",
    "ChangeKind": "vault.ops.diff:ChangeKind",
    "CheckoutResult": "vault.ops.checkout:CheckoutResult",
    "CommitResult": "vault.ops.commit:CommitResult",
    "Dataset": "vault.repo.datasets:Dataset",
    "Edit": "vault.ops.edit:Edit",
    "EditCommit": "vault.ops.edit_commit:EditCommit",
    "Entry": "vault.format.tree:Entry",
    "Found": "vault.api:Found",
    "Input": "vault.repo.run_model:Input",
    "Kind": "vault.format.tree:Kind",
    "LiveRun": "vault.live_run:LiveRun",
    "OpenedFile": "vault.ops.audit:OpenedFile",
    "Problem": "vault.ops.verify:Problem",
    "Progress": "vault.progress:Progress",
    "Read": "vault.ops.audit:Read",
    "Run": "vault.repo.run_model:Run",
    "Vault": "vault.api:Vault",
    "VaultError": "vault.errors:VaultError",
    "Verification": "vault.ops.verify:Verification",
    "Version": "vault.repo.datasets:Version",
    "commit_output": "vault.live_run:commit_output",
    "current_run": "vault.live_run:current_run",
    "edit": "vault.api:edit",
    "errors": "vault.errors:",
    "init": "vault.api:init_vault",
    "log_metric": "vault.live_run:log_metric",
    "log_params": "vault.live_run:log_params",
    "open": "vault.api:open_vault",
    "prefetch": "vault.ops.hints:prefetch",
    "prefetch_plan": "vault.api:prefetch_plan",
    "run": "vault.live_run:run",
}

__all__ = [
    "Audit",
    "Change",
    "ChangeKind",
    "CheckoutResult",
    "CommitResult",
    "Dataset",
    "Edit",
    "EditCommit",
    "Entry",
    "Found",
    "Input",
    "Kind",
    "LiveRun",
    "OpenedFile",
    "Problem",
    "Progress",
    "Read",
    "Run",
    "Vault",
    "VaultError",
    "Verification",
    "Version",
    "commit_output",
    "current_run",
    "edit",
    "errors",
    "init",
    "log_metric",
    "log_params",
    "open",
    "prefetch",
    "prefetch_plan",
    "run",
]


def __getattr__(name: str) -> object:
    if name == "__version__":
        from importlib.metadata import version

        return version("vaultfs")
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    module, _, attribute = _PLACES[name].partition(":")
    found = importlib.import_module(module)
    return getattr(found, attribute) if attribute else found


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
