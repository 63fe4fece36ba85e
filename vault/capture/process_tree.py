"""Where a run begins in a tree of processes: the root below the session or the service manager.

`python train.py` typed at a prompt is a run of its own, because the shell above it is a person's, not the job's.
`bash train.sh` is one run with everything it starts. Pure: decides over a captured chain, reads nothing.
docs/explanation/whose-read-is-it.md has the rules with their reasons. Threads: pure.
"""

from collections.abc import Sequence
from typing import Final

from vault.capture.proc import SHELLS, Process

# They start other people's work and outlive it: what hangs directly below one of them is the root of a run.
MANAGERS: Final = frozenset(
    (
        # service managers and inits, of hosts and of containers
        "systemd (sd-pam) init launchd openrc-init runit runsv runsvdir s6-svscan s6-supervise supervisord monit dinit "
        "tini docker-init dumb-init catatonit kthreadd containerd-shim containerd-shim-runc-v1 containerd-shim-runc-v2 "
        "containerd dockerd conmon crun crio kubelet podman lxc-start lxd incusd "
        # log-ins and sessions
        "sshd sshd-session sshd-auth dropbear mosh-server login agetty getty in.telnetd xrdp-sesman gdm-session-worker "
        "gdm-x-session gdm-wayland-session lightdm sddm sddm-helper gnome-session-binary gnome-shell ksmserver "
        "plasmashell xfce4-session dbus-daemon dbus-broker "
        # terminals and multiplexers; the kernel cuts names to 15 bytes
        "tmux screen zellij dtach abduco gnome-terminal-server gnome-terminal- konsole xterm kitty alacritty wezterm-gui "
        "foot terminator xfce4-terminal ttyd code-server "
        # clocks
        "cron crond anacron atd fcron "
        # schedulers' own processes on a node
        "slurmstepd slurmd sbatchd res pbs_mom sge_execd sge_shepherd condor_starter condor_startd condor_master "
        "flux-broker flux-shell palsd apinit"
    ).split()
) | {"tmux: server"}
# Servers written in a language whose interpreter is all that the kernel shows: known by the script they run.
MANAGER_SCRIPTS: Final = frozenset(
    {"jupyter-lab", "jupyter-notebook", "jupyter-server", "jupyterhub", "jupyterhub-singleuser", "jupyter", "supervisord"}
)
_PARTS_OF_THEIR_PARENT: Final = frozenset({"ipykernel_launcher", "ipykernel"})
_INTERPRETERS: Final = ("python", "pypy", "node")
_VALUE_OPTIONS: Final = frozenset({"--rcfile", "--init-file", "-o", "-O", "+O", "--init-command", "-C"})


def is_manager(process: Process) -> bool:
    """Say whether a process stands above runs: its children begin them."""
    if process.pid == 1 or process.program in MANAGERS or process.name in MANAGERS:
        return True
    if process.program.startswith(_INTERPRETERS):
        return script_name(process.command) in MANAGER_SCRIPTS
    return False


def is_interactive_shell(process: Process) -> bool:
    """Say whether a process is a shell that a person types at: no script, no `-c`, and a terminal to read from."""
    if process.program not in SHELLS and process.name.lstrip("-") not in SHELLS:
        return False
    arguments = list(process.command[1:])
    if process.program == "busybox" and arguments and arguments[0] in SHELLS:
        arguments.pop(0)
    while arguments:
        argument = arguments.pop(0)
        if argument in _VALUE_OPTIONS:
            del arguments[:1]
        elif not argument.startswith(("-", "+")) or argument in ("-", "--"):
            return False  # a script
        elif not argument.startswith("--") and "c" in argument:
            return False  # a command line
    if process.stdin:
        return process.stdin.startswith(("/dev/pts/", "/dev/tty", "/dev/console"))
    return process.terminal != 0


def find_root(chain: Sequence[Process]) -> int:
    """Return the index in chain (the opener first) of the process where its run begins.

    It is the opener itself if that is a person's shell or a manager: what these read, they read for themselves.
    """
    for index in range(1, len(chain)):
        if is_manager(chain[index]) or is_interactive_shell(chain[index]):
            return index - 1
    return len(chain) - 1


def find_session_root(chain: Sequence[Process]) -> int:
    """Return the index in chain where the run of a process begins that no launcher speaks for.

    As `find_root`, but not above a session leader: whoever starts something in a session of its own (a build server, an
    agent, `setsid`) does not mean it as a part of itself. Launchers do so with their workers, and are asked before; a
    notebook's kernel belongs to the program that runs the notebook.
    """
    root = find_root(chain)
    for index in range(root):
        process = chain[index]
        leads = process.session == process.pid and chain[index + 1].session != process.session
        if leads and script_name(process.command) not in _PARTS_OF_THEIR_PARENT:
            return index
    return root


def script_name(command: Sequence[str]) -> str:
    """Return the base name of the script or module that an interpreter runs; "" if there is none."""
    arguments = iter(command[1:])
    for argument in arguments:
        if argument == "-m":
            return next(arguments, "")
        if argument == "-c":
            return ""
        if argument in ("-W", "-X"):
            next(arguments, "")
        elif not argument.startswith("-"):
            return argument.rpartition("/")[2]
    return ""
