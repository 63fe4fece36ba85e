"""Which environment variables of a run are kept: those on a list of names that change what a training computes.

Determinism, threads, CUDA, NCCL and their kin, ranks, seeds, where modules and libraries are looked for. A name or value
that looks like a secret is never kept, on the list or not. Threads: pure.
"""

import re
from collections.abc import Mapping
from typing import Final

from vault.capture.launchers import RANKS
from vault.capture.redaction import HIDDEN, is_secret_name, looks_secret, redact_text

VARIABLES_MAX: Final = 64
_VALUE_LENGTH_MAX: Final = 1024
_NAMES: Final = (
    *("PYTHONHASHSEED", "CUBLAS_WORKSPACE_CONFIG", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "MKL_NUM_THREADS"),
    *("OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS", "VECLIB_MAXIMUM_THREADS", "SEED", "RANDOM_SEED", "GLOBAL_SEED"),
    *("PL_GLOBAL_SEED", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", *RANKS),
    *("TORCHELASTIC_RUN_ID", "SLURM_JOB_ID", "SLURM_NTASKS", "SLURM_JOB_NUM_NODES", "SLURM_CPUS_PER_TASK", "TZ", "LANG"),
    *("LC_ALL", "PYTHONPATH", "PYTHONHOME", "PYTHONOPTIMIZE", "LD_LIBRARY_PATH", "LD_PRELOAD", "VIRTUAL_ENV"),
    *("CONDA_PREFIX", "CONDA_DEFAULT_ENV", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE", "XLA_FLAGS"),
    *("TOKENIZERS_PARALLELISM", "NVIDIA_VISIBLE_DEVICES", "NVIDIA_TF32_OVERRIDE", "HIP_VISIBLE_DEVICES"),
    *("ROCR_VISIBLE_DEVICES", "CUDNN_DETERMINISTIC", "FLAGS_cudnn_deterministic"),
)
_PREFIXES: Final = re.compile(
    r"(?!TF_CLI_|TF_VAR_)(?:NCCL|RCCL|CUDA|CUDNN|CUBLAS|OMP|KMP|GOMP|MKL|OPENBLAS|TORCH|TORCHINDUCTOR|PYTORCH|TF|JAX|XLA|GLOO|UCX|HSA|MIOPEN"
    r"|DNNL|ONEDNN|ACCELERATE|DEEPSPEED|MALLOC)_[A-Z0-9_]{1,64}\Z"
)


def keep_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """Return those of a process's variables that are kept, cut to size."""
    kept = {name: environment[name] for name in _NAMES if environment.get(name)}
    kept |= {name: value for name, value in sorted(environment.items()) if value and _PREFIXES.match(name)}
    return {name: _shown(name, value) for name, value in list(kept.items())[:VARIABLES_MAX]}


def _shown(name: str, value: str) -> str:
    if is_secret_name(name) or looks_secret(value):
        return HIDDEN
    return redact_text(value)[:_VALUE_LENGTH_MAX]
