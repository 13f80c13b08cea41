"""What happens to a test that needs something which is not here."""

from __future__ import annotations

import os
from typing import NoReturn

import pytest


def unavailable(reason: str) -> NoReturn:
    """Skip with a reason; in CI nothing may be unavailable, so there it fails."""
    if os.environ.get("CI", "").lower() == "true":
        pytest.fail(f"{reason} (CI=true, so this may not be skipped)")
    pytest.skip(reason)
