"""`native/check_kernels.c` with sanitizers, and built for 64-bit ARM and run in an emulator (`make kernels`)."""

from __future__ import annotations

import platform
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = [*sorted((ROOT / "kernels").glob("*.c")), ROOT / "tests" / "native" / "check_kernels.c"]
FLAGS = ["-std=c11", "-O1", "-g", "-fno-math-errno", "-fno-trapping-math", "-Wall", "-Wextra", "-Werror"]
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"]
ARM_COMPILER, ARM_EMULATOR = "aarch64-linux-gnu-gcc", "qemu-aarch64"
needs_gcc = pytest.mark.skipif(shutil.which("gcc") is None, reason="no gcc")
needs_arm = pytest.mark.skipif(
    shutil.which(ARM_COMPILER) is None or shutil.which(ARM_EMULATOR) is None,
    reason="no ARM cross compiler or emulator: apt-get install gcc-aarch64-linux-gnu qemu-user",
)


def build(compiler: str, output: Path, *flags: str) -> Path:
    command = [compiler, *FLAGS, *flags, *map(str, SOURCES), "-o", str(output), "-lm"]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    return output


def check(*command: str) -> set[str]:
    """The paths that the program checked."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return set(done.stdout.splitlines())


@needs_gcc
def test_the_sanitizers_find_nothing_on_any_path_of_this_processor(tmp_path: Path) -> None:
    paths = check(str(build("gcc", tmp_path / "check", *SANITIZERS)))
    assert {"scan 1", "bert portable", "logits"} <= paths
    if platform.machine() == "x86_64" and "avx2" in Path("/proc/cpuinfo").read_text():
        assert {"scan 2", "bert avx2"} <= paths


@needs_gcc
def test_the_check_notices_a_wrong_kernel(tmp_path: Path) -> None:
    """The sabotage twin: one dot product is off by one."""
    source = (ROOT / "kernels" / "scan.c").read_text()
    wrong = tmp_path / "scan.c"
    assert "out[r] = sum;" in source
    wrong.write_text(source.replace("out[r] = sum;", "out[r] = sum + (r == 63);"))
    sources = [wrong if path.name == "scan.c" else path for path in SOURCES]
    program = tmp_path / "check"
    subprocess.run(["gcc", *FLAGS, *map(str, sources), "-o", str(program), "-lm"], check=True)
    done = subprocess.run([str(program)], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "of 64x1" in done.stderr


@needs_arm
@pytest.mark.parametrize(
    ("processor", "expected"),
    [
        ("cortex-a53", {"scan 1", "scan 8", "bert portable", "bert neon", "logits"}),
        ("max", {"scan 1", "scan 8", "scan 16", "bert portable", "bert neon", "bert neon-dotprod", "logits"}),
    ],
)
def test_the_paths_of_arm_agree_with_the_reference(tmp_path: Path, processor: str, expected: set[str]) -> None:
    program = build(ARM_COMPILER, tmp_path / "check", "-static", "-O3")
    assert check(ARM_EMULATOR, "-cpu", processor, str(program)) == expected
