"""Joins a run with the Weights & Biases run that is active: each then names the other.

    wandb.init()
    join()

Needs `wandb`. Metrics stay where they are logged; nothing is copied.
"""

import wandb

from vault.errors import UsageError
from vault.live_run import LiveRun, current_run

KEY = "vault_run"


def join(run: LiveRun | None = None) -> LiveRun:
    """Put the ID of the W&B run on record, and the run's ID into that one's config, as `vault_run`.

    Raises:
        UsageError: `wandb.init()` was not called.
    """
    active = wandb.run
    if active is None:
        raise UsageError("no W&B run is active: call this after wandb.init()")
    run = run or current_run()
    for name, value in (("WANDB_RUN_ID", active.id), ("WANDB_PROJECT", active.project), ("WANDB_ENTITY", active.entity)):
        if value:
            run.log_tracker(name, str(value))
    active.config.update({KEY: run.id})
    return run
