"""Builds `kernels/*.c` into one shared library beside its Python faces; everything else is in pyproject.toml.

The library has no Python in it and is loaded with ctypes. It is optional: without a compiler the install goes on
and numpy does the same work.
"""

from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

FLAGS = ["-std=c11", "-O3", "-fno-math-errno", "-fno-trapping-math", "-fvisibility=hidden"]
SOURCES, HEADERS = (sorted(path.as_posix() for path in Path("kernels").glob(f"*.{kind}")) for kind in "ch")


class BuildLibrary(build_ext):
    """`build_ext` for a library that is not a Python module."""

    def get_ext_filename(self, fullname: str) -> str:
        """Without the interpreter's tag: any Python loads it."""
        return fullname.replace(".", "/") + (".dll" if self.plat_name.startswith("win") else ".so")

    def get_export_symbols(self, ext: Extension) -> list[str]:
        """No PyInit function; the C files mark what they export."""
        return []

    def build_extension(self, ext: Extension) -> None:
        if self.compiler.compiler_type != "msvc":
            ext.extra_compile_args, ext.libraries = FLAGS, ["m"]
        super().build_extension(ext)


setup(
    ext_modules=[Extension("kernels._edge_kernels", SOURCES, depends=HEADERS, optional=True)],
    cmdclass={"build_ext": BuildLibrary},
)
