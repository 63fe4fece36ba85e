"""A PyTorch Lightning callback: hyperparameters, logged metrics and checkpoints of a fit, into the record of its run.

    trainer = Trainer(callbacks=[VaultCallback("resnet50")])

Needs `lightning` or `pytorch_lightning`. Only the first rank tells. Threads: those of Lightning.
"""

import os
from collections.abc import Mapping
from typing import Any

from vault.live_run import LiveRun, current_run

try:
    from lightning.pytorch.callbacks import Callback, Checkpoint
except ModuleNotFoundError:
    from pytorch_lightning.callbacks import Callback, Checkpoint


class VaultCallback(Callback):
    """Tells of a fit what Lightning knows of it."""

    def __init__(self, dataset: str = "", run: LiveRun | None = None) -> None:
        """Tell of a run.

        Args:
            dataset: where checkpoints are committed to, each when it is written; none are if it is empty.
            run: which; None is that of this process.
        """
        self._dataset = dataset
        self._run = run
        self._committed: dict[str, float] = {}

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Tell the hyperparameters."""
        if trainer.is_global_zero:
            self._run = self._run or current_run()
            self._run.log_params({**getattr(pl_module, "hparams", {})})

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Commit what was saved since: Lightning saves after all callbacks were asked."""
        self._commit(trainer)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Tell metrics as often as loggers get them."""
        if trainer.global_step % max(trainer.log_every_n_steps, 1) == 0:
            self._tell(trainer, trainer.logged_metrics)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Tell the metrics of the epoch."""
        self._tell(trainer, trainer.callback_metrics)

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Tell the metrics of a validation."""
        if not trainer.sanity_checking:
            self._tell(trainer, trainer.callback_metrics)

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        """Commit the last checkpoint, and send all."""
        self._commit(trainer)
        if self._run is not None and trainer.is_global_zero:
            self._run.flush()

    def _tell(self, trainer: Any, metrics: Mapping[str, Any]) -> None:
        if self._run is not None and trainer.is_global_zero:
            self._run.log_metrics({name: float(value) for name, value in metrics.items()}, step=trainer.global_step)

    def _commit(self, trainer: Any) -> None:
        if self._run is None or not self._dataset or not trainer.is_global_zero:
            return
        for callback in trainer.callbacks:
            if isinstance(callback, Checkpoint):
                for name in ("best_model_path", "last_model_path", "_last_checkpoint_saved"):
                    self._commit_one(getattr(callback, name, ""))

    def _commit_one(self, path: str) -> None:
        if not path or self._run is None or not os.path.exists(path):
            return
        saved = os.stat(path).st_mtime
        if self._committed.get(path) != saved:
            self._committed[path] = saved
            self._run.commit_output(path, self._dataset)
