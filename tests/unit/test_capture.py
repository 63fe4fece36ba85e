"""What is looked at of a run, and what a hostile helper may not do to who keeps it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from vault.capture.code import find_script, look_at_code
from vault.capture.environment import distributions, find_interpreter, linked_folders, lock_files
from vault.capture.found import (
    ITEM_SIZE_MAX,
    TREE_FILES_MAX,
    FoundEnvironment,
    FoundFacts,
    FoundFile,
    FoundLink,
    FoundTree,
    Item,
    ItemReader,
    encode_item,
)
from vault.capture.git_tree import find_worktree, read_by_hand
from vault.capture.libraries import loaded_libraries, read_maps
from vault.capture.platform import look_at_platform
from vault.capture.redaction import looks_secret, redact_url
from vault.capture.variables import keep_variables
from vault.errors import FormatError
from vault.format.records import CodeTree
from vault.ops.capturing import Staging, Subject, capture, freeze_staged
from vault.repo.repository import Repository
from vault.stores.local import LocalStore


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository.init(LocalStore(str(tmp_path / "store")), str(tmp_path / "cache"))


def git(folder: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=ada", "-c", "user.email=ada@example.com", "-c", "init.defaultBranch=main")
    done = subprocess.run(["git", "-C", str(folder), *identity, *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def found(folder: Path, *scripts: str, cwd: Path | None = None) -> tuple[list[Item], list[str]]:
    gaps: list[str] = []
    items = list(look_at_code([str(folder / script) for script in scripts], str(cwd or folder), [], gaps))
    return items, gaps


# The script.


@pytest.mark.parametrize(
    ("command", "script"),
    [
        (["python", "train.py", "--lr", "1"], "train.py"),
        (["python", "-u", "./train.py"], "train.py"),
        (["python", "-m", "pkg.train"], "pkg/train.py"),
        (["python", "-m", "pkg"], "pkg/__main__.py"),
        (["torchrun", "--nproc-per-node", "2", "train.py"], "train.py"),
        (["python", "-m", "torch.distributed.run", "train.py"], "train.py"),
        (["bash", "job"], "job"),
        (["./job"], "job"),
        (["sha256sum", "data.bin"], ""),
        (["python", "-c", "print(1)"], ""),
        (["python"], ""),
        ([], ""),
    ],
)
def test_scripts_are_found_in_commands(tmp_path, command, script):
    (tmp_path / "pkg").mkdir()
    for name in ("train.py", "pkg/train.py", "pkg/__main__.py", "data.bin"):
        (tmp_path / name).write_text("x = 1\n")
    (tmp_path / "job").write_text("#!/bin/sh\n")
    assert find_script(command, str(tmp_path)) == (str(tmp_path / script) if script else "")


def test_a_tool_of_a_virtual_environment_is_no_script(tmp_path):
    (tmp_path / "env" / "bin").mkdir(parents=True)
    (tmp_path / "env" / "pyvenv.cfg").write_text("home = /usr/bin\n")
    (tmp_path / "env" / "bin" / "torchrun").write_text("#!/x/python\n")
    (tmp_path / "train.py").write_text("")
    command = ["/x/python", str(tmp_path / "env" / "bin" / "torchrun"), "train.py"]
    assert find_script(command, str(tmp_path)) == str(tmp_path / "train.py")


# Code.


def test_a_script_without_git_brings_the_modules_beside_it(tmp_path):
    (tmp_path / "lib" / ".hidden").mkdir(parents=True)
    (tmp_path / "env").mkdir()
    (tmp_path / "env" / "pyvenv.cfg").write_text("")
    for name in ("train.py", "lib/model.py", "lib/.hidden/x.py", "env/site.py", "conf.yaml", "image.png", "secrets.yaml"):
        (tmp_path / name).write_text("x")
    items, _ = found(tmp_path, "train.py")
    names = [item.path for item in items if isinstance(item, FoundFile)]
    assert names == [b"train.py", b"conf.yaml", b"lib/model.py"]
    (tree,) = [item for item in items if isinstance(item, FoundTree)]
    assert (tree.facts.vcs, tree.facts.script) == ("", "train.py")


def test_without_script_and_git_there_is_a_gap(tmp_path):
    items, gaps = found(tmp_path)
    assert not items
    assert gaps == ["code: the command names no script, and it was not started in a git worktree"]


def test_a_linked_worktree_and_a_detached_head(tmp_path):
    main = tmp_path / "main"
    main.mkdir()
    git(main, "init", "-q")
    (main / "a.py").write_text("1")
    git(main, "add", "-A")
    git(main, "commit", "-q", "-m", "x")
    git(main, "worktree", "add", "-q", "-b", "side", "../side")
    git(main, "remote", "add", "up", "https://u:p@h/x?token=1")
    items, gaps = found(tmp_path / "side", "a.py")
    (tree,) = [item.facts for item in items if isinstance(item, FoundTree)]
    head = git(main, "rev-parse", "HEAD")
    assert (tree.head, tree.branch, tree.changed, gaps) == (head, "side", (), [])
    by_hand = read_by_hand(str(tmp_path / "side"))
    assert (by_hand.head, by_hand.branch, by_hand.remote) == (head, "side", "https://h/x")
    git(main, "checkout", "-q", "--detach")
    git(main, "pack-refs", "--all")
    assert (read_by_hand(str(main)).head, read_by_hand(str(main)).branch) == (head, "")
    assert read_by_hand(str(tmp_path / "side")).head == head
    assert find_worktree(str(main)) == str(main)


def test_a_tree_without_a_commit_and_staged_changes(tmp_path):
    git(tmp_path, "init", "-q")
    (tmp_path / "a.py").write_text("1\r\n")
    git(tmp_path, "add", "a.py")
    (tree,) = [item.facts for item in found(tmp_path, "a.py")[0] if isinstance(item, FoundTree)]
    assert (tree.head, tree.changed) == ("", ("a.py",))
    git(tmp_path, "commit", "-q", "-m", "x")
    (tmp_path / "b.py").write_text("2")
    git(tmp_path, "add", "b.py")
    (tree,) = [item.facts for item in found(tmp_path, "a.py")[0] if isinstance(item, FoundTree)]
    assert (tree.changed, tree.untracked) == (("b.py",), ())


def test_an_ignored_script_is_kept(tmp_path):
    git(tmp_path, "init", "-q")
    (tmp_path / ".gitignore").write_text("*.py\n")
    (tmp_path / "a.py").write_text("1")
    items, _ = found(tmp_path, "a.py")
    assert b"a.py" in [item.path for item in items if isinstance(item, FoundFile)]


# Environment and machine.


def test_the_interpreter_of_this_process_and_its_packages():
    interpreter = find_interpreter([sys.executable, "x.py"], os.path.realpath(sys.executable), "/", {})
    assert interpreter is not None
    assert interpreter.prefix == sys.prefix
    assert interpreter.version == sys.version.split()[0]
    packages = {package.name: package for package in distributions(interpreter.sites)}
    assert packages["pytest"].version == pytest.__version__
    assert packages["pytest"].installer


def test_a_script_names_its_interpreter(tmp_path):
    tool = tmp_path / "torchrun"
    tool.write_text(f"#!{sys.executable}\n")
    interpreter = find_interpreter(["torchrun"], "", "/", {"PATH": f"/nowhere:{tmp_path}"})
    assert interpreter is not None
    assert interpreter.prefix == sys.prefix
    assert find_interpreter(["sha256sum"], "/usr/bin/sha256sum", "/", {"PATH": "/usr/bin"}) is None


def test_distributions_are_read_without_secrets(tmp_path):
    info = tmp_path / "My_Pack.age-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: My_Pack.age\nVersion: 1.0+local\n\nName: another\n")
    url = {"url": "https://ada:tok@git.example.com/p.git?x=1", "vcs_info": {"vcs": "git", "commit_id": "c0ffee"}}
    (info / "direct_url.json").write_text(json.dumps(url))
    (info / "INSTALLER").write_text("uv\n")
    (tmp_path / "broken-2.dist-info").mkdir()
    broken, package = distributions([str(tmp_path), str(tmp_path), "/nowhere"])
    assert (broken.name, broken.version) == ("broken", "2")
    assert (package.name, package.version, package.installer) == ("my-pack-age", "1.0+local", "uv")
    assert package.direct_url == "git+https://git.example.com/p.git@c0ffee"


def test_lock_files_are_found_and_cleaned(tmp_path):
    (tmp_path / "uv.lock").write_text("version = 1\n")
    (tmp_path / "requirements-gpu.txt").write_text("--index-url https://u:pw@h/simple\n")
    (tmp_path / "conda-meta").mkdir()
    for name in ("zlib-1.3-h0.json", "python-3.11.2-h1.json", "history"):
        (tmp_path / "conda-meta" / name).write_text("")
    assert lock_files([str(tmp_path)], str(tmp_path)) == {
        "uv.lock": b"version = 1\n",
        "requirements-gpu.txt": b"--index-url https://***@h/simple\n",
        "conda-packages.txt": b"python-3.11.2-h1\nzlib-1.3-h0\n",
    }


def test_loaded_libraries_of_this_process():
    names = [os.path.basename(library.path).split(".so")[0] for library in loaded_libraries(read_maps(os.getpid()), "")]
    assert "libc" in names


def test_equal_environments_are_the_same_snapshot(repository, tmp_path):
    def look(cwd: str) -> object:
        subject = Subject(cwd=cwd, command=[sys.executable, "x.py"], executable=sys.executable, environment={"HOME": cwd})
        return capture(repository, subject)["environment"]

    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    assert look(str(tmp_path / "one")) == look(str(tmp_path / "two"))


def test_the_platform_names_no_host():
    facts = look_at_platform()
    assert facts["cpus"] == str(os.cpu_count())
    assert os.uname().nodename not in json.dumps({name: value for name, value in facts.items() if name != "kernel"})
    assert max(map(len, facts.values())) <= 1024


# Secrets.


def test_variables_are_those_on_the_list_and_no_secrets():
    environment = {
        "PYTHONHASHSEED": "0", "NCCL_DEBUG": "INFO", "OMP_NUM_THREADS": "8", "HOME": "/home/ada", "WANDB_API_KEY": "x",
        "CUDA_SECRET": "open sesame", "TORCH_TOKEN": "x", "NCCL_X": "hf_abcdefghijklmnopqrst",
        "JAX_Y": "Zm9vYmFyYmF6cXV4MTIzNDU2Nzg5", "LD_LIBRARY_PATH": "/opt/cuda/lib64", "EMPTY": "",
        "TOKENIZERS_PARALLELISM": "0", "OMP_PLACES": "",
        "MASTER_ADDR": "tcp://u:pw@node1:29500",
    }  # fmt: skip
    assert keep_variables(environment) == {
        "PYTHONHASHSEED": "0", "NCCL_DEBUG": "INFO", "OMP_NUM_THREADS": "8", "CUDA_SECRET": "***", "TORCH_TOKEN": "***",
        "NCCL_X": "***", "TOKENIZERS_PARALLELISM": "0", "JAX_Y": "***", "LD_LIBRARY_PATH": "/opt/cuda/lib64",
        "MASTER_ADDR": "tcp://***@node1:29500",
    }  # fmt: skip
    assert len(keep_variables({f"NCCL_{number}": "1" for number in range(1000)})) == 64
    assert not looks_secret("cuda:0,cuda:1,cuda:2,cuda:3,cuda:4")


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://ada:pw@example.com/x.git", "https://example.com/x.git"),
        ("https://ghp_abcdefghijklmnopqrstuvwx@example.com/x", "https://example.com/x"),
        ("https://example.com/x?private_token=1#y", "https://example.com/x"),
        ("git@example.com:ada/x.git", "git@example.com:ada/x.git"),
        ("ssh://git@example.com/x", "ssh://example.com/x"),
        ("/srv/git/x.git", "/srv/git/x.git"),
        ("https://a@b:c@example.com/x", "https://example.com/x"),
    ],
)
def test_addresses_lose_their_credentials(url, shown):
    assert redact_url(url) == shown


# What comes out of the pipe.


def test_items_come_out_as_they_went_in():
    items: list[Item] = [
        FoundFile(0, b"a", b"x" * 100_000, True),
        FoundLink(0, b"l", b"a"),
        FoundTree(0, CodeTree(root="/r", snapshot="0" * 64, files=0, bytes=0)),
        FoundEnvironment("CPython", "/p", 1, 2, b"{}", {"uv.lock": b""}),
        FoundFacts({"kernel": "x"}, {}, ("gap",)),
    ]
    data = b"".join(map(encode_item, items))
    reader = ItemReader()
    assert [item for at in range(0, len(data), 777) for item in reader.feed(data[at : at + 777])] == items


@pytest.mark.parametrize(
    "data", [b"\xff\xff\xff\xff", (ITEM_SIZE_MAX + 1).to_bytes(4, "big"), b"\0\0\0\1\xc1", b"\0\0\0\2\x91\xa0"]
)
def test_what_is_no_item_is_refused(data):
    with pytest.raises(FormatError):
        list(ItemReader().feed(data))


TREE = FoundTree(0, CodeTree(root="/r", snapshot="0" * 64, files=0, bytes=0))


@pytest.mark.parametrize(
    "items",
    [
        [FoundFile(0, b"../x", b"")],
        [FoundFile(0, b"/etc/x", b"")],
        [FoundFile(0, b"a//b", b"")],
        [FoundFile(0, b"", b"")],
        [FoundFile(0, b"a\0b", b"")],
        [FoundFile(0, b"d/" * 200 + b"x", b"")],
        [FoundFile(0, b"x" * 256, b"")],
        [FoundFile(-1, b"x", b"")],
        [FoundFile(1 << 40, b"x", b"")],
        [FoundFile(0, b"x", b""), FoundFile(0, b"x", b"")],
        [FoundFile(0, b"x", b""), FoundFile(0, b"x/y", b"")],
        [FoundEnvironment("", "", 0, 0, b"{}", {"../x": b""})],
        [FoundEnvironment("", "", 0, 0, b"{}"), FoundEnvironment("", "", 0, 0, b"{}")],
    ],
)
def test_a_hostile_helper_writes_nothing_elsewhere(tmp_path, items):
    folder = tmp_path / "staging"
    folder.mkdir()
    with pytest.raises(FormatError):
        Staging(str(folder)).take(items)
    assert [name for name in os.listdir(tmp_path) if name != "staging"] == []


def test_nothing_is_written_through_a_link(tmp_path, repository):
    folder, outside = tmp_path / "staging", tmp_path / "outside"
    folder.mkdir()
    outside.mkdir()
    staging = Staging(str(folder))
    staging.take([FoundLink(0, b"d", os.fsencode(outside)), FoundFile(0, b"d/x", b"data"), FoundLink(0, b"d/l/m", b"/")])
    staging.take([FoundLink(0, b"d", b"/again"), TREE, FoundFacts()])
    assert staging.is_complete
    staging.finish("a gap")
    assert os.listdir(outside) == []
    fields = freeze_staged(repository, str(folder))
    assert fields["gaps"] == ("a gap",)


def test_a_damaged_staging_folder_is_refused(tmp_path, repository):
    with pytest.raises(FormatError):
        freeze_staged(repository, str(tmp_path))
    (tmp_path / "found").write_text("{}}")
    with pytest.raises(FormatError):
        freeze_staged(repository, str(tmp_path))


def test_a_huge_tree_is_captured_up_to_the_cap_what_lies_near_the_script_first(tmp_path):
    git(tmp_path, "init", "-q")
    (tmp_path / "far").mkdir()
    (tmp_path / "near").mkdir()
    for number in range(TREE_FILES_MAX + 50):
        (tmp_path / "far" / f"{number}.py").touch()
    (tmp_path / "near" / "train.py").write_text("x")
    (tmp_path / "near" / "zz.py").write_text("x")
    items, _ = found(tmp_path, "near/train.py")
    files = [item.path for item in items if isinstance(item, FoundFile)]
    assert len(files) == TREE_FILES_MAX
    assert files[:2] == [b"near/train.py", b"near/zz.py"]
    (tree,) = [item.facts for item in items if isinstance(item, FoundTree)]
    assert len(tree.left_out) == 52
    assert "more than 20,000 files" in tree.left_out[0]
    assert len(tree.untracked) == 1024


def test_the_store_and_the_cache_are_nobodys_code(tmp_path):
    git(tmp_path, "init", "-q")
    repository = Repository.init(LocalStore(str(tmp_path / "store")), str(tmp_path / "cache"))
    (tmp_path / "train.py").write_text("x")
    for _ in range(2):
        fields = capture(repository, Subject(cwd=str(tmp_path), command=["python", "train.py"]))
        (tree,) = fields["code"]
        assert (tree.untracked, tree.files) == (("train.py",), 1)
    (tmp_path / ".git").rename(tmp_path / "cache" / "git")
    (tree,) = capture(repository, Subject(cwd=str(tmp_path), command=["python", "train.py"]))["code"]
    assert (tree.vcs, tree.files) == ("", 1)


def test_the_code_of_who_reads_comes_before_that_of_who_started_it(tmp_path):
    starter, job = tmp_path / "starter", tmp_path / "job"
    for folder, name in ((starter, "sweep.sh"), (job, "train.py")):
        folder.mkdir()
        (folder / name).write_text("#!/bin/sh\n")
        (folder / name).chmod(0o755)
    subprocess.run(["git", "init", "-q", str(starter)], check=True)
    found = list(look_at_code([str(job / "train.py"), str(starter / "sweep.sh")], str(job), (), []))
    assert [item.facts.root for item in found if isinstance(item, FoundTree)] == [str(job), str(starter)]


def test_folders_that_are_linked_into_a_site(tmp_path):
    (tmp_path / "package").mkdir()
    lines = f"import sys\n{tmp_path}/package\n{tmp_path}/gone\nrelative\n{tmp_path}/package\n"
    (tmp_path / "editable.pth").write_text(lines)
    (tmp_path / "readme.txt").write_text(f"{tmp_path}\n")
    assert linked_folders(str(tmp_path)) == [f"{tmp_path}/package"]
    assert linked_folders(str(tmp_path / "nowhere")) == []
