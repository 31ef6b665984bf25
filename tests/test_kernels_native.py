"""The programs of `native/` with sanitizers, and built for 64-bit ARM and run in an emulator (`make campaign`)."""

from __future__ import annotations

import platform
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
KERNELS = sorted((ROOT / "kernels").glob("*.c"))
PROGRAMS = sorted((ROOT / "tests" / "native").glob("*.c"))
FLAGS = ["-std=c11", "-O1", "-g", "-fno-math-errno", "-fno-trapping-math", "-Wall", "-Wextra", "-Werror"]
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"]
ARM_COMPILER, ARM_EMULATOR = "aarch64-linux-gnu-gcc", "qemu-aarch64"
needs_gcc = pytest.mark.skipif(shutil.which("gcc") is None, reason="no gcc")
needs_arm = pytest.mark.skipif(
    shutil.which(ARM_COMPILER) is None or shutil.which(ARM_EMULATOR) is None,
    reason="no ARM cross compiler or emulator: apt-get install gcc-aarch64-linux-gnu qemu-user",
)


def paths(
    folder: Path,
    compiler: str,
    *flags: str,
    runner: Sequence[str] = (),
    kernels: Sequence[Path] = KERNELS,
    programs: Sequence[Path] = PROGRAMS,
) -> set[str]:
    """Build and run the programs; the paths that they found right."""
    found: set[str] = set()
    for source in programs:
        program = folder / source.stem
        command = [compiler, *FLAGS, *flags, *map(str, kernels), str(source), "-o", str(program), "-lm"]
        built = subprocess.run(command, capture_output=True, text=True, check=False)
        assert built.returncode == 0, built.stderr
        done = subprocess.run([*runner, str(program)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        found |= set(done.stdout.splitlines())
    return found


@needs_gcc
def test_the_sanitizers_find_nothing_on_any_path_of_this_processor(tmp_path: Path) -> None:
    found = paths(tmp_path, "gcc", *SANITIZERS)
    assert {"scan 1", "bert portable", "logits", "greedy"} <= found
    if platform.machine() == "x86_64" and "avx2" in Path("/proc/cpuinfo").read_text():
        assert {"scan 2", "bert avx2"} <= found


@needs_gcc
def test_the_check_notices_a_wrong_kernel(tmp_path: Path) -> None:
    """The sabotage twin: one dot product is off by one."""
    source = (ROOT / "kernels" / "scan.c").read_text()
    wrong = tmp_path / "scan.c"
    assert "out[r] = sum;" in source
    wrong.write_text(source.replace("out[r] = sum;", "out[r] = sum + (r == 63);"))
    with pytest.raises(AssertionError, match="of 64x1"):
        checks = [ROOT / "tests" / "native" / "check_scan.c"]
        paths(tmp_path, "gcc", kernels=[wrong, ROOT / "kernels" / "logits.c"], programs=checks)


@needs_arm
@pytest.mark.campaign
@pytest.mark.parametrize(
    ("processor", "expected"),
    [
        ("cortex-a53", {"scan 1", "scan 8", "bert portable", "bert neon"}),
        ("max", {"scan 1", "scan 8", "scan 16", "bert portable", "bert neon", "bert neon-dotprod"}),
    ],
)
def test_the_paths_of_arm_agree_with_the_reference(tmp_path: Path, processor: str, expected: set[str]) -> None:
    found = paths(tmp_path, ARM_COMPILER, "-static", "-O3", runner=(ARM_EMULATOR, "-cpu", processor))
    assert found == {*expected, "logits", "greedy"}
