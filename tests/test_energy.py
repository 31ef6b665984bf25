"""Energy from the counters of whole packages, and None wherever the system does not tell all of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge_sdk.bench.energy import EnergyMeter


def zone(folder: Path, number: str, name: str, joules: float | None, most: float = 100.0) -> Path:
    found = folder / number
    found.mkdir(exist_ok=True)
    (found / "name").write_text(f"{name}\n")
    (found / "max_energy_range_uj").write_text(f"{round(most * 1e6)}\n")
    if joules is not None:
        (found / "energy_uj").write_text(f"{round(joules * 1e6)}\n")
    return found


def test_packages_are_added_up_and_their_parts_are_not(tmp_path: Path) -> None:
    def count(first: float, second: float) -> None:
        zone(tmp_path, "intel-rapl:0", "package-0", first)
        zone(tmp_path, "intel-rapl:1", "package-1", second)
        for number, name in (
            ("intel-rapl:0:0", "core"),
            ("intel-rapl:2", "psys"),
            ("intel-rapl-mmio:0", "package-0"),
        ):
            zone(tmp_path, number, name, first + 1000)

    count(10, 20)
    meter = EnergyMeter(tmp_path)
    assert meter.readable
    count(12.5, 21)
    assert meter.joules() == pytest.approx(3.5)
    meter.start()
    assert meter.joules() == 0


def test_a_counter_that_began_again_is_taken_into_account(tmp_path: Path) -> None:
    zone(tmp_path, "intel-rapl:0", "package-0", 99)
    meter = EnergyMeter(tmp_path)
    zone(tmp_path, "intel-rapl:0", "package-0", 3)
    assert meter.joules() == pytest.approx(4.0)


def test_what_cannot_be_read_is_none(tmp_path: Path) -> None:
    for folder in (tmp_path / "none", tmp_path):
        meter = EnergyMeter(folder)
        assert (meter.readable, meter.joules()) == (False, None)
    zone(tmp_path, "intel-rapl:0", "package-0", 1)
    second = zone(tmp_path, "intel-rapl:1", "package-1", None)
    assert not EnergyMeter(tmp_path).readable  # half of the energy is no figure
    (second / "energy_uj").write_text("5")
    meter = EnergyMeter(tmp_path)
    (second / "energy_uj").unlink()
    assert (meter.readable, meter.joules()) == (True, None)
