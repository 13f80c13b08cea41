"""Your own in a browser: an upload that does not fit, an expert that does, and on to Explore."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from explorer.rooms.own.handlers import shipped_experts
from tests import tiny
from tests.app.conftest import Watched

pytestmark = pytest.mark.browser


@pytest.fixture
def page(watched: Watched, synthetic_page_url: str) -> Any:
    page: Any = watched.page
    page.set_default_timeout(60_000)
    page.goto(synthetic_page_url)
    page.wait_for_selector(".token")
    page.click("button[role=tab]:has-text('Your own')")
    page.wait_for_selector("#own-table .own-empty")
    return page


def test_what_fits_is_shown_and_explored(page: Any, tmp_path: Path) -> None:
    folder = Path(tiny.save_expert(tmp_path / "law", 1, r=4, target_modules=["q_proj"]))
    config = json.loads((folder / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = "org/<img src=x onerror=alert(1)>${1+1}{{1+1}}"
    with zipfile.ZipFile(tmp_path / "law.zip", "w") as archive:
        archive.writestr("adapter_config.json", json.dumps(config))
        archive.write(folder / "adapter_model.safetensors", "adapter_model.safetensors")
    page.set_input_files("#own-files input[type=file]", str(tmp_path / "law.zip"))
    page.wait_for_selector(".own-refused")
    assert "another shape" in page.text_content(".own-refused .own-verdict")
    assert page.locator(".own-fit img").count() == 0
    assert page.locator("#own-explore").is_disabled()

    name = next(key for key in shipped_experts() if key.startswith("smollm2-135m"))
    page.click("#own-shipped input")
    page.click(f"ul[role=listbox] li:has-text('{name}')")
    page.wait_for_selector(".own-fits")
    assert "of" in page.text_content(".own-fits td:nth-child(4)")
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")

    page.wait_for_function("!document.querySelector('#own-explore').disabled")
    page.click("#own-explore")
    page.wait_for_selector("#room-explore #prompt:visible")
    page.wait_for_function("document.querySelector('#mixer input').value.includes('untrained router')")
