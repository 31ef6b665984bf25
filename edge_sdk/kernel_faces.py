"""The faces of `kernels`, importable also where another distribution owns that name.

`kernels` is a namespace folder. A regular package of the same name (transformers imports one) wins over the folder
of an editable install, and then the folder has to be added to that package's search path.
"""

from __future__ import annotations

from pathlib import Path

try:
    from kernels import bert, flag, greedy, logits, scan
except ImportError:
    import kernels

    kernels.__path__.append(str(Path(__file__).parents[1] / "kernels"))
    from kernels import bert, flag, greedy, logits, scan

__all__ = ["bert", "flag", "greedy", "logits", "scan"]
