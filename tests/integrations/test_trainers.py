"""Callbacks and joins with the real libraries, where they are installed, at a small size.

pip install torch lightning transformers accelerate mlflow-skinny wandb
"""

import importlib.util
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from vault.repo.repository import Repository
from vault.repo.run_model import Run
from vault.repo.runs import Runs
from vault.stores.registry import open_store
from vault.testing.mounts import Site

pytestmark = pytest.mark.slow


@pytest.fixture
def site(tmp_path) -> Site:
    return Site.make(str(tmp_path / "site"))


def needs(*names: str) -> None:
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} not installed")


def run(site: Site, folder: Path, text: str, *command: str, **variables: str) -> Run:
    path = folder / "train.py"
    path.write_text(textwrap.dedent(text))
    environment = {**site.environment(), "PYTHONWARNINGS": "ignore", "CUDA_VISIBLE_DEVICES": "", **variables}
    done = subprocess.run(
        [*command, sys.executable, str(path)] if not command else [*command, str(path)],
        cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=110,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    runs = Runs(open_store(site.store))
    [only] = {found for found, _ in runs.journals()}
    return runs.load(only)[0]


def labels(site: Site, dataset: str) -> set[str]:
    return set(Repository.open(open_store(site.store), site.cache).datasets.load(dataset).labels)


def test_lightning(site, tmp_path):
    needs("torch", "lightning")
    text = """
        import torch
        from lightning.pytorch import LightningModule, Trainer
        from lightning.pytorch.callbacks import ModelCheckpoint
        from vault.integrations.lightning import VaultCallback

        class Model(LightningModule):
            def __init__(self, lr=0.1):
                super().__init__()
                self.save_hyperparameters()
                self.layer = torch.nn.Linear(4, 1)
            def training_step(self, batch, index):
                loss = self.layer(batch).pow(2).mean()
                self.log("loss", loss)
                return loss
            def configure_optimizers(self):
                return torch.optim.SGD(self.parameters(), lr=self.hparams.lr)

        data = torch.utils.data.DataLoader(torch.randn(8, 4), batch_size=2)
        saves = ModelCheckpoint(dirpath="ckpts", every_n_train_steps=4, save_top_k=-1)
        Trainer(max_epochs=2, accelerator="cpu", logger=False, enable_progress_bar=False, log_every_n_steps=1,
                enable_model_summary=False, callbacks=[VaultCallback("model"), saves]).fit(Model(), data)
    """
    found = run(site, tmp_path, text)
    assert found.params["lr"] == "0.1"
    assert found.metrics["loss"].count >= 8 and found.metrics["loss"].last_step == 8
    assert {"step-4", "step-8"} <= labels(site, "model")
    assert {output.step for output in found.outputs} == {4, 8}


def test_transformers(site, tmp_path):
    needs("torch", "transformers", "accelerate")
    text = """
        import torch
        from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments
        from vault.integrations.transformers import VaultCallback

        model = BertForSequenceClassification(BertConfig(
            vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8))
        data = [{"input_ids": torch.tensor([1, 2, 3]), "labels": torch.tensor(n % 2)} for n in range(8)]
        arguments = TrainingArguments("out", max_steps=4, save_steps=2, logging_steps=1, per_device_train_batch_size=2,
                                      report_to=[], use_cpu=True, learning_rate=0.01, disable_tqdm=True)
        Trainer(model, arguments, train_dataset=data, callbacks=[VaultCallback("bert")]).train()
    """
    found = run(site, tmp_path, text, HF_HUB_OFFLINE="1")
    assert found.params["learning_rate"] == "0.01"
    assert found.metrics["loss"].count == 4
    assert {"step-2", "step-4"} <= labels(site, "bert")
    assert "model.safetensors" in site.vault("ls", "bert@step-4").stdout


def test_torchrun(site, tmp_path):
    """Two ranks over gloo below one `vault run`: one run, each rank's word, checkpoints once."""
    needs("torch")
    text = """
        import os, torch, torch.distributed as dist, vault
        dist.init_process_group("gloo")
        rank = dist.get_rank()
        value = torch.ones(1) * (rank + 1)
        dist.all_reduce(value)
        with vault.run() as run:
            run.log_metric(f"sum.rank{rank}", value, step=1)
        if rank == 0:
            os.makedirs("ckpts", exist_ok=True)
            torch.save({"w": value}, "ckpts/step_1.pt")
        dist.barrier()
        dist.destroy_process_group()
    """
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    found = run(
        site, tmp_path, text, *site.command("run", "-q", "--out", "ckpts=model", "--"), *torchrun, OMP_NUM_THREADS="1"
    )
    assert {name: metric.last for name, metric in found.metrics.items()} == {"sum.rank0": 3.0, "sum.rank1": 3.0}
    assert found.history[0].exit_status == 0 and len(found.history) == 1
    assert labels(site, "model") == {"step-1"}


def test_torchrun_that_starts_vault_run(site, tmp_path):
    """The other way round: a wrapper for each rank, and still one run."""
    needs("torch")
    script = tmp_path / "rank.sh"
    script.write_text("echo weights > out.pt\n")
    command = site.command("run", "-q", "--out", "out.pt=model", "--", "sh")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--no-python"]
    environment = {**site.environment(), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*torchrun, *command, str(script)], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    runs = Runs(open_store(site.store))
    [only] = {found for found, _ in runs.journals()}
    found = runs.load(only)[0]
    assert len(found.history) == 2 and found.attempts == 1 and len(found.outputs) == 1


def test_mlflow(site, tmp_path):
    needs("mlflow")
    text = """
        import mlflow
        from vault.integrations.mlflow import join
        mlflow.set_tracking_uri("file:mlruns")
        with mlflow.start_run() as active:
            run = join()
            assert mlflow.get_run(active.info.run_id).data.tags["vault.run"] == run.id
            open("id", "w").write(active.info.run_id)
    """
    found = run(site, tmp_path, text, MLFLOW_ALLOW_FILE_STORE="true")
    assert found.trackers["MLFLOW_RUN_ID"] == (tmp_path / "id").read_text()


def test_wandb(site, tmp_path):
    needs("wandb")
    text = """
        import wandb
        from vault.integrations.wandb import join
        active = wandb.init(mode="offline", project="p")
        run = join()
        assert active.config["vault_run"] == run.id
        open("id", "w").write(active.id)
        wandb.finish()
    """
    found = run(site, tmp_path, text)
    assert (found.trackers["WANDB_RUN_ID"], found.trackers["WANDB_PROJECT"]) == ((tmp_path / "id").read_text(), "p")


@pytest.mark.parametrize(("name", "call"), [("mlflow", "mlflow"), ("wandb", "wandb")])
def test_nothing_to_join_is_an_error_that_says_what_to_do(site, tmp_path, name, call):
    needs(name)
    text = f"""
        from vault.errors import UsageError
        from vault.integrations.{call} import join
        import vault
        vault.run()
        try:
            join()
        except UsageError as error:
            assert "is active" in str(error)
        else:
            raise SystemExit("no error")
    """
    run(site, tmp_path, text)
