"""What this machine offers to one process: cores, memory, disk space, CPU features.

Container limits (cgroup v1 and v2) and CPU affinity count, not only what the hardware has. No third-party
packages, nothing is changed, unknown is None.
"""

from __future__ import annotations

import os
import platform
import shutil
from pathlib import Path

_PROC_CPU, _PROC_MEMORY, _CGROUP = Path("/proc/cpuinfo"), Path("/proc/meminfo"), Path("/sys/fs/cgroup")


def usable_cores() -> int:
    """Physical cores that this process may keep busy, at least 1: affinity and CPU quota are respected."""
    try:
        logical = len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS and Windows
        logical = os.cpu_count() or 1
    quota = _cpu_quota()
    cores = max(1, logical // _threads_per_core())
    return max(1, min(cores, int(quota))) if quota else cores


def default_threads() -> int:
    """Threads for an engine: every usable core up to four, beyond that one is left to the rest of the app."""
    cores = usable_cores()
    return cores if cores <= 4 else min(cores - 1, 8)


def available_memory() -> int | None:
    """Bytes that can be taken without swapping or meeting the container's limit."""
    free = _meminfo("MemAvailable")
    limit = _cgroup_number("memory.max", "memory/memory.limit_in_bytes")
    used = _cgroup_number("memory.current", "memory/memory.usage_in_bytes")
    if limit is not None and used is not None:
        room = max(0, limit - used + _cgroup_reclaimable())
        return room if free is None else min(free, room)
    return free


def total_memory() -> int | None:
    """Bytes of memory of the machine, or of the container where that is less."""
    total = _meminfo("MemTotal")
    limit = _cgroup_number("memory.max", "memory/memory.limit_in_bytes")
    return limit if limit is not None and (total is None or limit < total) else total


def free_disk(path: Path) -> int:
    """Bytes free on the file system of `path`, which need not exist yet."""
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def cpu_features() -> tuple[str, ...]:
    """The instruction sets that matter to inference, of those that this CPU has."""
    wanted = ("sse4_2", "avx", "f16c", "fma", "avx2", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16",
              "avx_vnni", "amx_int8", "neon", "asimd", "asimddp", "i8mm", "sve", "sve2")  # fmt: skip
    present = set(_cpuinfo("flags").split()) | set(_cpuinfo("Features").split())
    return tuple(name for name in wanted if name in present)


def cpu_name() -> str:
    """The processor as it calls itself."""
    return _cpuinfo("model name") or _cpuinfo("Model") or platform.processor() or platform.machine()


def _threads_per_core() -> int:
    try:
        siblings = Path("/sys/devices/system/cpu/cpu0/topology/thread_siblings_list").read_text()
    except OSError:
        return 1
    count = 0
    for part in siblings.strip().split(","):
        first, _, last = part.partition("-")
        count += int(last) - int(first) + 1 if last else 1
    return max(1, count)


def _cpu_quota() -> float | None:
    try:
        quota, _, period = (_CGROUP / "cpu.max").read_text().strip().partition(" ")
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        return None


def _meminfo(name: str) -> int | None:
    try:
        for line in _PROC_MEMORY.read_text().splitlines():
            if line.startswith(name + ":"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return None


def _cpuinfo(name: str) -> str:
    try:
        for line in _PROC_CPU.read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == name:
                return value.strip()
    except OSError:
        pass
    return ""


def _cgroup_number(*names: str) -> int | None:
    for name in names:
        try:
            text = (_CGROUP / name).read_text().strip()
        except OSError:
            continue
        if text.isdigit() and int(text) < 1 << 60:  # v1 writes a huge number for "no limit"
            return int(text)
    return None


def _cgroup_reclaimable() -> int:
    try:
        for line in (_CGROUP / "memory.stat").read_text().splitlines():
            if line.startswith("inactive_file "):
                return int(line.split()[1])
    except (OSError, ValueError):
        pass
    return 0
