"""Which model is to be opened and how, as a record that can be sent to another process.

The one place that chooses between the engines. Knows nothing of processes and settings.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from .engine import Engine, adapted_fingerprint, file_fingerprint
from .profile import DEFAULT, Tuning

if TYPE_CHECKING:
    from .prefix_cache import PrefixCache


@dataclass(frozen=True, slots=True)
class Opening:
    """The arguments of `GgufEngine.open`, or with `form="onnx"` those of `OnnxEngine.open`.

    `path` is the `.gguf` file, or the `.onnx` file in its folder; what comes after `sha256` is for GGUF alone. With
    `sequences` beyond one it is opened as `BatchEngine`, on which so many generations run at once.
    """

    path: Path
    form: Literal["gguf", "onnx"] = "gguf"
    name: str | None = None
    context: int | None = None
    threads: int | None = None
    sha256: str | None = None
    template: str | None = None
    tuning: Tuning = DEFAULT
    adapter: Path | None = None
    speculation: bool = False
    sequences: int = 1

    @property
    def title(self) -> str:
        """What the model is called while nobody has read its name in the file."""
        return self.name or (self.path.absolute().parent.name if self.form == "onnx" else self.path.stem)

    @property
    def files(self) -> tuple[Path, ...]:
        """What has to be read to open it: files, and folders with what is in them."""
        return tuple(filter(None, [self.path.parent if self.form == "onnx" else self.path, self.adapter]))

    def open(self, prefix_cache: PrefixCache | None = None) -> Engine:
        """Open it in this process; raises what the engine's `open` raises. Many at once use no `prefix_cache`."""
        if self.form == "onnx":
            from .engine_onnx import OnnxEngine

            return OnnxEngine.open(
                self.path.parent, name=self.name, context=self.context, threads=self.threads, sha256=self.sha256
            )
        if self.sequences > 1:
            from .batch_engine import BatchEngine

            return BatchEngine.open(
                self.path,
                name=self.name,
                sequences=self.sequences,
                context=self.context,
                threads=self.threads,
                sha256=self.sha256,
                template=self.template,
                tuning=self.tuning,
                adapter=self.adapter,
            )
        from .engine_gguf import GgufEngine

        return GgufEngine.open(
            self.path,
            name=self.name,
            context=self.context,
            threads=self.threads,
            sha256=self.sha256,
            template=self.template,
            tuning=self.tuning,
            adapter=self.adapter,
            speculation=self.speculation,
            prefix_cache=prefix_cache,
        )

    def fingerprint(self) -> str:
        """As the opened engine has it; takes as long as reading the files where `sha256` is not known."""
        own = self.sha256 or file_fingerprint(self.path)
        return own if self.adapter is None else adapted_fingerprint(own, file_fingerprint(self.adapter))

    def values(self) -> dict[str, Any]:
        """As JSON values; paths are absolute."""
        adapter = None if self.adapter is None else str(self.adapter.absolute())
        return {**asdict(self), "path": str(self.path.absolute()), "adapter": adapter}

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> Self:
        """The same from its `values`.

        >>> opening = Opening(Path("/models/m.gguf"), context=512, adapter=Path("/models/a.gguf"))
        >>> Opening.from_values(opening.values()) == opening
        True
        """
        made = cls(**values)
        tuning = Tuning(**values["tuning"])
        adapter = None if made.adapter is None else Path(made.adapter)
        return replace(made, path=Path(made.path), tuning=tuning, adapter=adapter)
