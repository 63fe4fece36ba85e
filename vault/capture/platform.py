"""The machine that a run is on: kernel, distribution, processors, memory, GPUs and their driver, container.

Read from /proc, /sys and /etc, never asked of a program. Nothing here names the machine. Threads: safe.
"""

import os
import re
from collections.abc import Sequence
from typing import Final

from vault.capture.proc import CGROUP_SIZE_MAX, decode, parse_cgroups, read_bounded

GPUS_MAX: Final = 16
_FILE_SIZE_MAX: Final = 256 << 10
_TEXT_LENGTH_MAX: Final = 1024
_CONTAINER = re.compile(r"(?:^|[/-])([0-9a-f]{64}|libpod-[0-9a-f]{64})(?:\.scope)?(?:/|\Z)")
# Only what numerical libraries choose their code by: all flags together are longer than a field.
_FLAGS = re.compile(
    r"(?:sse\w*|ssse3|avx\w*|amx\w*|fma\w*|f16c|bmi\d|vaes|vpclmulqdq|gfni|asimd\w*|fp|fphp|sve\w*|bf16|i8mm|sme\d?|aes|v)\Z"
)
_VENDORS: Final = {"0x10de": "NVIDIA", "0x1002": "AMD", "0x8086": "Intel"}


def look_at_platform(container: str = "") -> dict[str, str]:
    """Return what is known of this machine, and of the container that the program is in."""
    system = os.uname()
    facts = {"kernel": f"{system.sysname} {system.release}", "machine": system.machine}
    if name := _value(_read("/etc/os-release"), "PRETTY_NAME", "="):
        facts["distribution"] = name.strip("\"'")
    processors = _read("/proc/cpuinfo")
    if model := _value(processors, "model name", ":") or _value(processors, "CPU implementer", ":"):
        facts["cpu"] = model
    flags = (_value(processors, "flags", ":") or _value(processors, "Features", ":")).split()
    if known := sorted({flag for flag in flags if _FLAGS.match(flag)}):
        facts["cpu_flags"] = " ".join(known)
    if count := os.cpu_count():
        facts["cpus"] = str(count)
    if memory := _value(_read("/proc/meminfo"), "MemTotal", ":").partition(" ")[0]:
        facts["memory"] = f"{int(memory) * 1024 / (1 << 30):.1f} GiB" if memory.isdigit() else memory
    facts |= {f"gpu.{number}": name for number, name in enumerate(_gpus()[:GPUS_MAX])}
    if driver := _driver():
        facts["driver"] = driver
    if container:
        facts["container"] = container
    return {name: value[:_TEXT_LENGTH_MAX] for name, value in facts.items()}


def container_of(pid: int) -> str:
    """Return the ID of the container that a process is in, as its control group says; "" if that names none."""
    try:
        paths = parse_cgroups(read_bounded(f"/proc/{pid}/cgroup", CGROUP_SIZE_MAX))
    except OSError:
        return ""
    match = next((m for path in paths if (m := _CONTAINER.search(path))), None)
    return match[1] if match else ""


def _gpus() -> list[str]:
    found = []
    for folder in _names("/proc/driver/nvidia/gpus"):
        if model := _value(_read(f"/proc/driver/nvidia/gpus/{folder}/information"), "Model", ":"):
            found.append(model)
    if not found:
        for card in _names("/sys/class/drm"):
            if re.fullmatch(r"card\d+", card):
                device = f"/sys/class/drm/{card}/device"
                vendor = _VENDORS.get(_read(f"{device}/vendor").strip(), "")
                if vendor:
                    product = _read(f"{device}/product_name").strip() or _read(f"{device}/device").strip()
                    found.append(f"{vendor} {product}")
    return found


def _driver() -> str:
    if match := re.search(r"Kernel Module(?: for \S+)?\s+(\d[\d.]+)", _read("/proc/driver/nvidia/version")):
        return f"nvidia {match[1]}"
    if version := _read("/sys/module/nvidia/version").strip():
        return f"nvidia {version}"
    version = _read("/sys/module/amdgpu/version").strip()
    return f"amdgpu {version}" if version else ""


def _names(folder: str) -> Sequence[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return ()


def _read(path: str) -> str:
    try:
        return decode(read_bounded(path, _FILE_SIZE_MAX))
    except OSError:
        return ""


def _value(text: str, name: str, separator: str) -> str:
    """Return what follows a name on its line, the first of that name."""
    for line in text.splitlines():
        key, found, value = line.partition(separator)
        if found and key.strip() == name:
            return value.strip()
    return ""
