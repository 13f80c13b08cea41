"""The room Trade-off in Chromium, over invented files."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import pytest

from tests.app.conftest import Watched
from tests.app.plane_files import SETTINGS, write_plane, write_replay
from tests.app.synthetic import FakeSource
from tests.app.synthetic_app import make_recordings
from tests.app.test_accessibility import RUN, axe_script

pytestmark = pytest.mark.browser

MILLISECONDS = 150_000


@pytest.fixture(scope="module")
def plane_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of the page over invented experiments."""
    from explorer.layout import build, launch_options

    folder = tmp_path_factory.mktemp("plane")
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        patch.setattr("explorer.rooms.tradeoff.handlers.RESULTS", write_plane(folder / "results"))
        patch.setattr("explorer.rooms.tradeoff.handlers.FOLDER", write_replay(folder / "replays").parent)
        demo = build(FakeSource(), make_recordings(tmp_path_factory.mktemp("traces")))
        _, url, _ = demo.launch(prevent_thread_lock=True, quiet=True, **launch_options())
    yield url
    demo.close()


@pytest.fixture
def page(watched: Watched, plane_url: str) -> Any:
    watched.page.set_default_timeout(MILLISECONDS)
    watched.page.goto(f"{plane_url}?v=1&room=tradeoff")
    watched.page.wait_for_selector(".plane svg [data-key]")
    return watched.page


def wait_for_title(page: Any, name: str) -> None:
    page.wait_for_selector(f".plane-view .card-title:has-text('{name}')")


def test_arrow_keys_walk_and_enter_opens(page: Any) -> None:
    page.focus(".plane")
    by_x = sorted(SETTINGS, key=lambda setting: SETTINGS[setting][0])
    page.wait_for_function(
        "name => document.querySelector('.plane-view .card-title')?.textContent.includes(name)", arg=by_x[0]
    )
    page.keyboard.press("ArrowRight")
    page.wait_for_function(
        "name => document.querySelector('.plane-view .card-title').textContent.includes(name)", arg=by_x[1]
    )
    assert "undecided 0.550, balanced 0.620" in page.text_content(".plane-view .card-live")
    page.keyboard.press("Enter")
    page.wait_for_selector(".plane-view [role=option][aria-selected=true]", state="attached")
    assert by_x[1] in page.text_content(".plane-view [role=option][aria-selected=true]")
    page.wait_for_function("new URL(location).searchParams.get('r')?.startsWith('none')")
    active = page.get_attribute(".plane", "aria-activedescendant")
    assert page.locator(f"#{active}").count() == 1


def test_the_table_sorts_and_chooses(page: Any) -> None:
    first = ".plane-view tbody tr:first-child"
    assert "RSL sharpen" in page.text_content(first)  # the lowest loss
    page.click(".plane-view .sort:has-text('undecided')")
    assert page.get_attribute(".plane-view th[aria-sort=ascending]", "scope") == "col"
    page.click(".plane-view .sort:has-text('undecided')")
    page.wait_for_selector(".plane-view th[aria-sort=descending]")
    assert "RSL flatten" in page.text_content(first)
    page.click(f"{first} .row-name")
    page.wait_for_selector(".plane-view .card-sign")
    assert "raises it" in page.text_content(".plane-view .card-sign")


def test_a_point_is_clicked_and_layers_are_hidden(page: Any) -> None:
    page.click(".plane svg [data-key^='load balance']")
    page.wait_for_selector(".plane-view .card-title:has-text('load balance 4')")
    assert "not installed" in page.text_content(".plane-view .actions")
    lines = "document.querySelectorAll('.plane svg polyline').length"
    assert page.evaluate(lines) == 3 * len(SETTINGS)
    page.click(".plane-view .choice:has-text('Training paths')")
    page.wait_for_function(f"{lines} === 0")


def test_measured_routers_open_in_explore(page: Any) -> None:
    page.click("#tradeoff-measure")
    page.wait_for_selector(".plane svg [data-key='live:smollm2-135m/load-balance']")
    # From the table, since the invented traces place both routers on one point.
    page.click(".plane-view .row-name:text-is('Load balance')")
    page.click(".plane-view .action:has-text('Open in Explore')")
    page.wait_for_selector("#mixer input", state="visible")
    page.wait_for_function("document.querySelector('#mixer input').value === 'Load balance'")


def test_measuring_leaves_the_view_as_it_is(page: Any) -> None:
    page.click(".plane-view .choice:has-text('Close up')")
    page.click(".plane-view .row-name:text-is('load balance 4')")
    assert page.evaluate("document.activeElement.textContent") == "load balance 4"  # the table was drawn anew
    page.focus(".plane")
    page.keyboard.press("ArrowRight")
    page.wait_for_function("new URL(location).searchParams.get('r')?.startsWith('RSL flatten')")
    page.click("#tradeoff-measure")
    page.wait_for_selector(".plane svg [data-key^='live:'] >> nth=1", state="attached")
    assert page.get_attribute(".plane-view .choice:has-text('Close up')", "aria-pressed") == "true"
    assert "RSL flatten" in page.text_content(".plane-view tr.chosen")
    corners = (
        "name => [...document.querySelectorAll('.plane-view tbody tr')].find((row) => row.textContent.includes(name))"
    )
    read = f"name => getComputedStyle(({corners})(name).querySelector('.mark-number')).borderRadius"
    assert page.evaluate(read, "Load balance") != page.evaluate(read, "load balance 4")


def test_a_replay_that_is_out_of_sight_tells_nobody(page: Any) -> None:
    page.click("#tradeoff-replay input")
    page.click("[role=option]:has-text('RSL (5 steps)')")
    page.wait_for_selector(".replay-view[data-empty=false] .frames-map canvas", state="visible")
    page.click("#tradeoff-frames .frames-measures .choice >> nth=1")
    assert page.evaluate("document.activeElement.matches('.frames-measures .choice[aria-pressed=true]')")
    page.evaluate(
        """() => {
          window.told = [];
          document.addEventListener('loramixer:replay', ({ detail }) => window.told.push(detail.trail.length));
        }"""
    )
    page.click("button[role=tab]:has-text('Lessons')")
    page.wait_for_selector("#lesson-text", state="visible")
    page.evaluate(
        """() => {
          window.told.length = 0;
          const slider = document.querySelector('#tradeoff-frames .frames-slider');
          slider.value = '3';
          slider.dispatchEvent(new Event('input'));
        }"""
    )
    assert page.evaluate("window.told") == []
    page.click("button[role=tab]:has-text('Trade-off')")
    page.wait_for_function("window.told.includes(4)")
    assert page.locator(".plane svg text:has-text('prompt, step 30')").count() == 1


def test_a_replay_moves_the_map_and_the_point(page: Any) -> None:
    page.click("#tradeoff-replay input")
    page.click("[role=option]:has-text('RSL (5 steps)')")
    page.wait_for_selector(".replay-view[data-empty=false] .frames-map canvas", state="visible")
    assert "step 0 of 40" in page.text_content(".frames-step")
    colours = "document.querySelector('.frames-map canvas').toDataURL()"
    before = page.evaluate(colours)
    page.focus(".frames-slider")
    page.keyboard.press("End")
    page.wait_for_function("document.querySelector('.frames-step').textContent.startsWith('step 40')")
    assert page.evaluate(colours) != before
    assert page.locator(".plane svg text:has-text('prompt, step 40')").count() == 1
    page.click(".frames-play")
    page.wait_for_function("document.querySelector('.frames-step').textContent.startsWith('step 20')")


def test_without_motion_play_is_one_step(watched: Watched, plane_url: str) -> None:
    page = watched.page
    page.emulate_media(reduced_motion="reduce")
    page.goto(f"{plane_url}?v=1&room=tradeoff&replay=smollm2-135m--rsl")
    page.wait_for_selector(".frames-play:has-text('Next step')", timeout=MILLISECONDS)
    page.click(".frames-play")
    page.wait_for_function("document.querySelector('.frames-step').textContent.startsWith('step 10')")


@pytest.mark.parametrize(("theme", "width"), [("light", 1440), ("dark", 390)])
def test_axe_finds_nothing_serious(watched: Watched, plane_url: str, theme: str, width: int) -> None:
    page = watched.page
    page.set_default_timeout(MILLISECONDS)
    page.set_viewport_size({"width": width, "height": 900})
    page.goto(f"{plane_url}?__theme={theme}&v=1&room=tradeoff&replay=smollm2-135m--rsl")
    page.wait_for_selector(".replay-view[data-empty=false] .frames-map canvas", state="visible")
    page.click(".plane-view .row-name >> nth=0")
    page.evaluate(axe_script())
    assert page.evaluate(RUN) == []
