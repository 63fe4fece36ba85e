"""A callback for the Hugging Face Trainer: arguments, logged metrics and checkpoints, into the record of its run.

    Trainer(..., callbacks=[VaultCallback("bert")])

Needs `transformers`. Only the first rank tells. Threads: those of the Trainer.
"""

import os
from typing import Any

from transformers import TrainerCallback

from vault.live_run import LiveRun, current_run


class VaultCallback(TrainerCallback):
    """Tells of a training what the Trainer knows of it."""

    def __init__(self, dataset: str = "", run: LiveRun | None = None) -> None:
        """Tell of a run.

        Args:
            dataset: where checkpoints are committed to, each when it is written; none are if it is empty.
            run: which; None is that of this process.
        """
        self._dataset = dataset
        self._run = run

    def on_train_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """Tell the arguments: those that are set, without what may be a secret."""
        if state.is_world_process_zero:
            self._run = self._run or current_run()
            known = args.to_sanitized_dict()
            self._run.log_params({name: value for name, value in known.items() if value not in (None, "", "None")})

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **more: Any) -> None:
        """Tell what is logged, as far as it is numbers."""
        if self._run is not None and state.is_world_process_zero:
            numbers = {name: value for name, value in (logs or {}).items() if isinstance(value, int | float)}
            self._run.log_metrics(numbers, step=state.global_step)

    def on_save(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """Commit the checkpoint that was just written."""
        folder = os.path.join(args.output_dir, f"checkpoint-{state.global_step}")
        if self._run is not None and self._dataset and state.is_world_process_zero and os.path.isdir(folder):
            self._run.commit_output(folder, self._dataset, step=state.global_step)

    def on_train_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """Send all."""
        if self._run is not None and state.is_world_process_zero:
            self._run.flush()
