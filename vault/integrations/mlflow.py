"""Joins a run with the MLflow run that is active: each then names the other.

    with mlflow.start_run():
        join()

Needs `mlflow` or `mlflow-skinny`. Metrics stay where they are logged; nothing is copied.
"""

import mlflow

from vault.errors import UsageError
from vault.live_run import LiveRun, current_run

TAG = "vault.run"


def join(run: LiveRun | None = None) -> LiveRun:
    """Put the ID of MLflow's active run on record, and the run's ID on that one, as the tag `vault.run`.

    Raises:
        UsageError: no MLflow run is active.
    """
    active = mlflow.active_run()
    if active is None:
        raise UsageError("no MLflow run is active: call this inside of 'with mlflow.start_run():'")
    run = run or current_run()
    run.log_tracker("MLFLOW_RUN_ID", str(active.info.run_id))
    run.log_tracker("MLFLOW_EXPERIMENT_ID", str(active.info.experiment_id))
    mlflow.set_tag(TAG, run.id)
    return run
