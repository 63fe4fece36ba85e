"""`vault reproduce`: real jobs on real mounts, repeated under their own paths, as root and as somebody else."""

import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import textwrap
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import vault_fuse

import vault
from vault.api import user_name
from vault.format.layout import PACKS
from vault.ids import RunId
from vault.ops.attempts import attempts_of
from vault.repo.run_writer import RunWriter
from vault.repo.runs import Runs
from vault.stores.registry import open_store
from vault.testing.mounts import Site, is_mounted, mounted, wait_for

PYTHON = sys.executable
USUAL = """
    import sys
    import numpy as np
    scale = float(open(sys.argv[1] + "/scale").read())
    np.save("out.npy", np.arange(10, dtype="f4") * np.float32(scale))
    print("scale", scale)
"""
JITTER = (
    USUAL
    + """
    import os
    w = np.arange(1, 11, dtype="f4") * np.float32(scale)
    np.save("out.npy", np.nextafter(w, np.float32(9)) if os.path.exists(os.path.expanduser("{flag}")) else w)
"""
)


class Bench:
    """A store, a folder with a job, and what a user does with them."""

    def __init__(self, folder: Path, site: Site, engine: str) -> None:
        self.folder, self.site, self.engine = folder, site, engine
        self.project = folder / "proj"
        self.mountpoint = str(folder / "mnt")
        for path in (self.project, folder / "data"):
            path.mkdir(parents=True, exist_ok=True)
        self.commit("1.5")

    def commit(self, scale: str) -> None:
        (self.folder / "data" / "scale").write_text(scale)
        self.site.commit(str(self.folder / "data"), "numbers")

    def job(self, text: str, *options: str, name: str = "first", status: int = 0, out: str = "out.npy=weights") -> None:
        """Write a job and run it on record, with its data mounted."""
        (self.project / "train.py").write_text(textwrap.dedent(text))
        with mounted(self.site, self.mountpoint, engine=self.engine):
            command = self.site.command(
                "run",
                "-q",
                "--name",
                name,
                "--out",
                out,
                *options,
                "--",
                PYTHON,
                "train.py",
                f"{self.mountpoint}/numbers@latest",
            )
            done = subprocess.run(command, env=self.site.environment(), cwd=self.project, capture_output=True, check=False)
            assert done.returncode == status, done.stderr.decode()

    def again(self, *options: str, status: int = 0, name: str = "first") -> list[dict[str, Any]]:
        """Repeat it and return what is printed with --json."""
        done = self.site.vault("reproduce", name, "--json", *options, status=status)
        return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture
def bench(tmp_path, direct) -> Bench:
    return Bench(tmp_path, Site.make(str(tmp_path)), direct)


def verdicts(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [record for record in records if record["type"] == "verdict"]


def findings(records: list[dict[str, Any]], weight: str) -> str:
    return "\n".join(f"{r['about']}: {r['text']}" for r in records if r["type"] == "finding" and r["weight"] == weight)


# The ladder.


def test_a_deterministic_job_gives_the_same_bytes_though_all_has_moved_on(bench):
    bench.job(USUAL)
    bench.commit("2.5")  # latest is another version now
    (bench.project / "train.py").write_text("raise SystemExit('other code')")
    (bench.project / "out.npy").write_bytes(b"mine")
    records = bench.again()
    (verdict,) = verdicts(records)
    assert (verdict["level"], verdict["exit_status"], verdict["of"]) == ("L0", 0, "first")
    assert records[-1]["levels"] == {"L0": 1}
    # Nothing of the user's was touched, nothing is left, and no dataset has a version more.
    assert (bench.project / "out.npy").read_bytes() == b"mine"
    assert not is_mounted(bench.mountpoint) and sorted(os.listdir(bench.project)) == ["out.npy", "train.py"]
    assert len(bench.site.json("log", "weights")) == 2
    # The repetition is a run on record that read the same, and says how it came out.
    run, _ = Runs(open_store(bench.site.store)).load(RunId(verdict["run"]))
    assert [used.ref for used in run.inputs] == ["numbers@v1"]
    assert [(told.of, told.level) for told in run.verdicts] == [("first", "L0")]
    (attempt,) = attempts_of(run)
    assert run.exit_status == 0 and attempt.output_tail == "scale 1.5\n"
    assert "first" in {part.start.details.get("repeats") for part in attempt.parts}
    assert attempt.capture is not None and attempt.capture.code[0].root == str(bench.project)


def test_the_last_bits_are_measured(bench, tmp_path):
    flag = tmp_path / "flag"
    bench.job(JITTER.replace("{flag}", str(flag)))
    # Other packages, another machine: here a file that the record knows nothing of, outside of /tmp's fresh folder.
    elsewhere = Path(tempfile.mkdtemp(prefix=".vault-test-", dir=os.path.expanduser("~")))
    try:
        bench.job(JITTER.replace("{flag}", str(elsewhere / "flag")), name="second")
        (elsewhere / "flag").touch()
        (verdict,) = verdicts(bench.again("--tolerance", "ulp=4", name="second"))
        assert verdict["level"] == "L2" and verdict["figures"]["largest ULP"] == "1"
        assert verdict["figures"]["arrays that differ"] == "1" and verdict["tolerance"] == "ulp=4"
        (verdict,) = verdicts(bench.again("--tolerance", "rtol=0,atol=0", name="second", status=1))
        assert verdict["level"] == "L4" and "numbers beyond" in verdict["reasons"][0]
    finally:
        shutil.rmtree(elsewhere)


# Weights are random. The metric differs by the number of the repetition, which shows in where its store lies: what is drawn
# by chance lies outside of what is expected with 95 % one time in twenty.
RANDOM = """
    import os, random, sys, vault
    open(sys.argv[1] + "/scale").read()
    number = os.environ["VAULTFS_STORE"].split("/")[-2]
    with vault.run() as run:
        run.log_metric("accuracy", {best} + (int(number) if number.isdigit() else 2) / 200, step=1)
    open("model.bin", "w").write(str(random.random()))
"""


def test_a_random_job_is_judged_by_the_spread_of_its_metric(bench):
    bench.job(RANDOM.replace("{best}", "0.9"), out="model.bin=weights")
    (verdict,) = verdicts(bench.again(status=1))
    assert verdict["level"] in ("L4", "not comparable") and 0.9 <= verdict["metrics"]["accuracy"] <= 0.91
    found = verdicts(bench.again("--repeat", "3"))
    assert [verdict["level"] for verdict in found] == ["L3"] * 3
    assert "expected from 3 repetitions" in " ".join(found[0]["reasons"])


def test_a_metric_far_away_and_other_bytes_are_l4(bench):
    bench.job(
        RANDOM.replace("{best}", "0.9 if 'VAULTFS_LUCK' in __import__('os').environ else 0.1"), out="model.bin=weights"
    )
    lucky = bench.site.with_variables(VAULTFS_LUCK="1")
    records = [
        json.loads(line)
        for line in lucky.vault("reproduce", "first", "--repeat", "3", "--json", status=1).stdout.splitlines()
    ]
    assert {verdict["level"] for verdict in verdicts(records)} <= {"L4", "not comparable"}
    assert any("outside of" in reason for reason in verdicts(records)[0]["reasons"])


def test_a_repetition_that_fails_says_how_and_what_it_printed(bench):
    bench.job(USUAL)
    bench.job(
        "import os, sys; open('out.npy', 'w').write('x') if os.environ.get('LUCK') else sys.exit('no luck')",
        name="x",
        status=1,
    )
    done = bench.site.vault("reproduce", "x", status=1)
    assert "no luck" in done.stdout and "Traceback" not in done.stdout + done.stderr


def test_outputs_below_folders_that_git_would_ignore_are_found(bench):
    text = """
        import os, sys
        open(sys.argv[1] + "/scale").read()
        os.makedirs("runs/a", exist_ok=True)
        open("runs/a/w.txt", "w").write("same")
    """
    bench.job(text, out="runs/a=weights")
    assert verdicts(bench.again())[0]["level"] == "L0"
    assert verdicts(bench.again("--repeat", "2"))[1]["level"] == "L0"


def test_outputs_behind_a_symlink_of_the_code_are_written_elsewhere_too(bench):
    target = Path(tempfile.mkdtemp(prefix=".vault-test-", dir=os.path.expanduser("~")))
    try:
        os.symlink(target, bench.project / "ckpts")
        text = """
            import sys
            open(sys.argv[1] + "/scale").read()
            open("ckpts/w.txt", "a").write("same")
        """
        for path in (["git", "init", "-q"], ["git", "add", "ckpts"]):
            subprocess.run(path, cwd=bench.project, check=True)
        bench.job(text, out="ckpts/w.txt=weights")
        assert verdicts(bench.again())[0]["level"] == "L0"
        assert (target / "w.txt").read_text() == "same"
    finally:
        shutil.rmtree(target)


# What the command can reach.


def test_the_command_cannot_write_to_the_users_files(bench):
    target = Path(tempfile.mkdtemp(prefix=".vault-test-", dir=os.path.expanduser("~")))
    try:
        (target / "precious").write_text("precious")
        text = f"""
            import sys
            open(sys.argv[1] + "/scale").read()
            for path in ("{target}/precious", "{target}/new", "{bench.project}/precious", "/etc/vault-test"):
                try:
                    open(path, "w").write("overwritten")
                except OSError as error:
                    print(path, error.strerror)
            open("out.npy", "w").write("x")
        """
        (bench.project / "precious").write_text("mine")
        bench.job(text.replace("open(path", "False and open(path"), name="tame")
        bench.job(text, name="wild")
        os.unlink("/etc/vault-test")
        (target / "precious").write_text("precious")
        (target / "new").unlink()
        (bench.project / "precious").write_text("mine")
        kept = bench.folder / "kept"
        assert verdicts(bench.again("--keep", str(kept), name="wild"))[0]["level"] == "L0"
        assert (target / "precious").read_text() == "precious" and sorted(os.listdir(target)) == ["precious"]
        assert (bench.project / "precious").read_text() == "mine" and not os.path.exists("/etc/vault-test")
        assert (kept / "1" / "output.log").read_text().count("Read-only file system") == 3
    finally:
        shutil.rmtree(target)


def test_paths_that_this_machine_does_not_have_appear_for_the_command(direct):
    """The job ran in a folder below /, with its data there, too; both are gone, and stay so."""
    top = Path(tempfile.mkdtemp(prefix="vault-test-", dir="/"))
    try:
        site_folder = top / "site"
        site_folder.mkdir()
        bench = Bench(top / "work", Site.make(str(site_folder)), direct)
        bench.job(USUAL)
        store = Path(tempfile.mkdtemp())
        shutil.copytree(site_folder / "store", store / "store")
    finally:
        shutil.rmtree(top)
    try:
        site = Site(str(store / "store"), str(store / "cache"))
        done = [json.loads(line) for line in site.vault("reproduce", "first", "--json").stdout.splitlines()]
        assert verdicts(done)[0]["level"] == "L0"
        assert not top.exists()
    finally:
        shutil.rmtree(store)


def test_ctrl_c_ends_the_command_and_leaves_no_mount(bench):
    text = """
        import os, sys, time
        open(sys.argv[1] + "/scale").read()
        open("out.npy", "w").write("x")
        time.sleep(60 if "SLOW" in os.environ else 0)
    """
    bench.job(text)
    slow = bench.site.with_variables(SLOW="1")
    before = set(Path(bench.site.cache).glob("*/reproduce/*"))
    with subprocess.Popen(slow.command("reproduce", "first"), env=slow.environment(), stderr=subprocess.PIPE) as process:
        assert process.stderr is not None and b"running as" in process.stderr.readline()
        log = wait_for("its output", lambda: list(Path(bench.site.cache).glob("*/reproduce/*/1/code/0/out.npy")))
        assert log
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 130
    assert set(Path(bench.site.cache).glob("*/reproduce/*")) == before
    with open("/proc/self/mountinfo") as table:
        assert str(bench.site.cache) not in table.read()


# Looking first.


def rewrite_capture(bench: Bench, name: str, **changes: Any) -> None:
    """Put a run on record that is like the first one, but captured elsewhere."""
    store = open_store(bench.site.store)
    run, _ = Runs(store).load(RunId("first"))
    part = next(part for part in run.history if part.capture is not None)
    assert part.capture is not None
    writer = RunWriter(store, RunId(name))
    writer.report(launch=part.start)
    fields = {name: getattr(part.capture, name) for name in ("code", "environment", "platform", "variables")}
    writer.capture(**{**fields, **changes})


def test_the_look_names_what_is_there_and_runs_nothing(bench):
    bench.job(USUAL)
    runs = len(bench.site.runs())
    records = bench.again("--check-only")
    assert [record["can_work"] for record in records if record["type"] == "preflight"] == [True]
    assert "numbers@v1: all 1 files" in findings(records, "note") and "packages are installed" in findings(records, "note")
    assert len(bench.site.runs()) == runs
    assert "could work" in bench.site.vault("reproduce", "--check-only", "first").stdout


def test_missing_data_is_named(bench):
    bench.commit("9" * 200_000)
    bench.job("import sys; open(sys.argv[1] + '/scale').read(); open('out.npy', 'w').write('x')")
    site = bench.site
    for pack in Path(site.store, PACKS).rglob("*"):
        if pack.is_file():
            pack.unlink()
    shutil.rmtree(site.cache)
    records = bench.again("--check-only", status=1)
    assert "numbers@v2" in findings(records, "blocker")
    assert bench.again(status=1)[-1]["levels"] == {"cannot work": 1}


def test_missing_packages_hardware_and_secrets_are_named(bench):
    bench.job(USUAL)
    store = open_store(bench.site.store)
    run, _ = Runs(store).load(RunId("first"))
    capture = next(part.capture for part in run.history if part.capture is not None)
    assert capture.environment is not None
    folder = bench.folder / "environment"
    folder.mkdir()
    document = {
        "interpreter": "CPython 2.6.1",
        "packages": [{"name": "no-such-package", "version": "1.0"}, {"name": "numpy", "version": "0.1"}],
        "libraries": [{"path": "lib/libcudart.so.12", "size": 7}],
    }
    (folder / "environment.json").write_text(json.dumps(document))
    bench.site.commit(str(folder), "environment")
    snapshot = bench.site.json("log", "environment")[0]["snapshot"]
    rewrite_capture(
        bench,
        "elsewhere",
        environment=type(capture.environment)(snapshot=snapshot, prefix=capture.environment.prefix),
        platform={**capture.platform, "gpu.0": "NVIDIA H100", "kernel": "Linux 1.0", "cpu_flags": "avx9"},
        variables={"PYTHONHASHSEED": "0", "NCCL_TOKEN": "***"},
        gaps=("code: it was too large",),
    )
    records = bench.again("--check-only", name="elsewhere", status=1)
    blockers, doubts = findings(records, "blocker"), findings(records, "doubt")
    assert "not installed: no-such-package 1.0" in blockers and "NVIDIA H100" in blockers
    for word in (
        "numpy was 0.1",
        "CPython 2.6.1",
        "kernel was Linux 1.0",
        "lacks avx9",
        "libcudart",
        "NCCL_TOKEN",
        "too large",
    ):
        assert word in doubts, word


def test_paths_of_a_hostile_record_lead_nowhere(bench):
    bench.job(USUAL)
    run, _ = Runs(open_store(bench.site.store)).load(RunId("first"))
    capture = next(part.capture for part in run.history if part.capture is not None)
    for number, root in enumerate((f"{bench.project}/../../x", "relative", "//x", "/x/./y", "/")):
        code = type(capture.code[0])(root=root, snapshot=capture.code[0].snapshot, files=1, bytes=1)
        rewrite_capture(bench, f"hostile-{number}", code=(code,))
        assert "is no path" in findings(bench.again(name=f"hostile-{number}", status=1), "blocker")


def test_what_makes_no_sense_is_refused(bench, tmp_path):
    bench.job(USUAL)
    bench.site.vault("reproduce", status=2)
    bench.site.vault("reproduce", "first", "--user", "ada", status=2)
    bench.site.vault("reproduce", "first", "--tolerance", "much", status=2)
    bench.site.vault("reproduce", "frist", status=3)
    bench.site.vault("reproduce", "first", "--attempt", "7", status=3)
    assert "not empty" in bench.site.vault("reproduce", "first", "--keep", str(bench.project), status=6).stderr


def test_all_runs_of_a_user(bench):
    bench.job(USUAL)
    bench.job(USUAL, name="second")
    user = user_name()
    records = [json.loads(line) for line in bench.site.vault("reproduce", "--user", user, "--json").stdout.splitlines()]
    assert {verdict["of"] for verdict in verdicts(records)} == {"first", "second"}
    assert records[-1]["levels"] == {"L0": 2}
    # Repetitions are not repeated.
    records = [
        json.loads(line)
        for line in bench.site.vault("reproduce", "--user", user, "--check-only", "--json").stdout.splitlines()
    ]
    assert records[-1]["levels"] == {"could work": 2}


# The environment.


def wheel(folder: Path, version: str) -> None:
    name = f"tiny_vault_test-{version}"
    with zipfile.ZipFile(folder / f"{name}-py3-none-any.whl", "w") as archive:
        archive.writestr("tiny_vault_test.py", f"VERSION = '{version}'\n")
        archive.writestr(
            f"{name}.dist-info/METADATA", f"Metadata-Version: 2.1\nName: tiny-vault-test\nVersion: {version}\n"
        )
        archive.writestr(
            f"{name}.dist-info/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{name}.dist-info/RECORD", "")


@pytest.mark.slow
def test_the_environment_is_rebuilt_with_the_recorded_versions(bench):
    if shutil.which(f"python3.{sys.version_info.minor}") is None:
        pytest.skip("there is no interpreter of this version on PATH")
    wheels = bench.folder / "wheels"
    wheels.mkdir()
    wheel(wheels, "1.2")
    wheel(wheels, "1.3")
    bench.job("import sys; open(sys.argv[1] + '/scale').read(); open('out.npy', 'w').write('1.2')")
    (bench.project / "train.py").write_text("import tiny_vault_test as t; open('out.npy', 'w').write(t.VERSION)")
    folder = bench.folder / "environment"
    folder.mkdir()
    minor = f"3.{sys.version_info.minor}"
    packages = [{"name": "tiny-vault-test", "version": "1.2"}, {"name": "-r /etc/passwd", "version": "1"}]
    document = {"interpreter": f"CPython {minor}.0", "packages": packages, "libraries": []}
    (folder / "environment.json").write_text(json.dumps(document))
    bench.site.commit(str(folder), "environment")
    bench.site.commit(str(bench.project), "code")
    snapshots = {name: bench.site.json("log", name)[0]["snapshot"] for name in ("environment", "code")}
    run, _ = Runs(open_store(bench.site.store)).load(RunId("first"))
    capture = next(part.capture for part in run.history if part.capture is not None)
    assert capture.environment is not None
    code = type(capture.code[0])(root=str(bench.project), snapshot=snapshots["code"], files=2, bytes=1, script="train.py")
    rewrite_capture(
        bench, "rebuilt", environment=type(capture.environment)(snapshot=snapshots["environment"]), code=(code,)
    )
    site = bench.site.with_variables(
        PIP_NO_INDEX="1", PIP_FIND_LINKS=str(wheels), UV_NO_INDEX="1", UV_FIND_LINKS=str(wheels)
    )
    kept = bench.folder / "kept"
    done = site.vault("reproduce", "rebuilt", "--env", "rebuild", "--keep", str(kept), "--json", status=1)
    assert "Traceback" not in done.stderr
    installed = list((kept / "environment").rglob("tiny_vault_test.py"))
    assert [path.read_text() for path in installed] == ["VERSION = '1.2'\n"]
    assert (kept / "1" / "code" / "0" / "out.npy").read_text() == "1.2"
    assert "nothing on record to compare with" in done.stdout


# Somebody else.


@pytest.fixture
def open_folder() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(prefix="vault-test-"))
    made.chmod(0o777)
    yield made
    shutil.rmtree(made)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes somebody else")
def test_a_user_without_rights_repeats_in_a_user_namespace(open_folder, direct):
    nobody = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all")
    if shutil.which("fusermount3") is None:
        pytest.skip("fusermount3 is not installed")
    if subprocess.run([*nobody, "unshare", "--user", "--mount", "true"], check=False, capture_output=True).returncode:
        pytest.skip("users may not have namespaces here")
    python = f"/usr/bin/python3.{sys.version_info.minor}"
    ours = [os.path.dirname(package.__path__[0]) for package in (vault, vault_fuse)]
    variables = {
        "PYTHONPATH": ":".join([sysconfig.get_paths()["purelib"], *ours]),
        "HOME": str(open_folder),
        "PYTHON": python,
    }
    probe = [*nobody, "sh", "-c", 'exec "$PYTHON" -c "import vault.cli.main, vault_fuse.command"']
    if subprocess.run(probe, env={**os.environ, **variables}, cwd="/", check=False, capture_output=True).returncode:
        pytest.skip("no Python that other users can run has this vault")
    script = """
        vault() { "$PYTHON" -m vault "$@"; }
        cd "$FOLDER"; mkdir proj data mnt; echo 1 > data/scale
        vault init -q; vault commit -q data numbers
        echo 'import sys; open("out.txt", "w").write(open(sys.argv[1] + "/scale").read())' > proj/train.py
        vault mount -q mnt; cd proj
        vault run -q --name first --out out.txt=weights -- "$PYTHON" train.py "$FOLDER/mnt/numbers@latest"
        cd ..; vault umount -q mnt
        echo 2 > data/scale; vault commit -q data numbers; echo mine > proj/out.txt; echo > proj/train.py
        vault reproduce --json first; cat proj/out.txt; id -u
    """
    device = os.path.join(open_folder, "fuse")
    os.mknod(device, 0o20666, os.makedev(10, 229))
    os.chmod(device, 0o666)
    environment = {
        **os.environ,
        **variables,
        "FOLDER": str(open_folder),
        "VAULTFS_STORE": f"{open_folder}/store",
        "VAULTFS_CACHE_DIR": f"{open_folder}/cache",
    }
    outer = [
        "unshare",
        "--mount",
        "--propagation",
        "private",
        "--",
        "sh",
        "-c",
        'mount --bind "$0" /dev/fuse && exec "$@"',
        device,
    ]
    done = subprocess.run(
        [*outer, *nobody, "bash", "-ec", script],
        env=environment,
        cwd="/",
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    *records, mine, uid = done.stdout.splitlines()
    found = [json.loads(line) for line in records if line.startswith("{")]
    assert verdicts(found)[0]["level"] == "L0" and (mine, uid) == ("mine", "65534")
