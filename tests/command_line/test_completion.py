"""What Tab does, in real shells: Bash typed at on a terminal; zsh and fish where they are installed."""

import os
import shutil
import subprocess
import sys

import pytest

from vault.testing.mounts import Site
from vault.testing.terminals import terminal

BIN = os.path.dirname(sys.executable)
SHELLS = ("bash", "zsh", "fish")


def environment(site: Site) -> dict[str, str]:
    """Return the variables of a shell that finds `vault`."""
    kept = {name: value for name, value in site.environment().items() if name not in ("NO_COLOR", "PROMPT_COMMAND")}
    return {
        **kept,
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "TERM": "dumb",
        "PS1": "",
        "HISTFILE": "",
        "HOME": "/nonexistent",
    }


@pytest.fixture(scope="module")
def bash(library, tmp_path_factory):
    """A Bash that has read the script; Ctrl-T prints the line that is being typed."""
    folder = tmp_path_factory.mktemp("bash")
    (folder / "a folder").mkdir()
    (folder / "script").write_text(library.vault("completion", "bash").stdout)
    (folder / "rc").write_text(
        f"source {folder}/script; cd {folder}; bind 'set bell-style none'; bind 'set completion-query-items 0'\n"
        "bind 'set page-completions off'; bind 'set show-all-if-ambiguous on'; bind 'set enable-bracketed-paste off'\n"
        'bind -x \'"\\C-t": printf "[%s]\\n" "$READLINE_LINE"\'\nprintf \'[%s]\\n\' ready\n'
    )
    command = ["bash", "--noprofile", "--rcfile", str(folder / "rc"), "-i"]
    with terminal(command, environment(library), columns=200) as screen:
        screen.wait_for(r"\[ready\]")
        yield screen


@pytest.mark.parametrize(
    ("typed", "line", "offered"),
    [
        ("vault compl", "vault completion ", []),
        ("vault c", "vault c", ["commit", "cat", "checkout", "completion"]),
        ("vaultfs umo", "vaultfs umount ", []),
        ("vault log --nu", "vault log --number ", []),
        ("vault completion f", "vault completion fish ", []),
        ("vault ls im", "vault ls imagenet", ["imagenet", "imagenet@"]),
        ("vault ls imagenet@", "vault ls imagenet@", ["@latest", "@golden", "@v2", "@v1/"]),
        ("vault ls imagenet@gol", "vault ls imagenet@golden", []),
        ("vault ls imagenet@v2/tr", "vault ls imagenet@v2/train/", []),
        ("vault cat imagenet@v2/train/n01/3", "vault cat imagenet@v2/train/n01/3.JPEG ", []),
        ("vault cat imagenet@v2/new", "vault cat imagenet@v2/new\\ file ", []),
        ("vault cat imagenet@v2/new\\ f", "vault cat imagenet@v2/new\\ file ", []),
        ('vault cat "imagenet@v2/new', 'vault cat "imagenet@v2/new file" ', []),
        ("vault ls vision/coco@v1/n02/", "vault ls vision/coco@v1/n02/same ", []),
        ("vault diff imagenet@v1 imagenet@go", "vault diff imagenet@v1 imagenet@golden", []),
        ("vault log vis", "vault log vision/coco", []),
        ("vault label imagenet@v1 go", "vault label imagenet@v1 golden ", []),
        ("vault commit a", "vault commit a\\ folder/", []),
        ("vault log nosuch@", "vault log nosuch@", []),
        ("vault --store /nowhere ls im", "vault --store /nowhere ls im", []),
    ],
)
def test_bash(bash, typed, line, offered):
    bash.shown = ""
    bash.type(f"\x15{typed}\t\x14")  # Ctrl-U clears what the test before has left
    found = bash.wait_for(r"\[(vault.*)\]\r?\n")
    assert found[1] == line
    for word in offered:
        assert word in bash.shown.split(), f"{word} is offered; shown is {bash.shown!r}"
    assert "Traceback" not in bash.shown


def test_bash_offers_runs_and_names_a_hash_as_part_of_a_ref(library):
    """What the script asks, without the shell."""
    snapshot = library.json("log", "imagenet")[0]["snapshot"]
    asked = {"_VAULT_COMPLETE": "bash_complete", "COMP_LINE": f"vault ls imagenet@b3:{snapshot[:12]}/tra"}
    assert library.with_variables(**asked).vault().stdout == f"plain\timagenet@b3:{snapshot[:12]}/train/\t\n"
    asked["COMP_LINE"] = "vault audit --run "
    assert library.with_variables(**asked).vault().stdout == "\n"


def test_names_that_a_terminal_should_not_see_are_not_offered(library):
    asked = {"_VAULT_COMPLETE": "bash_complete", "COMP_LINE": "vault ls imagenet@v2/"}
    words = [line.split("\t")[1] for line in library.with_variables(**asked).vault().stdout.splitlines()]
    assert words == [f"imagenet@v2/{name}" for name in ("labels.csv", "link", "new file", "train/")]


@pytest.mark.parametrize("asked", ["bash_source", "tcsh_complete", "bash_complete", ""])
def test_a_question_that_makes_no_sense_gets_no_answer(library, asked):
    done = library.with_variables(_VAULT_COMPLETE=asked).vault(status=1)
    assert (done.stdout, done.stderr) == ("", "")


@pytest.mark.parametrize("shell", SHELLS)
def test_scripts_are_scripts(library, shell, tmp_path):
    script = library.vault("completion", shell).stdout
    assert "vaultfs" in script and "_VAULT_COMPLETE" in script
    if not shutil.which(shell):
        pytest.skip(f"{shell} is not installed")
    (tmp_path / "script").write_text(script)
    done = subprocess.run([shell, "-n", str(tmp_path / "script")], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_fish(library):
    if not shutil.which("fish"):
        pytest.skip("fish is not installed")
    ask = "vault completion fish | source; complete -C 'vault ls imagenet@gol'; complete -C 'vault ls imagenet@v2/new'"
    done = subprocess.run(
        ["fish", "--no-config", "-c", ask], env=environment(library), capture_output=True, text=True, check=True
    )
    assert done.stdout.split("\n") == ["imagenet@golden", "imagenet@golden/", "imagenet@v2/new file", ""]


def test_zsh(library, tmp_path):
    if not shutil.which("zsh"):
        pytest.skip("zsh is not installed")
    (tmp_path / ".zshrc").write_text(
        'autoload -Uz compinit; compinit -u -D; eval "$(vault completion zsh)"\n'
        "show() { print -r -- \"[$BUFFER]\" }; zle -N show; bindkey '^T' show; unsetopt beep; print '[ready]'\n"
    )
    with terminal(["zsh", "-i"], {**environment(library), "ZDOTDIR": str(tmp_path), "HOME": str(tmp_path)}) as screen:
        screen.wait_for(r"\[ready\]")
        for typed, line in (
            ("vault ls imagenet@v2/tr", "imagenet@v2/train/"),
            ("vault cat imagenet@v2/new", r"imagenet@v2/new\ file "),
        ):
            screen.shown = ""
            screen.type(f"\x15{typed}\t\x14")
            assert screen.wait_for(r"\[(vault.*)\]\r?\n")[1].endswith(line)
