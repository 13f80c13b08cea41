"""Fixtures that several integration tests share."""

from __future__ import annotations

import pytest

from tests import tiny


@pytest.fixture(scope="module")
def experts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Three saved random experts of different ranks, scalings and sites: name → folder."""
    return tiny.save_experts(tmp_path_factory.mktemp("experts"))
