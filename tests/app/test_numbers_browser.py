"""The numbers of the views, worked out in a real browser, against those of the library."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import explorer
from loramixer.metrics import load, plane_point

NUMBERS = Path(explorer.__file__).parent / "components" / "routing_view" / "numbers.js"
GATES = np.array([[0.9, 0.1], [0.2, 0.8], [0.3, 0.7], [0.4, 0.6]], dtype=np.float32)
"""Of one token: layer 0 has one router, layer 1 has three. [S, E]"""

OTHER = np.array([[0.1, 0.9], [0.6, 0.4], [0.3, 0.7], [1.0, 0.0]], dtype=np.float32)
"""Of the next token of the same word. [S, E]"""

MODEL = {
    "experts": [{"name": "math"}, {"name": "medical"}],
    "layers": [0, 1],
    "sites": [[0, 0], [1, 0], [1, 1], [1, 2]],
    "sitesBy": [[[0], [1, 2, 3]], [[0], [1]], [[], [2]], [[], [3]]],
}


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """A blank page with the functions."""
    found = browser.new_page()
    found.add_script_tag(content=NUMBERS.read_text(encoding="utf-8"))
    yield found
    found.close()


def ask(page: Any, expression: str) -> Any:
    return page.evaluate(
        f"""([model, ...gates]) => {{
          const [column, other] = gates.map((values) => (
            {{ gates: Float32Array.from(values), shares: Float32Array.from(values), cache: new Map() }}));
          const found = {expression};
          return typeof found === 'number' ? found : [...found];
        }}""",
        [MODEL, GATES.ravel().tolist(), OTHER.ravel().tolist()],
    )


@pytest.mark.parametrize("of", ["meanGates", "meanShares"])
def test_a_layer_with_more_routers_counts_for_more(page: Any, of: str) -> None:
    assert ask(page, f"{of}(model, column, MEAN, [0, 1])") == pytest.approx(load(GATES[:, None]).tolist())
    assert ask(page, f"{of}(model, column, MEAN, [1, 1])") == pytest.approx(GATES[1:].mean(axis=0).tolist())
    # One projection that layer 0 does not have.
    assert ask(page, f"{of}(model, column, 1, [0, 1])") == pytest.approx(GATES[2].tolist())


def test_the_entropy_over_layers_is_that_of_all_routers(page: Any) -> None:
    each = -(GATES * np.log(GATES)).sum(axis=1) / np.log(2)
    assert ask(page, "meanEntropy(model, column, MEAN, [0, 1])") == pytest.approx(float(each.mean()), abs=1e-5)


def test_a_router_that_is_off_has_no_part_in_the_load(page: Any) -> None:
    gates = GATES.copy()
    gates[0] = 0
    off = "{ gates: column.gates.map((gate, index) => (index < model.experts.length ? 0 : gate)), cache: new Map() }"
    point = plane_point(gates[:, None])
    found = f"loadOf(model, [{off}], MEAN, [0, 1])"
    assert ask(page, f"{found}.load") == pytest.approx(GATES[1:].mean(axis=0).tolist(), abs=1e-6)
    assert ask(page, f"{found}.undecided") == pytest.approx(point.undecided, abs=1e-5)
    assert ask(page, f"{found}.routers") == len(GATES) - 1


def test_means_over_layers_leave_out_a_router_that_is_off(page: Any) -> None:
    """One of three routers of a layer is off: the mean is that of the two others, as in the load."""
    gates = GATES.copy()
    gates[2] = 0
    off = "{ gates: column.gates.map((gate, index) => (index >> 1 === 2 ? 0 : gate)), cache: new Map() }"
    on = gates[[1, 3]]
    entropy = -(on * np.log(on)).sum(axis=1) / np.log(2)
    assert ask(page, f"meanGates(model, {off}, MEAN, [1, 1])") == pytest.approx(on.mean(axis=0).tolist(), abs=1e-6)
    assert ask(page, f"gatesAt(model, {off}, 1, MEAN)") == pytest.approx(on.mean(axis=0).tolist(), abs=1e-6)
    assert ask(page, f"meanEntropy(model, {off}, MEAN, [1, 1])") == pytest.approx(float(entropy.mean()), abs=1e-5)
    assert ask(page, f"layerEntropies(model, {off}, MEAN)[1]") == pytest.approx(float(entropy.mean()), abs=1e-5)
    loads = ask(page, f"layerLoads(model, [{off}], MEAN)")
    assert loads[2:] == pytest.approx(on.mean(axis=0).tolist(), abs=1e-6)
    # A layer without any router that is on has nothing to show.
    assert ask(page, f"gatesAt(model, {off}, 1, 1)") == [0, 0]


def test_numbers_of_joined_gates_are_of_their_shares(page: Any) -> None:
    """The largest gates of a word sum to more than 1, and no entropy or load is of such weights."""
    largest = np.maximum(GATES, OTHER)
    shares = np.stack([largest / largest.sum(axis=1, keepdims=True), GATES], axis=1)
    columns = "[joinColumns([column, other], 'max'), column]"
    point = plane_point(shares)
    names = ("undecided", "balanced", "specialised")
    numbers = ask(
        page, f"[loadOf(model, {columns}, MEAN, [0, 1])].flatMap((of) => [{', '.join(f'of.{n}' for n in names)}])"
    )
    expected = [point.undecided, point.balanced, point.balanced - point.undecided]
    assert numbers == pytest.approx(expected, abs=1e-5)
    loads = ask(page, f"loadOf(model, {columns}, MEAN, [0, 1]).load")
    assert loads == pytest.approx(load(shares).tolist(), abs=1e-6)
    by_layer = ask(page, f"layerLoads(model, {columns}, MEAN)")
    layers = [shares[:1].mean(axis=(0, 1)), shares[1:].mean(axis=(0, 1))]
    assert by_layer == pytest.approx(np.concatenate(layers).tolist(), abs=1e-6)
    # What the maps show is the largest itself.
    gates = ask(page, f"meanGates(model, {columns}[0], MEAN, [0, 1])")
    assert gates == pytest.approx(largest.mean(axis=0).tolist(), abs=1e-6)


def test_a_character_is_corrected_once_all_its_tokens_are_there(page: Any) -> None:
    for name in ("dom.js", "decode.js", "store.js"):
        page.add_script_tag(content=NUMBERS.with_name(name).read_text(encoding="utf-8"))
    found = page.evaluate(
        """() => {
          const column = () => ({ gates: Float32Array.of(0.9, 0.1), logits: null, shares: null, cache: new Map() });
          const token = (text, part, parts) => (
            { text, role: GENERATED, part, parts, special: false, word: 0, sentence: 0, gold: -1 });
          const model = {
            run: 'r', state: 'generating', experts: [{ name: 'a' }, { name: 'b' }], layers: [0], projections: ['q'],
            sites: [[0, 0]], sitesBy: [[[0]], [[0]]], hasShares: false,
            tokens: [token('\ufffd', 1, 1)], columns: [column()],
          };
          const store = createStore();
          store.load(model);
          const before = store.state.columns[0].text;
          model.tokens = [token('🦊', 1, 2), token('🦊', 2, 2)];
          model.columns.push(column());
          store.load(model);
          return [before, ...store.state.columns.map(({ text, part, parts }) => `${text} ${part}/${parts}`)];
        }"""
    )
    assert found == ["\ufffd", "🦊 1/2", "🦊 2/2"]
