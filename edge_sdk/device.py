"""What this machine offers to one process: cores, memory, disk space, CPU features.

Container limits (cgroup v1 and v2) and CPU affinity count, not only what the hardware has. No third-party
packages, nothing is changed, unknown is None.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

_PROC, _SYS = Path("/proc"), Path("/sys")
_BACKGROUND = 10  # the "nice" value at which a thread gets a tenth of a core that another one wants
_NO_LIMIT = 1 << 60  # cgroup v1 writes a huge number


def usable_cores() -> int:
    """Physical cores that this process may keep busy, at least 1: affinity and CPU quota are respected."""
    try:
        logical: Iterable[int] = os.sched_getaffinity(0)
    except AttributeError:  # not on macOS and Windows
        logical = range(os.cpu_count() or 1)
    cores = len({_physical_core(number) for number in logical})
    quota = _cpu_quota()
    return max(1, cores if quota is None else min(cores, int(quota)))


def default_threads() -> int:
    """Threads for an engine: every usable core up to four, beyond that one is left to the rest of the app."""
    cores = usable_cores()
    return cores if cores <= 4 else min(cores - 1, 8)


def available_memory() -> int | None:
    """Bytes that can be taken without swapping or meeting a container's limit."""
    rooms = [_meminfo("MemAvailable"), *(limit - used for limit, used in _memory_limits())]
    return min((max(0, room) for room in rooms if room is not None), default=None)


def total_memory() -> int | None:
    """Bytes of memory of the machine, or of the container where that is less."""
    totals = [_meminfo("MemTotal") or _installed_memory(), *(limit for limit, _ in _memory_limits())]
    return min((total for total in totals if total is not None), default=None)


def process_memory() -> int | None:
    """Bytes of memory that this process has resident now; None where the system does not say."""
    size = _field(_PROC / "self/status", "VmRSS").removesuffix("kB").strip()
    return int(size) * 1024 if size.isdigit() else None


def give_way() -> None:
    """Let the calling thread, and those that it starts, give way to all others that want to compute or read.

    Linux only, and for good: a thread may not raise its priority again. Disk priority follows from that of the CPU.
    """
    if sys.platform != "linux":
        return
    thread = threading.get_native_id()
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, thread, max(_BACKGROUND, os.getpriority(os.PRIO_PROCESS, thread)))


def free_disk(path: Path) -> int:
    """Bytes free on the file system of `path`, which need not exist yet."""
    path = path.absolute()
    while path != path.parent:
        try:
            return shutil.disk_usage(path).free
        except (OSError, ValueError):  # not there yet, or not readable: the folder above is on the same file system
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


def describe() -> dict[str, object]:
    """What a measurement says of the machine that made it; memory in MiB."""
    memory = total_memory()
    return {
        "cpu": cpu_name(),
        "cores": usable_cores(),
        "features": list(cpu_features()),
        "memory_mb": None if memory is None else memory >> 20,
        "system": platform.platform(),
        "python": platform.python_version(),
    }


def _physical_core(logical: int) -> str:
    """The same text for the logical CPUs of one core."""
    siblings = _SYS / f"devices/system/cpu/cpu{logical}/topology/thread_siblings_list"
    return _read(siblings) or str(logical)


def _installed_memory() -> int | None:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):  # Windows
        return None


def _meminfo(name: str) -> int | None:
    value = _field(_PROC / "meminfo", name).removesuffix("kB").strip()
    return int(value) * 1024 if value.isdigit() else None


def _cpuinfo(name: str) -> str:
    return _field(_PROC / "cpuinfo", name)


def _field(path: Path, name: str) -> str:
    """The value of the first `name : value` line of a file in /proc."""
    for line in _read(path).splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return ""


# --- control groups (v1 and v2) ---------------------------------------------------------------------


def _cpu_quota() -> float | None:
    """CPUs' worth of time that the tightest control group allows; None without a limit."""
    quotas = []
    for folder in _control_groups("cpu"):
        quota, _, period = _read(folder / "cpu.max").partition(" ")
        quota, period = quota or _read(folder / "cpu.cfs_quota_us"), period or _read(folder / "cpu.cfs_period_us")
        if quota.isdigit() and period.isdigit() and int(period):  # "max" and -1 mean no limit
            quotas.append(int(quota) / int(period))
    return min(quotas, default=None)


def _memory_limits() -> Iterator[tuple[int, int]]:
    """Limit and use, in bytes, of every control group that has a limit. Cached files do not count as use.

    Beyond `memory.high` processes are slowed down until they give some back, so it is a limit too.
    """
    for folder in _control_groups("memory"):
        limits = (_number(folder / name) for name in ("memory.max", "memory.high", "memory.limit_in_bytes"))
        limit = min((limit for limit in limits if limit is not None), default=None)
        used = _number(folder / "memory.current", folder / "memory.usage_in_bytes")
        if limit is not None and used is not None and limit < _NO_LIMIT:
            statistics = dict(line.partition(" ")[::2] for line in _read(folder / "memory.stat").splitlines())
            cached = statistics.get("total_inactive_file") or statistics.get("inactive_file") or "0"
            yield limit, used - int(cached)


def _control_groups(controller: str) -> Iterator[Path]:
    """The folders of this process's control groups, from its own up to the root: the limits of all hold.

    In a container the path may be the host's and not exist; the root is then the container's own group.
    """
    for line in _read(_PROC / "self/cgroup").splitlines():
        _, controllers, group = (*line.split(":", 2), "", "")[:3]
        if controllers == "":
            root = _SYS / "fs/cgroup"
        elif controller in controllers.split(","):
            root = _SYS / "fs/cgroup" / controller
        else:
            continue
        folder = root / group.strip("/")
        yield from (candidate for candidate in (folder, *folder.parents) if candidate.is_relative_to(root))


def _number(*paths: Path) -> int | None:
    return next((int(text) for path in paths if (text := _read(path)).isdigit()), None)


def _read(path: Path) -> str:
    """The text of a small system file, "" where there is none."""
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""
