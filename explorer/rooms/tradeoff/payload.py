"""The plane as a JSON value for the browser, with what is missing said in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from explorer.rooms.tradeoff.points import COMMAND, SIGNS, Plane, PlanePath, PlaneRouter
from loramixer.viz.palette import expert_styles

NOT_MEASURED = (
    "The comparison of routers has not been measured here: docs/results holds no plane.csv. The command "
    f"“{COMMAND}” makes it. Until then, Measure routes the example prompts through the installed routers, and thin "
    "lines show their trainings, from their run logs."
)
_MEASURED_PYTHON = """from pathlib import Path

from loramixer.evaluation.experiments.plane import picture
from loramixer.viz.svg import to_svg

Path("plane.svg").write_text(to_svg(picture(Path("docs/results"))), encoding="utf-8")
"""
_LIVE_PYTHON = """import numpy as np

import loramixer
from loramixer.metrics import plane_point

prompts = {prompts}
for name in {mixers}:
    model, tokenizer = loramixer.load_mixer(name)
    loramixer.set_gate(model, mode="soft")
    texts = []
    for prompt in prompts:
        trace = loramixer.trace(model, tokenizer, prompt)
        words = trace.select(roles=("prompt",))[1] & ~np.asarray(trace.tokens.special, dtype=bool)
        texts.append(trace.gates[:, words])
    point = plane_point(np.concatenate(texts, axis=1))
    print(f"{{name}}: undecided {{point.undecided:.3f}}, balanced {{point.balanced:.3f}}")
"""


def plane_payload(
    plane: Plane,
    live: Sequence[PlaneRouter],
    version: int,
    prompts: Sequence[str],
    view: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """The JSON value for ``PlaneView``.

    Routers and paths of one ``group`` are one router: its circle, its square, which was measured just now, and its
    trainings.

    Args:
        plane: of the experiments, or of the run logs.
        live: what was measured just now.
        version: a view is taken over once for each number.
        prompts: that live routers were measured on.
        view: chosen router, close-up and hidden layers, as a link has them; None leaves the view as it is.
    """
    routers = [*plane.routers, *live]
    circles = {router.mixer: router.key for router in reversed(plane.routers) if router.mixer}
    groups = [_group(router, circles) for router in routers]
    # One colour for a router, its square and its trainings, also for trainings whose end is no point of the plane.
    names = dict.fromkeys([*groups, *(path.router for path in plane.paths)])
    colours = {style.name: style.colour for style in expert_styles(list(names))}
    marks = {group: str(number) for number, group in enumerate(names, start=1)}
    return {
        "version": version,
        "view": view,
        "notice": "" if plane.is_measured else NOT_MEASURED,
        "caption": _caption(routers, plane.paths),
        "tableCaption": "Click a head to sort. Test loss is the second reading: a point well placed need not write "
        "better text." if plane.is_measured else "Test loss comes with the comparison of routers.",
        "routers": [
            {**_router(router), "group": group, "mark": marks[group], "colour": colours[group]}
            for router, group in zip(routers, groups, strict=True)
        ],
        "paths": [
            {
                "group": path.router,
                "colour": colours[path.router],
                "points": [[round(x, 4), round(y, 4)] for x, y in path.points],
            }
            for path in plane.paths
        ],
        "python": python_of(plane, live, prompts),
    }  # fmt: skip


def python_of(plane: Plane, live: Sequence[PlaneRouter], prompts: Sequence[str]) -> str:
    """A piece of Python that makes the picture, or the numbers of what was measured live."""
    if live:
        return _LIVE_PYTHON.format(prompts=list(prompts), mixers=[router.mixer for router in live])
    return _MEASURED_PYTHON if plane.is_measured else ""


def _group(router: PlaneRouter, circles: Mapping[str, str]) -> str:
    """Key of the circle that a router is, or that its square belongs to; a square without one is by itself."""
    if not router.live or router.mixer is None:
        return router.key
    return circles.get(router.mixer, router.mixer)


def _router(router: PlaneRouter) -> dict[str, Any]:
    return {
        "key": router.key,
        "title": router.title,
        "lossText": router.loss_text,
        "sign": SIGNS.get(router.sign, ""),
        "x": router.undecided.value,
        "xEnds": router.undecided.ends,
        "y": router.balanced.value,
        "yEnds": router.balanced.ends,
        "loss": None if router.loss is None else {"value": router.loss.value, "ends": router.loss.ends},
        "seeds": router.seeds,
        "band": None
        if router.band is None
        else {"tokens": router.band.tokens, "x": list(router.band.undecided), "y": list(router.band.balanced)},
        "dots": [list(dot) for dot in router.dots],
        "facts": router.facts,
        "mixer": router.mixer,
        "live": router.live,
    }


def _caption(routers: Sequence[PlaneRouter], paths: Sequence[PlanePath]) -> str:
    if not routers and not paths:
        return ""
    tokens = sorted({router.band.tokens for router in routers if router.band})
    parts = ["Circles: measured by the experiments"] if any(not router.live for router in routers) else []
    parts += ["Squares: measured just now"] if any(router.live for router in routers) else []
    parts += ["Thin lines: trainings, from small batches, so a little below the point they lead to"] if paths else []
    parts += [f"Dashed boxes: {'/'.join(map(str, tokens))} shuffled tokens"] if tokens else []
    return ". ".join(parts) + "."
