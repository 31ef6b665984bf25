"""What a process gives up for good before native code of it reads a file that may be hostile.

On Linux, without any privilege: sockets, other programs and other processes by a seccomp filter; all files but
those that it was given by Landlock. Elsewhere nothing but core dumps. It says what it has found to hold, never what
it has tried. Knows nothing of models. See seccomp(2), landlock(7) and prctl(2).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import platform
import struct
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from signal import SIGKILL
from typing import Any

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS = 1, 4, 38
_OUT_OF_MEMORY_SCORE = "500"  # of 1,000: where memory runs out, the system ends this process and not the app


def confine(readable: Iterable[Path] = ()) -> tuple[str, ...]:
    """Give up what this process does not need; return what holds from now on, for people to read.

    Of the files, those stay readable that are in `readable` (folders with what is in them), those of Python and of
    the packages that are loaded, shared libraries and what the system says of processor and memory. Call it while
    there is one thread: only that and those that it starts later are bound. Does not raise.
    """
    _limit_resources()
    holds = ["a process of its own"]
    if sys.platform != "linux":
        return tuple(holds)
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(_OUT_OF_MEMORY_SCORE)
    if libc.prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(SIGKILL), 0, 0, 0) == 0:
        holds.append("ends with its parent")
    if libc.prctl(_PR_SET_DUMPABLE, ctypes.c_ulong(0), 0, 0, 0) == 0:
        holds.append("nothing of it is written down when it crashes")
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, ctypes.c_ulong(1), ctypes.c_ulong(0), ctypes.c_ulong(0), ctypes.c_ulong(0)):
        return tuple(holds)  # both of what follows need it
    alone = len(list(Path("/proc/self/task").iterdir())) == 1
    restricted = _restrict_files(libc, [*readable, *_always_readable()])
    if restricted and alone and _is_forbidden(Path("/")):
        holds.append("reads the model and no other files of the user, writes none (Landlock)")
    if _filter_calls(libc) and alone and libc.socket(2, 1, 0) == -1 and ctypes.get_errno() == errno.EPERM:
        holds.append("no network, no other programs, no hold on other processes (seccomp)")
    return tuple(holds)


def _is_forbidden(folder: Path) -> bool:
    try:
        list(folder.iterdir())
    except PermissionError:
        return True
    return False


def _limit_resources() -> None:
    try:
        import resource
    except ImportError:  # Windows
        return
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def confinement_here(environment: Mapping[str, str]) -> tuple[str, ...]:
    """What `confine` would return on this system: tried in another process. Empty where none can be started."""
    command = [sys.executable, "-P", "-B", "-m", f"{__package__}.confinement"]
    try:
        done = subprocess.run(command, env=dict(environment), capture_output=True, timeout=20, check=True)
        return tuple(str(each) for each in json.loads(done.stdout))
    except (OSError, subprocess.SubprocessError, ValueError, TypeError):
        return ()


# --- files ------------------------------------------------------------------------------------------

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # the same on every architecture
_VERSION_ONLY, _PATH_BENEATH = 1, 1
_READ_FILE, _READ_FOLDER = 1 << 2, 1 << 3
_RIGHTS = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 4: (1 << 15) - 1}  # that a version knows
_ALL_RIGHTS = (1 << 16) - 1  # from version 5 on


class _PathBeneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("allowed", ctypes.c_uint64), ("parent", ctypes.c_int32))


def _restrict_files(libc: Any, readable: Iterable[Path]) -> bool:
    """Forbid every use of a file but reading those; False where the kernel does not do that."""
    abi = int(libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(_VERSION_ONLY)))
    if abi < 1:
        return False
    handled = ctypes.c_uint64(_RIGHTS.get(abi, _ALL_RIGHTS))
    rules = libc.syscall(_CREATE_RULESET, ctypes.byref(handled), ctypes.c_size_t(8), ctypes.c_uint32(0))
    if rules < 0:
        return False
    try:
        for path in readable:
            try:
                parent = os.open(path, os.O_PATH | os.O_CLOEXEC)
            except OSError:  # not on this system
                continue
            allowed = _READ_FILE | (_READ_FOLDER if path.is_dir() else 0)
            rule = _PathBeneath(allowed, parent)
            failed = libc.syscall(_ADD_RULE, rules, _PATH_BENEATH, ctypes.byref(rule), ctypes.c_uint32(0))
            os.close(parent)
            if failed:
                return False
        return not libc.syscall(_RESTRICT_SELF, rules, ctypes.c_uint32(0))
    finally:
        os.close(rules)


def _always_readable() -> Iterator[Path]:
    """Python's own files, the packages that are loaded, shared libraries, and facts about the machine.

    Not all of /proc: there, the command lines of other programs may hold secrets.
    """
    python = {*sysconfig.get_paths().values(), f"{sys.base_prefix}/lib"}
    yield from map(Path, python - {sys.prefix, sys.base_prefix})
    for module in list(sys.modules.values()):
        name, folders = getattr(module, "__name__", "."), getattr(module, "__path__", ())
        yield from map(Path, () if "." in name else folders)
    for name in (
        *("/usr/lib", "/usr/lib64", "/usr/local/lib", "/lib", "/lib64", "/etc/ld.so.cache"),
        *("/proc/self", "/proc/meminfo", "/proc/cpuinfo", "/proc/stat", "/proc/loadavg"),
        *("/sys/fs/cgroup", "/sys/devices/system", "/dev/null", "/dev/urandom"),
    ):
        yield Path(name)


# --- system calls -----------------------------------------------------------------------------------

_PR_SET_SECCOMP, _MODE_FILTER = 22, 2
_LOAD, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06  # instructions of the filter
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16  # where it finds them
_ALLOW, _FORBID = 0x7FFF0000, 0x00050000 | errno.EPERM
_OTHER_ABI = 0x40000000  # x32: calls of x86-64 under other numbers
_CALLS = (  # x86-64, and the numbers that newer architectures share
    (41, 198),  # socket
    (425, 425),  # io_uring_setup, which can make sockets too
    (59, 221),  # execve
    (322, 281),  # execveat
    (101, 117),  # ptrace
    (310, 270),  # process_vm_readv
    (311, 271),  # process_vm_writev
    (438, 438),  # pidfd_getfd
    (424, 424),  # pidfd_send_signal
    (62, 129),  # kill
    (200, 130),  # tkill
    (129, 138),  # rt_sigqueueinfo
    (297, 240),  # rt_tgsigqueueinfo
    (248, 217),  # add_key: the kernel's keyrings
    (249, 218),  # request_key
    (250, 219),  # keyctl
    (321, 280),  # bpf
    (298, 241),  # perf_event_open
)
_SIGNAL_TO_THREAD = (234, 131)  # tgkill; abort() sends itself one


@dataclass(frozen=True, slots=True)
class _Machine:
    architecture: int  # as the kernel's audit calls it
    column: int  # of `_CALLS`


_MACHINES = {
    "x86_64": _Machine(0xC000003E, 0),
    "aarch64": _Machine(0xC00000B7, 1),
    "riscv64": _Machine(0xC00000F3, 1),
}


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def _filter_calls(libc: Any) -> bool:
    """Let the kernel refuse `_CALLS`, and signals to others; False where it does not."""
    machine = _MACHINES.get(platform.machine())
    if machine is None or struct.calcsize("P") != 8 or sys.byteorder != "little":
        return False
    code = _program(machine, os.getpid())
    program = _Program(len(code) // 8, code)
    return not libc.prctl(_PR_SET_SECCOMP, ctypes.c_ulong(_MODE_FILTER), ctypes.byref(program), 0, 0)


def _program(machine: _Machine, own: int) -> bytes:
    """A filter in classic BPF, whose jumps are counted in instructions to skip if true and if false."""
    refuse = (_RETURN, 0, 0, _FORBID)
    steps = [(_LOAD, 0, 0, _ARCHITECTURE), (_EQUAL, 1, 0, machine.architecture), refuse]
    steps += [(_LOAD, 0, 0, _NUMBER), (_AT_LEAST, 0, 1, _OTHER_ABI), refuse]
    for numbers in _CALLS:
        steps += [(_EQUAL, 0, 1, numbers[machine.column]), refuse]
    steps += [(_EQUAL, 0, 3, _SIGNAL_TO_THREAD[machine.column]), (_LOAD, 0, 0, _FIRST_ARGUMENT)]
    steps += [(_EQUAL, 1, 0, own), refuse, (_RETURN, 0, 0, _ALLOW)]
    return b"".join(struct.pack("<HBBI", *step) for step in steps)


if __name__ == "__main__":
    sys.stdout.write(json.dumps(confine()))
