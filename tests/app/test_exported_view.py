"""What the address shows is what is exported: values of a link as arguments of a figure."""

from __future__ import annotations

from typing import Any

import pytest

from explorer.exported_view import VIEWS, figure_arguments
from loramixer import viz
from loramixer.errors import FigureError
from tests.app.synthetic import make_trace

TRACE = make_trace(layers=3, written=4)


@pytest.mark.parametrize(
    ("figure", "query", "arguments"),
    [
        ("token_map", {}, {"measure": "top"}),
        ("token_map", {"m": "code", "q": "v_proj", "l": "1-2"},
         {"measure": "code", "projection": "v_proj", "layers": (1, 2)}),
        ("token_map", {"m": "nobody", "q": "nothing", "l": "9-1", "ph": "generation", "tpl": "1"},
         {"measure": "top", "roles": "generation", "template": True}),
        ("load_bars", {"m": "code", "u": "sentence", "a": "max"}, {"unit": "sentence", "how": "max"}),
        ("agreement_matrix", {"q": "v_proj"}, {}),
        ("token_card", {"ct": "5", "q": "v_proj"}, {"token": 5}),
        ("token_card", {"ct": "9999"}, {"token": 3}),
        ("contribution_map", {"m": "medical"}, {"expert": "medical"}),
    ],
)  # fmt: skip
def test_a_link_becomes_arguments(figure: str, query: dict[str, str], arguments: dict[str, Any]) -> None:
    assert figure_arguments(figure, query, TRACE) == arguments


@pytest.mark.parametrize("figure", VIEWS)
def test_every_view_can_be_drawn(figure: str) -> None:
    drawn = getattr(viz, figure)(TRACE, **figure_arguments(figure, {"l": "0-1"}, TRACE))
    assert len(drawn.data) > 0


def test_an_unknown_view_is_one_sentence() -> None:
    with pytest.raises(FigureError, match="no view of this room"):
        figure_arguments("__class__", {}, TRACE)
