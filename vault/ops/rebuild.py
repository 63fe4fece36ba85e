"""Makes a virtual environment with the distributions that a run had, by uv where it is installed, else by pip.

Every distribution is pinned to its version, or to where it came from; dependencies are not resolved again. Which index is
asked, and with what credentials, is the user's own configuration of uv or pip. Threads: safe.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from typing import Final

from vault.errors import TargetUnwritable
from vault.ops.captured import Document
from vault.ops.preflight import python_for

_NAME: Final = re.compile(r"[a-z0-9](?:[a-z0-9._-]*[a-z0-9])?\Z")
_VERSION: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9.!+_-]*\Z")
_URL: Final = re.compile(r"(?:git\+)?https?://[\w.~:/@%+=&?#-]+\Z")
_OWN: Final = frozenset({"pip", "setuptools", "wheel"})  # what a new environment has, or nobody imports
_SAID_MAX: Final = 2000


def requirements(document: Document) -> list[str]:
    """Return the distributions as lines for an installer. What comes from a folder of a lost machine is left out.

    A line that could be an option or a command of the installer is none of ours: names and versions are checked.
    """
    lines = []
    for package in document.packages:
        url = package.direct_url if isinstance(package.direct_url, str) else ""
        if package.name in _OWN or not _NAME.match(package.name) or not _VERSION.match(package.version):
            continue
        if url and _URL.match(url):
            lines.append(f"{package.name} @ {url}")
        elif not url.startswith("file:"):
            lines.append(f"{package.name}=={package.version}")
    return lines


def rebuild(document: Document, folder: str, command: Sequence[str]) -> str:
    """Make the environment in a folder that does not exist. Returns the program in it that runs a command.

    Raises:
        TargetUnwritable: it could not be made; says what the installer said.
    """
    python = python_for(document)
    uv = shutil.which("uv")
    _run([uv, "venv", "-q", "--python", python, folder] if uv else [python, "-m", "venv", folder], folder)
    listed = os.path.join(folder, "requirements.txt")
    with open(listed, "w", encoding="utf-8") as file:
        file.write("".join(f"{line}\n" for line in requirements(document)))
    own = os.path.join(folder, "bin", "python")
    install = [uv, "pip", "install", "-q", "--python", own] if uv else [own, "-m", "pip", "install", "-q"]
    if requirements(document):
        _run([*install, "--no-deps", "-r", listed], folder)
    program = os.path.join(folder, "bin", os.path.basename(command[0]))
    return program if os.path.exists(program) else own


def _run(words: Sequence[str | None], folder: str) -> None:
    done = subprocess.run(
        [word for word in words if word is not None], stdin=subprocess.DEVNULL, capture_output=True, check=False
    )
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip()[-_SAID_MAX:]
        raise TargetUnwritable(folder, f"the environment could not be made: {said}")
