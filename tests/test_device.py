"""Facts about the machine, read from made-up system files where the answer must be known."""

from __future__ import annotations

import mmap
import os
import shutil
import sys
import threading
from pathlib import Path

import pytest

from edge_sdk import device

GIB = 1 << 30


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty /proc and /sys, below one folder."""
    (tmp_path / "proc/self").mkdir(parents=True)
    monkeypatch.setattr(device, "_PROC", tmp_path / "proc")
    monkeypatch.setattr(device, "_SYS", tmp_path / "sys")
    return tmp_path


def write(system: Path, **files: str) -> None:
    """Write system files; `sys__fs` in a name stands for `sys/fs`."""
    for name, text in files.items():
        path = system / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")


def topology(system: Path, *siblings: str) -> None:
    for number, text in enumerate(siblings):
        path = system / f"sys/devices/system/cpu/cpu{number}/topology/thread_siblings_list"
        path.parent.mkdir(parents=True)
        path.write_text(text + "\n")


def group(system: Path, folder: str, **files: str) -> None:
    """Files of a control group, `_` for `.` after the first word."""
    path = system / "sys/fs/cgroup" / folder
    path.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (path / name.replace("_", ".", 1)).write_text(text + "\n")


# --- this machine -----------------------------------------------------------------------------------


def test_memory_that_this_process_has_taken_counts() -> None:
    before = device.process_memory()
    if before is None:
        pytest.skip("this system does not say")
    with mmap.mmap(-1, 50_000_000) as taken:  # memory that an earlier test has freed would not count again
        for page in range(0, len(taken), mmap.PAGESIZE):
            taken[page] = 1
        after = device.process_memory()
        assert after is not None
        assert before + 40_000_000 < after < before + len(taken) + 50_000_000


def test_the_real_machine_has_sane_figures() -> None:
    assert 1 <= device.usable_cores() <= (os.cpu_count() or 1)
    assert 1 <= device.default_threads() <= 8
    total, available = device.total_memory(), device.available_memory()
    assert total is None or total > 100_000_000
    assert available is None or total is None or 0 <= available <= total
    assert device.cpu_name()


# --- cores ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("siblings", "affinity", "cores"),
    [
        (("0-1", "0-1", "2-3", "2-3"), {0, 1, 2, 3}, 2),  # neighbours share a core
        (("0,2", "1,3", "0,2", "1,3"), {0, 1, 2, 3}, 2),  # the halves do
        (("0,2", "1,3", "0,2", "1,3"), {0, 1}, 2),  # two hardware threads of two cores
        (("0,2", "1,3", "0,2", "1,3"), {0, 2}, 1),  # both of one core
        (("0", "1"), {1}, 1),
        ((), {0, 1, 2}, 3),  # nothing is known of the cores
    ],
)
def test_cores_are_counted_and_not_hardware_threads(
    system: Path, monkeypatch: pytest.MonkeyPatch, siblings: tuple[str, ...], affinity: set[int], cores: int
) -> None:
    topology(system, *siblings)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: affinity, raising=False)
    assert device.usable_cores() == cores


@pytest.mark.parametrize(
    ("quota", "cores"),
    [("max 100000", 8), ("250000 100000", 2), ("50000 100000", 1), ("broken", 8), ("", 8), ("5 0", 8)],
)
def test_a_cpu_quota_limits_the_cores(
    system: Path, monkeypatch: pytest.MonkeyPatch, quota: str, cores: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
    write(system, proc__self__cgroup="0::/")
    group(system, "", cpu_max=quota)
    assert device.usable_cores() == cores


def test_the_tightest_quota_above_counts_in_both_versions(system: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
    write(system, proc__self__cgroup="3:cpu,cpuacct:/app\n0::/slice/app")
    group(system, "slice", cpu_max="500000 100000")
    group(system, "slice/app", cpu_max="600000 100000")
    assert device.usable_cores() == 5
    group(system, "cpu", cpu_cfs_quota_us="-1", cpu_cfs_period_us="100000")
    group(system, "cpu/app", cpu_cfs_quota_us="300000", cpu_cfs_period_us="100000")
    assert device.usable_cores() == 3


@pytest.mark.parametrize(("cores", "threads"), [(1, 1), (2, 2), (4, 4), (6, 5), (8, 7), (64, 8)])
def test_threads_leave_a_core_to_the_app_where_there_are_many(
    monkeypatch: pytest.MonkeyPatch, cores: int, threads: int
) -> None:
    monkeypatch.setattr(device, "usable_cores", lambda: cores)
    assert device.default_threads() == threads


# --- memory -----------------------------------------------------------------------------------------


def test_memory_without_limits_is_the_machines(system: Path) -> None:
    write(system, proc__meminfo="MemTotal:        8388608 kB\nMemFree: 1 kB\nMemAvailable:    4194304 kB")
    assert (device.total_memory(), device.available_memory()) == (8 * GIB, 4 * GIB)


def test_a_group_limit_counts_less_what_is_used_and_cached_files_do_not_count(system: Path) -> None:
    write(system, proc__meminfo="MemTotal: 8388608 kB\nMemAvailable: 4194304 kB", proc__self__cgroup="0::/a/b")
    group(
        system,
        "a",
        memory_max=str(3 * GIB),
        memory_current=str(2 * GIB),
        memory_stat=f"anon 5\ninactive_file {GIB}",
    )
    group(system, "a/b", memory_max="max", memory_current=str(GIB))
    assert (device.total_memory(), device.available_memory()) == (3 * GIB, 2 * GIB)


def test_limits_of_version_one_count_and_its_huge_number_is_no_limit(system: Path) -> None:
    write(
        system, proc__meminfo="MemTotal: 8388608 kB\nMemAvailable: 4194304 kB", proc__self__cgroup="4:memory:/app"
    )
    group(system, "memory", memory_limit_in_bytes="9223372036854771712", memory_usage_in_bytes="5")
    stat = f"inactive_file 1\ntotal_inactive_file {GIB // 2}"
    group(
        system,
        "memory/app",
        memory_limit_in_bytes=str(2 * GIB),
        memory_usage_in_bytes=str(GIB),
        memory_stat=stat,
    )
    assert (device.total_memory(), device.available_memory()) == (2 * GIB, GIB + GIB // 2)


def test_a_group_whose_path_is_the_hosts_is_read_at_its_root(system: Path) -> None:
    write(
        system, proc__meminfo="MemTotal: 8388608 kB\nMemAvailable: 8388608 kB", proc__self__cgroup="0::/docker/0a1b"
    )
    group(system, "", memory_max=str(GIB), memory_current=str(2 * GIB))
    assert device.available_memory() == 0  # over the limit: nothing left, not less than nothing


def test_what_is_not_known_is_none(system: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert device.available_memory() is None
    assert device.total_memory() == device._installed_memory()
    monkeypatch.setattr(device, "_installed_memory", lambda: None)
    assert device.total_memory() is None
    write(system, proc__meminfo="MemTotal: lots\nMemAvailable:", proc__self__cgroup="rubbish\n:\n1:memory")
    assert (device.total_memory(), device.available_memory()) == (None, None)


# --- disk and CPU -----------------------------------------------------------------------------------


def test_free_space_is_told_for_folders_that_do_not_exist_yet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(shutil, "disk_usage", _only_for(tmp_path))
    for path in (tmp_path, tmp_path / "a/b/c", tmp_path / "file/below", tmp_path / "nul\0"):
        assert device.free_disk(path) == 42


def _only_for(folder: Path) -> object:
    real = shutil.disk_usage

    def usage(path: Path) -> object:
        total, used, free = real(path)
        return type(real(path))(total, used, 42 if path in (folder, folder / "file") else free)

    return usage


def test_cpu_features_are_those_that_matter_on_intel_and_arm(system: Path) -> None:
    write(
        system,
        proc__cpuinfo="processor : 0\nmodel name : Some CPU @ 2 GHz\nflags : fpu avx2 fma sse4_2\n\nflags : avx",
    )
    assert (device.cpu_name(), device.cpu_features()) == ("Some CPU @ 2 GHz", ("sse4_2", "fma", "avx2"))
    write(system, proc__cpuinfo="processor : 0\nFeatures : fp asimd asimddp\nModel : Raspberry Pi 5 Model B")
    assert (device.cpu_name(), device.cpu_features()) == ("Raspberry Pi 5 Model B", ("asimd", "asimddp"))
    (system / "proc/cpuinfo").unlink()
    assert device.cpu_name()
    assert device.cpu_features() == ()


def test_a_group_that_is_slowed_down_beyond_a_mark_has_no_more_than_that(system: Path) -> None:
    write(system, proc__meminfo="MemTotal: 8388608 kB\nMemAvailable: 4194304 kB", proc__self__cgroup="0::/a")
    group(system, "a", memory_max="max", memory_high=str(2 * GIB), memory_current=str(GIB))
    assert (device.total_memory(), device.available_memory()) == (2 * GIB, GIB)
    group(system, "a", memory_max=str(GIB + GIB // 2), memory_high=str(2 * GIB), memory_current=str(GIB))
    assert device.available_memory() == GIB // 2


@pytest.mark.skipif(sys.platform != "linux", reason="threads have priorities of their own on Linux only")
def test_a_thread_that_gives_way_changes_itself_and_those_it_starts() -> None:
    def own() -> int:
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    def work() -> None:
        device.give_way()
        found.append(own())
        child = threading.Thread(target=lambda: found.append(own()))
        child.start()
        child.join()

    before, found = own(), list[int]()
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [max(10, before)] * 2
    assert own() == before
