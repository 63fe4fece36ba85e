"""Whose read is it: each sample in proc_samples/ is one caught process and the run that it must belong to.

"Captured" samples were read from /proc under the program that they name, and cut to what attribution looks at; "composed"
ones follow the launcher's documentation. Names of hosts and people are changed.
"""

import dataclasses
import json
from pathlib import Path

import msgspec
import pytest

from vault.capture.attribution import Identity, attribute, unseen_run
from vault.capture.launchers import Host, slug
from vault.capture.proc import Process, Sighting
from vault.ids import RunId, check_run_id

SAMPLES = sorted((Path(__file__).parent / "proc_samples").glob("*.json"))
HOST = Host(name="node7.lab.example", boot_id="b" * 36, boot_time_s=1_790_000_000, ticks_per_s=100, store_id="5" * 32)
ELSEWHERE = dataclasses.replace(HOST, name="node8.lab.example", boot_id="c" * 36, boot_time_s=1_780_000_000)


class Expected(msgspec.Struct, forbid_unknown_fields=True):
    how: str
    run: str = ""
    run_like: str = ""  # how it begins, where a hash follows
    command: list[str] | None = None
    attempt: str | None = None
    details: dict[str, str] = {}
    details_has: str = ""
    ranks: dict[str, str] = {}
    trackers: dict[str, str] = {}
    disagreement: str = ""
    process_class: str = ""
    gaps: int | None = None
    never: str = ""  # must not appear anywhere in what is kept
    same_on_other_host: bool = False


class Sample(msgspec.Struct, forbid_unknown_fields=True):
    about: str
    chain: list[Process]
    environment: dict[str, str]
    environment_of: int
    cgroups: list[str]
    named_above: int
    uid: int
    gaps: list[str]
    expect: Expected

    def sighting(self) -> Sighting:
        return Sighting(
            chain=tuple(self.chain),
            environment=self.environment,
            environment_of=self.environment_of,
            cgroups=tuple(self.cgroups),
            named_above=self.named_above,
            uid=self.uid,
            gaps=tuple(self.gaps),
        )


def load(path: Path) -> Sample:
    return msgspec.json.decode(path.read_bytes(), type=Sample)


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.stem)
def test_a_process_belongs_to_the_run_that_its_launcher_tells(path):
    sample = load(path)
    expect = sample.expect
    identity = attribute(sample.sighting(), HOST)
    assert check_run_id(identity.run) == identity.run
    assert identity.how == expect.how
    assert identity.run == expect.run if expect.run else identity.run.startswith(expect.run_like)
    if expect.command is not None:
        assert list(identity.root.command) == expect.command
    if expect.attempt is not None:
        assert identity.attempt == expect.attempt
    assert expect.details.items() <= dict(identity.details).items()
    assert not expect.details_has or expect.details_has in identity.details
    assert expect.ranks.items() <= dict(identity.ranks).items()
    assert expect.trackers.items() <= dict(identity.trackers).items()
    assert identity.disagreement == expect.disagreement
    if expect.process_class:
        assert identity.process_class == expect.process_class
    if expect.gaps is not None:
        assert len(identity.gaps) == expect.gaps
    kept = json.dumps([dict(identity.details), dict(identity.ranks), dict(identity.trackers), identity.run])
    assert not expect.never or expect.never not in kept


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.stem)
def test_hosts_agree_on_a_job_s_run_and_on_no_other(path):
    sample = load(path)
    expect = sample.expect
    here, there = attribute(sample.sighting(), HOST), attribute(sample.sighting(), ELSEWHERE)
    of_the_host = expect.run_like.startswith(("adhoc-", "htcondor-"))
    assert (here.run == there.run) != of_the_host
    assert here.run == attribute(sample.sighting(), HOST).run


def test_every_rule_has_a_sample():
    hows = {load(path).expect.how for path in SAMPLES}
    expected = {"VAULTFS_RUN", "slurm control group", "slurm variables", "slurm step", "lsf variables", "pbs variables"}
    expected |= {
        "sge variables",
        "htcondor variables",
        "flux variables",
        "pod control group",
        "torchelastic",
        "ray",
        "pmix",
    }
    expected |= {"pmix", "hydra", "pals", "sagemaker", "github actions", "jupyter", "process tree"}
    assert hows == expected


def identify(chain: list[Process], **known: str) -> Identity:
    table = {key: RunId(run) for key, run in known.items()}
    return attribute(Sighting(tuple(chain)), HOST, lambda key: table.get(f"p{key[0]}"))


def process(pid: int, parent: int, name: str = "python") -> Process:
    return Process(pid, parent, 1000 + pid, name, f"/usr/bin/{name}", (name, "x.py"))


def test_children_of_an_orphan_stay_with_its_run():
    """`bash train.sh` was killed, its python lives on, and a loader process that it starts now has no `bash` above."""
    init = Process(1, 0, 1, "systemd", "/sbin/init")
    whole = identify([process(12, 11), process(11, 10), process(10, 1, "bash"), init])
    assert whole.root.pid == 10
    later = identify([process(13, 11), process(11, 1), init], p11=whole.run)
    assert later.run == whole.run
    assert identify([process(13, 11), process(11, 1), init]).run != whole.run


def test_what_is_started_in_a_session_of_its_own_is_a_run_of_its_own():
    init = Process(1, 0, 1, "systemd", "/sbin/init")
    agent = dataclasses.replace(process(10, 1, "java"), session=10)
    first, second = (dataclasses.replace(process(pid, 10, "bash"), session=pid) for pid in (20, 30))
    train = dataclasses.replace(process(21, 20), session=20)
    loader = dataclasses.replace(process(22, 21), session=20)
    assert identify([train, first, agent, init]).root.pid == 20
    assert identify([loader, train, first, agent, init]).run == identify([first, agent, init]).run
    assert identify([second, agent, init]).run != identify([first, agent, init]).run


def test_what_a_manager_above_belongs_to_is_not_inherited():
    init = Process(1, 0, 1, "systemd", "/sbin/init")
    assert identify([process(13, 11), process(11, 1, "tmux"), init], p11="somebody-s").run.startswith("adhoc-")


def test_two_trees_that_begin_in_the_same_tick_are_two_runs():
    init = Process(1, 0, 1, "systemd", "/sbin/init")
    left = identify([Process(10, 1, 500, "python"), init])
    right = identify([Process(11, 1, 500, "python"), init])
    again = identify([Process(10, 1, 501, "python"), init])
    assert len({left.run, right.run, again.run}) == 3


def test_torchrun_jobs_of_the_same_tutorial_are_told_apart():
    sample = load(next(path for path in SAMPLES if path.stem == "torchrun_many_nodes"))
    environment = {**sample.environment, "TORCHELASTIC_RUN_ID": "100"}
    moved = {**environment, "MASTER_PORT": "29501"}
    runs = {
        attribute(dataclasses.replace(sample.sighting(), environment=env, uid=uid), HOST).run
        for env, uid in ((environment, 1000), (moved, 1000), (environment, 1001))
    }
    assert len(runs) == 3


def test_the_same_value_is_another_hash_in_another_store():
    sample = load(next(path for path in SAMPLES if path.stem == "torchrun_many_nodes"))
    other = dataclasses.replace(HOST, store_id="6" * 32)
    assert attribute(sample.sighting(), HOST).run != attribute(sample.sighting(), other).run


@pytest.mark.parametrize("text", ["a b", "..", "a/../b", "ü" * 100, "-x", "a" * 500, "", "\0", "a..b", "a...b", "=", "~"])
def test_any_text_becomes_part_of_a_run_id(text):
    assert check_run_id(slug(text)) == slug(text)


def test_texts_that_clean_up_alike_stay_apart():
    assert len({slug("a b"), slug("a_b"), slug("a  b"), slug("a/b")}) == 4


def test_unseen_reads_have_a_run_for_each_user_and_day():
    assert unseen_run(HOST, 1000, "20261105") == "unknown-node7-20261105-u1000"
