"""On-device assistant SDK: small local models, retrieval over your documents, a remote model only when unsure.

Names are loaded on first use, so that `import edge_sdk` costs next to nothing.
"""

from __future__ import annotations

__version__ = "0.1.0"

_WHERE = {
    "Answer": "records",
    "Citation": "records",
    "Edge": "edge",
    "EdgeError": "errors",
    "GenerateOptions": "records",
    "Hit": "records",
    "Message": "records",
    "Passage": "records",
    "Token": "records",
}
__all__ = ["__version__", *_WHERE]


def __getattr__(name: str) -> object:
    if name in _WHERE:
        import importlib

        return getattr(importlib.import_module(f"{__name__}.{_WHERE[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
