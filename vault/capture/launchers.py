"""Every launcher that gives its job an ID: how to read that ID from control groups, variables and command lines.

A launcher's rule turns a Sighting into a Claim, or None if the process is not its child. Rules are tried in the order of
CONTAINED and LAUNCHED; a run ID that many hosts must agree on is made of the launcher's own ID alone, an ID that could be
anybody's (`--rdzv-id 100`) is mixed with what tells two jobs apart. Trackers do not name runs: their IDs are noted beside.
Values are copied from an allow-list of names only; one that may be a secret is kept as a keyed hash. Threads: pure.
The table with sources and caveats is in docs/explanation/whose-read-is-it.md.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from blake3 import blake3

from vault.capture.proc import Sighting
from vault.capture.process_tree import find_root, script_name
from vault.clock import format_time

DETAIL_LENGTH_MAX: Final = 256
_NOT_IN_RUN_ID = re.compile(r"[^A-Za-z0-9._=+-]+|\.{2,}")


@dataclass(frozen=True, slots=True)
class Host:
    """What the rules must know of the machine that they run on. The same for every worker of a mount."""

    name: str
    boot_id: str
    boot_time_s: int  # wall clock at which start_ticks counts from 0
    ticks_per_s: int
    store_id: str  # the key of hashes: the same value hashes differently in another store
    cluster: str = ""  # ClusterName of this machine's slurm.conf


@dataclass(frozen=True, slots=True)
class Claim:
    """A launcher's word on whose process it is."""

    how: str
    run: str
    details: Mapping[str, str] = field(default_factory=dict)
    attempt: str = ""  # the launcher's count of restarts
    disagreement: str = ""
    is_tree: bool = False  # the ID names the root of a process tree, not something that the launcher gave out


def slug(text: str, length_max: int = 60) -> str:
    """Return text as a part of a run ID; with a hash of the original where a character was lost."""
    clean = _NOT_IN_RUN_ID.sub("_", text).lstrip("._=+-") or "x"
    if clean == text and len(text) <= length_max:
        return text
    return f"{clean[:length_max]}-{blake3(text.encode(errors='replace')).hexdigest(length=4)}"


def keyed_hash(host: Host, *parts: str, length: int = 8) -> str:
    """Return hex digits that stand for parts, different in every store."""
    key = blake3(host.store_id.encode(), derive_key_context="vaultfs 2026 run identity").digest()
    return blake3("\0".join(parts).encode(errors="replace"), key=key).hexdigest(length=length)


def pick(environment: Mapping[str, str], *names: str) -> dict[str, str]:
    """Return those of the named variables that are set, cut to size."""
    return {name: environment[name][:DETAIL_LENGTH_MAX] for name in names if environment.get(name)}


# --- schedulers: the control group first, since a job cannot change it, then the variables

_SLURM_V2 = re.compile(
    r"(?:/\.\.)*/system\.slice/(?:[^/]+_)?slurmstepd\.scope/job_(\d{1,20})(?:/step_([A-Za-z0-9+]{1,32}))?(?:/|\Z)"
)
_SLURM_V1 = re.compile(r"(?:/\.\.)*/slurm(?:_[^/]+)?/uid_\d+/job_(\d{1,20})(?:/step_([A-Za-z0-9+]{1,32}))?(?:/|\Z)")
_SLURM_TITLE = re.compile(r"slurmstepd: \[(\d{1,20})\.([A-Za-z0-9+]{1,32})\]")
_SLURM_NAMES: Final = (
    "SLURM_JOB_NAME SLURM_ARRAY_JOB_ID SLURM_ARRAY_TASK_ID SLURM_HET_SIZE SLURM_JOB_PARTITION SLURM_JOB_ACCOUNT "
    "SLURM_JOB_NUM_NODES SLURM_NTASKS SLURM_CLUSTER_NAME"
).split()


def slurm(sighting: Sighting, host: Host) -> Claim | None:
    """Slurm: job of the control group (v2 and v1), else SLURM_JOB_ID. Array tasks have job IDs of their own."""
    environment = sighting.environment
    told = environment.get("SLURM_JOB_ID") or environment.get("SLURM_JOBID", "")
    if not told.isascii() or not told.isdigit():
        told = ""
    match = next((m for path in sighting.cgroups if (m := _SLURM_V2.match(path) or _SLURM_V1.match(path))), None)
    if not match and not told:
        # Slurm's own process above says it in its title, also where the job's variables are gone.
        titles = (p.command[0] for p in sighting.chain if p.name == "slurmstepd" and p.command)
        match = next((m for title in titles if (m := _SLURM_TITLE.match(title))), None)
    job = match[1] if match else told
    if not job:
        return None
    details = {"job": job}
    disagreement = ""
    if match and told and told != job:
        # variables of another job say nothing about this one
        disagreement = f"SLURM_JOB_ID says {told}, the control group {job}"
        environment = {}
    details |= pick(environment, *_SLURM_NAMES)
    step = (match[2] if match else None) or environment.get("SLURM_STEP_ID")
    if step:
        details["step"] = step[:DETAIL_LENGTH_MAX]
    cluster = (host.cluster or environment.get("SLURM_CLUSTER_NAME", "")).lower()
    run = f"slurm-{slug(cluster, 32)}-{job}" if cluster else f"slurm-{job}"
    how = "slurm variables" if not match else "slurm step" if match.re is _SLURM_TITLE else "slurm control group"
    return Claim(how, run, details, environment.get("SLURM_RESTART_COUNT", "")[:16], disagreement)


def lsf(sighting: Sighting, host: Host) -> Claim | None:
    """IBM LSF: LSB_JOBID, and LSB_JOBINDEX of an array."""
    environment = sighting.environment
    job = environment.get("LSB_JOBID") or environment.get("LSB_BATCH_JID", "")
    if not job:
        return None
    index = environment.get("LSB_JOBINDEX", "0")
    run = f"lsf-{slug(job)}" + (f"-{slug(index, 16)}" if index not in ("", "0") else "")
    return Claim("lsf variables", run, pick(environment, "LSB_JOBNAME", "LSB_QUEUE", "LSB_SUB_HOST", "LSB_JOBINDEX"))


def pbs(sighting: Sighting, host: Host) -> Claim | None:
    """PBS and Torque: PBS_JOBID, `123.server` or `123[4].server`."""
    job = sighting.environment.get("PBS_JOBID", "")
    if not job:
        return None
    names = ("PBS_JOBNAME", "PBS_QUEUE", "PBS_ARRAY_INDEX", "PBS_ARRAYID")
    plain = re.sub(r"\[(\d*)\]", r".\1", job)
    return Claim("pbs variables", f"pbs-{slug(plain, 80)}", pick(sighting.environment, *names))


def sge(sighting: Sighting, host: Host) -> Claim | None:
    """Grid Engine: JOB_ID, believed only beside its other variables, since the name could be anybody's."""
    environment = sighting.environment
    job = environment.get("JOB_ID", "")
    if not job.isdigit() or not (environment.get("SGE_TASK_ID") or environment.get("SGE_ROOT")):
        return None
    task = environment.get("SGE_TASK_ID", "undefined")
    cell = environment.get("SGE_CLUSTER_NAME") or environment.get("SGE_CELL", "")
    run = "-".join(["sge", *([slug(cell, 32)] if cell else []), job[:20], *([task] if task.isdigit() else [])])
    return Claim(
        "sge variables", run, pick(environment, "JOB_NAME", "QUEUE", "SGE_TASK_ID"), environment.get("RESTARTED", "")
    )


def htcondor(sighting: Sighting, host: Host) -> Claim | None:
    """HTCondor: the job's scratch directory on this host. Its ad file is not opened: a job may have put a trap there."""
    environment = sighting.environment
    ad = environment.get("_CONDOR_JOB_AD") or environment.get("_CONDOR_SCRATCH_DIR", "")
    if not ad:
        return None
    root = sighting.chain[find_root(sighting.chain)]
    run = f"htcondor-{slug(host.name.partition('.')[0], 32)}-{keyed_hash(host, host.boot_id, ad, *map(str, root.key))}"
    return Claim("htcondor variables", run, pick(environment, "_CONDOR_SLOT"))


def flux(sighting: Sighting, host: Host) -> Claim | None:
    """Flux: FLUX_JOB_ID, whose first letter may be a florin sign."""
    job = sighting.environment.get("FLUX_JOB_ID", "").replace("ƒ", "f")
    if not job:
        return None
    names = ("FLUX_JOB_SIZE", "FLUX_JOB_NNODES", "FLUX_JOB_NAME")
    return Claim("flux variables", f"flux-{slug(job)}", pick(sighting.environment, *names))


# --- containers

_POD_SYSTEMD = re.compile(
    r"/(?:kubelet-)?kubepods(?:-[a-z]+)?-pod([0-9a-f]{8}(?:_[0-9a-f]{4}){3}_[0-9a-f]{12}|[0-9a-f]{32})\.slice(?:/|\Z)"
)
_POD_CGROUPFS = re.compile(
    r"/kubepods(?:\.slice)?(?:/[a-z]+)?/pod([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}|[0-9a-f]{32})(?:/|\Z)"
)
_CONTAINER = re.compile(r"(?:^|[/-])([0-9a-f]{64})(?:\.scope)?(?:/|\Z)")


def pod(sighting: Sighting, host: Host) -> Claim | None:
    """Kubernetes: the pod UID of the control group, with the systemd and the cgroupfs driver. A restart keeps the UID."""
    for path in sighting.cgroups:
        if path.startswith("/user.slice/"):
            continue  # there a user may make any folder
        # The outermost match counts: a container may make folders below its own.
        match = min(
            filter(None, (_POD_SYSTEMD.search(path), _POD_CGROUPFS.search(path))), key=lambda m: m.start(), default=None
        )
        if match is None:
            continue
        details = pick(sighting.environment, "JOB_COMPLETION_INDEX", "PET_NNODES", "PET_NODE_RANK", "PET_MASTER_ADDR")
        if name := sighting.environment.get("HOSTNAME"):
            details["pod"] = name[:DETAIL_LENGTH_MAX]
        if container := _CONTAINER.search(path, match.end() - 1):
            details["container"] = container[1]
        return Claim("pod control group", f"pod-{match[1].replace('_', '-')}", details)
    return None


# --- launchers inside of a job, and those that people start by hand


def torchelastic(sighting: Sighting, host: Host) -> Claim | None:
    """torchrun. Its ID is `none` unless asked for, and then often a number from a tutorial: never trusted alone.

    On one node the process tree tells jobs apart; on several only the rendezvous is the same everywhere.
    """
    environment = sighting.environment
    given = environment.get("TORCHELASTIC_RUN_ID")
    if given is None:
        return None
    names = ("WORLD_SIZE", "GROUP_WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "ROLE_NAME")
    details = pick(environment, *names)
    attempt = environment.get("TORCHELASTIC_RESTART_COUNT", "")[:16]
    if environment.get("GROUP_WORLD_SIZE", "1") == "1":
        return _tree_claim("torchelastic", sighting, host, details, attempt)
    where = f"{environment.get('MASTER_ADDR', '')}:{environment.get('MASTER_PORT', '')}"
    # A long ID is random and stays over restarts, which move the rendezvous; a short one needs the rendezvous.
    parts = (given,) if len(given) >= 16 else (given, where, str(sighting.uid))
    return Claim("torchelastic", f"torch-{keyed_hash(host, *parts)}", details, attempt)


_RAY_SESSION = re.compile(r"session_\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d_\d{1,9}_\d{1,9}")


def ray(sighting: Sighting, host: Host) -> Claim | None:
    """Ray: the session of the cluster, named alike on all nodes; the process tree of a driver that started Ray itself.

    RAY_JOB_ID does not tell jobs apart: workers are started before they are given a job, and show ffffffff for ever.
    """
    environment = sighting.environment
    raylet = next((index for index, process in enumerate(sighting.chain) if process.program == "raylet"), None)
    if raylet is None and not environment.get("RAY_RAYLET_PID"):
        return None
    details = pick(environment, "RAY_JOB_ID")
    if raylet is None:
        return Claim("ray", f"ray-{keyed_hash(host, host.boot_id, environment['RAY_RAYLET_PID'])}", details)
    above = sighting.chain[raylet + 1 : find_root(sighting.chain) + 1]
    if above and not any(script_name(process.command) == "ray" for process in above):
        return _tree_claim("ray", sighting, host, details)
    words = sighting.chain[raylet].command
    session = next((match[0] for word in words if (match := _RAY_SESSION.search(word))), "")
    return Claim("ray", f"ray-{keyed_hash(host, session or f'{host.boot_id} {sighting.chain[raylet].key}')}", details)


def pals(sighting: Sighting, host: Host) -> Claim | None:
    """HPE PALS: PALS_APID, a UUID."""
    job = sighting.environment.get("PALS_APID", "")
    return Claim("pals", f"pals-{slug(job)}", pick(sighting.environment, "PALS_RANKID", "PALS_NODEID")) if job else None


def pmix(sighting: Sighting, host: Host) -> Claim | None:
    """Open MPI and others that speak PMIx: its namespace, and where mpiexec listens; on one node the process tree."""
    environment = sighting.environment
    namespace = environment.get("PMIX_NAMESPACE", "")
    if not namespace:
        return None
    details = pick(environment, "PMIX_NAMESPACE", "OMPI_COMM_WORLD_SIZE", "PMIX_HOSTNAME")
    size = environment.get("OMPI_COMM_WORLD_SIZE")
    if size and size == environment.get("OMPI_COMM_WORLD_LOCAL_SIZE"):
        return _tree_claim("pmix", sighting, host, details)
    # Open MPI 4 makes the namespace of 16 bits of the launcher's host and process; its address tells more.
    launcher = environment.get("OMPI_MCA_orte_hnp_uri", "")
    return Claim("pmix", f"mpi-{keyed_hash(host, namespace, launcher, str(sighting.uid))}", details)


def hydra(sighting: Sighting, host: Host) -> Claim | None:
    """MPICH and Intel MPI: the control port of mpiexec, which every node's proxy is told; on one node the process tree."""
    environment = sighting.environment
    if not environment.get("PMI_RANK") and not environment.get("PMI_ID"):
        return None
    details = pick(environment, "PMI_SIZE")
    if environment.get("PMI_SIZE") != environment.get("MPI_LOCALNRANKS"):
        for process in sighting.chain:
            if process.program.startswith(("hydra_pmi_proxy", "hydra_bstrap_proxy")):
                for option, value in zip(process.command, process.command[1:], strict=False):
                    if option in ("--control-port", "--upstream-host"):
                        return Claim("hydra", f"mpi-{keyed_hash(host, value, str(sighting.uid))}", details)
    return _tree_claim("hydra", sighting, host, details)


def sagemaker(sighting: Sighting, host: Host) -> Claim | None:
    """SageMaker: the training job's name."""
    environment = sighting.environment
    name = environment.get("TRAINING_JOB_NAME", "")
    if not name and (text := environment.get("SM_TRAINING_ENV")):
        try:
            told = json.loads(text)
        except ValueError:
            told = None
        found = told.get("job_name") if isinstance(told, dict) else None
        # The text is cut at some kilobytes; the name stands near its end or front, so look for it by itself too.
        match = re.search(r'"job_name"\s*:\s*"([A-Za-z0-9-]{1,63})"', text)
        name = found if isinstance(found, str) else match[1] if match else ""
    if not name:
        return None
    return Claim("sagemaker", f"sagemaker-{slug(name, 80)}", pick(environment, "SM_CURRENT_HOST", "TRAINING_JOB_ARN"))


def github_actions(sighting: Sighting, host: Host) -> Claim | None:
    """GitHub Actions: repository and run."""
    environment = sighting.environment
    repository, number = environment.get("GITHUB_REPOSITORY", ""), environment.get("GITHUB_RUN_ID", "")
    if not repository or not number.isdigit():
        return None
    details = pick(environment, "GITHUB_REPOSITORY", "GITHUB_JOB", "GITHUB_SHA", "GITHUB_WORKFLOW", "RUNNER_NAME")
    run = f"github-{slug(repository.replace('/', '.'), 64)}-{number[:20]}"
    return Claim("github actions", run, details, environment.get("GITHUB_RUN_ATTEMPT", "")[:16])


_KERNEL_FILE = re.compile(r"(?:^|/)kernel-([0-9a-f-]{8,36})\.json\Z")


def jupyter(sighting: Sighting, host: Host) -> Claim | None:
    """Jupyter: the connection file of the nearest kernel above. Which cell reads cannot be seen."""
    for process in sighting.chain:
        for word in process.command[1:]:
            if match := _KERNEL_FILE.search(word):
                return Claim("jupyter", f"jupyter-{match[1]}", pick(sighting.environment, "JPY_SESSION_NAME"))
    return None


def tree_run(host: Host, key: tuple[int, int]) -> str:
    """Return the run ID of a process tree by its root. Every worker derives the same one without talking."""
    pid, ticks = key
    started = format_time((host.boot_time_s + ticks // host.ticks_per_s) * 1_000_000_000)[:19]
    digits = keyed_hash(host, host.boot_id, str(pid), str(ticks), length=3)
    name = slug(host.name.partition(".")[0], 32)
    return f"adhoc-{name}-{started.replace('-', '').replace(':', '')}-{pid}-{digits}"


def _tree_claim(how: str, sighting: Sighting, host: Host, details: Mapping[str, str], attempt: str = "") -> Claim:
    root = sighting.chain[find_root(sighting.chain)]
    return Claim(how, tree_run(host, root.key), details, attempt, is_tree=True)


Rule = Callable[[Sighting, Host], Claim | None]
SCHEDULERS: Final[tuple[Rule, ...]] = (slurm, lsf, pbs, sge, htcondor, flux)
CONTAINERS: Final[tuple[Rule, ...]] = (pod,)
FRAMEWORKS: Final[tuple[Rule, ...]] = (torchelastic, ray, pals, pmix, hydra, sagemaker, github_actions, jupyter)

# --- trackers: noted beside the run, never its name

_TRACKERS: Final = {
    "wandb": ("WANDB_RUN_ID", "WANDB_ENTITY", "WANDB_PROJECT", "WANDB_RUN_GROUP", "WANDB_SWEEP_ID"),
    "mlflow": ("MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID"),
    "clearml": ("CLEARML_TASK_ID", "TRAINS_TASK_ID"),
    "dvc": ("DVC_EXP_NAME", "DVC_EXP_BASELINE_REV"),
    "flyte": ("FLYTE_INTERNAL_EXECUTION_PROJECT", "FLYTE_INTERNAL_EXECUTION_DOMAIN", "FLYTE_ATTEMPT_NUMBER"),
    "metaflow": ("METAFLOW_FLOW_NAME", "METAFLOW_RUN_ID", "METAFLOW_STEP_NAME", "METAFLOW_TASK_ID"),
}
_HASHED: Final = ("FLYTE_INTERNAL_EXECUTION_ID", "WANDB_LAUNCH_TRACE_ID")  # seen in use as tokens


def trackers(environment: Mapping[str, str], host: Host) -> dict[str, str]:
    """Return the IDs that experiment trackers set in a process's variables."""
    found: dict[str, str] = {}
    for names in _TRACKERS.values():
        found |= pick(environment, *names)
    if environment.get("GUILD_OP"):
        found |= pick(environment, "GUILD_OP", "RUN_ID")
    for name in _HASHED:
        if value := environment.get(name):
            found[f"{name}_HASH"] = keyed_hash(host, value, length=16)
    return found


RANKS: Final = (
    *("RANK", "LOCAL_RANK", "GROUP_RANK", "NODE_RANK", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID", "SLURMD_NODENAME"),
    *("PMIX_RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "PALS_RANKID", "PET_NODE_RANK", "JOB_COMPLETION_INDEX"),
    *("TORCHELASTIC_RESTART_COUNT", "SLURM_STEP_ID", "FLUX_TASK_RANK"),
)
