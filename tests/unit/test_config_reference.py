"""The files in configs/ say what the schema says."""

from __future__ import annotations

from pathlib import Path

import pytest

from zbroker.config.load import load
from zbroker.config.presets import PRESETS
from zbroker.config.reference import preset_toml, reference_toml
from zbroker.config.schema import ServerConfig

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def test_the_reference_file_is_the_defaults() -> None:
    assert (CONFIGS / "reference.toml").read_text() == reference_toml(), (
        "write it anew: python -c 'from zbroker.config.reference import *; print(reference_toml(), end=\"\")'"
    )
    assert load(CONFIGS / "reference.toml", environment={}).config == ServerConfig()


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_a_preset_file_is_its_preset(name: str) -> None:
    assert (CONFIGS / f"{name}.toml").read_text() == preset_toml(name)
    from_file = load(CONFIGS / f"{name}.toml", environment={}).config
    assert from_file == load(environment={}, preset=PRESETS[name]).config
