"""How much energy the processor has used, where the system tells it: Linux's powercap counters (Intel RAPL, AMD).

They count whole processor packages, so whatever else runs is in the figure. They are mostly readable by root only;
where they are not, as in virtual machines, the answer is None. Knows nothing of what runs meanwhile.
"""

from __future__ import annotations

from pathlib import Path

POWERCAP = Path("/sys/class/powercap")
_MICRO = 1e-6


class EnergyMeter:
    """Joules since `start`. Counters that have begun again from 0 in between are taken into account, once."""

    def __init__(self, folder: Path = POWERCAP) -> None:
        """Find the counters of whole packages; their parts (cores, graphics) and the platform are left out."""
        self._counters = [zone for zone in sorted(folder.glob("*:*")) if _is_package(zone)]
        self._begun = self._read()

    @property
    def readable(self) -> bool:
        """Whether there are counters, and all can be read."""
        return self._begun is not None

    def start(self) -> None:
        """Count from here."""
        self._begun = self._read()

    def joules(self) -> float | None:
        """What has been used since `start`; None where the system does not tell."""
        ended = self._read()
        if self._begun is None or ended is None:
            return None
        used = 0
        for zone, before, after in zip(self._counters, self._begun, ended, strict=True):
            used += (
                after - before if after >= before else after - before + (_number(zone, "max_energy_range_uj") or 0)
            )
        return used * _MICRO

    def _read(self) -> list[int] | None:
        values = [_number(zone, "energy_uj") for zone in self._counters]
        known = [value for value in values if value is not None]
        return known if values and len(known) == len(values) else None


def _is_package(zone: Path) -> bool:
    """`intel-rapl:0` is one, `intel-rapl:0:1` a part of it; `intel-rapl-mmio:0` counts the same package again."""
    return zone.name.count(":") == 1 and "mmio" not in zone.name and _text(zone / "name").startswith("package")


def _number(zone: Path, name: str) -> int | None:
    text = _text(zone / name)
    return int(text) if text.isdigit() else None


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""
