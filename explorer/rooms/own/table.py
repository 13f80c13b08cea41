"""The table of what fits, as HTML; every text of a visitor is escaped."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from loramixer.fitting import BackboneOutline, Fit, mixture_bytes
from loramixer.viz.palette import expert_styles

EMPTY = "<p class='own-empty'>No expert yet. Add some; what fits is shown here before anything is loaded.</p>"


def fit_table(backbone: BackboneOutline, fits: Sequence[Fit], chosen: Sequence[str]) -> str:
    """One row for each expert, and what the chosen ones take in memory.

    Args:
        backbone: what they shall change.
        fits: in the order of the gates.
        chosen: names of the experts in the mixture.
    """
    if not fits:
        return f"<section class='own-fit'>{_backbone_line(backbone)}{EMPTY}</section>"
    used = [fit.name for fit in fits if fit.usable and fit.name in chosen]
    styles = {style.name: style for style in expert_styles(used)}
    rows = "".join(_row(fit, styles.get(fit.name)) for fit in fits)
    head = "".join(
        f"<th scope='col' title='{escape(hint)}'>{label}</th>"
        for label, hint in (
            ("Expert", "The name in the mixture; the letter is its place in the gates."),
            ("Rank", "How many directions its update has, at each site."),
            ("Changes", "The projections whose output it changes."),
            ("Sites that match", "Of the projections it changes, how many this backbone has with the same shape."),
            ("Size", "Its matrices in memory, in float32."),
            ("Verdict", "Whether it can be mixed here, and why not."),
        )
    )
    return (
        f"<section class='own-fit'>{_backbone_line(backbone)}<div class='own-scroll' tabindex='0' role='region' "
        "aria-label='What fits'><table><caption>What fits</caption>"
        f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
        f"{_memory_line(backbone, fits, used)}</section>"
    )


def _row(fit: Fit, style: object) -> str:
    letter = getattr(style, "letter", "")
    colour = getattr(style, "colour", "")
    badge = f"<span class='own-badge' style='border-color:{colour}'>{escape(letter)}</span>" if letter else ""
    ranks = "–".join(str(rank) for rank in dict.fromkeys((fit.ranks[0], fit.ranks[-1]))) if fit.ranks else "–"
    sites = f"{fit.matching} of {len(fit.expert.sites)}" if fit.expert else "–"
    size = f"{fit.parameters * 4 / 1e6:,.1f} MB" if fit.expert else "–"
    verdict = "Fits" if fit.usable else " ".join(fit.reasons)
    kind = "fits" if fit.usable else "refused"
    cells = (
        ("Rank", ranks),
        ("Changes", escape(", ".join(fit.targets) or "–")),
        ("Sites that match", sites),
        ("Size", size),
    )
    plain = "".join(f"<td data-label='{label}'>{text}</td>" for label, text in cells)
    return (
        f"<tr class='own-{kind}'><th scope='row'>{badge}{escape(fit.name)}</th>{plain}"
        f"<td class='own-verdict'>{escape(verdict)}</td></tr>"
    )


def _backbone_line(backbone: BackboneOutline) -> str:
    revision = f" at {escape(backbone.revision[:8])}" if backbone.revision else ""
    return (
        f"<p class='own-line'>Backbone: <b>{escape(backbone.name)}</b>{revision}, "
        f"{backbone.parameters / 1e6:,.1f} million parameters, {len(backbone.shapes)} linear layers.</p>"
    )


def _memory_line(backbone: BackboneOutline, fits: Sequence[Fit], used: Sequence[str]) -> str:
    if not used:
        return "<p class='own-line'>No usable expert is chosen.</p>"
    experts = {fit.name: fit.expert for fit in fits if fit.name in used and fit.expert is not None}
    parts = [size / 1e6 for size in mixture_bytes(backbone, experts)]
    return (
        f"<p class='own-line'>Memory for the weights, in float32: backbone {parts[0]:,.0f} MB, experts "
        f"{parts[1]:,.1f} MB, routers {parts[2]:,.2f} MB. A run adds its cache and intermediate values.</p>"
    )
