"""Write what was found for a query as HTML, to be shown inside a page; all that comes from outside is escaped."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mmemb_r1.demo.comparing import Comparison
    from mmemb_r1.index import Hit, SearchResult

TEXT_SHOWN = 300  # characters of a hit's text


def comparison_html(found: Comparison) -> str:
    """Write the gate's decision, the rationale, and the hits of both vectors side by side."""
    direct_ids = [] if isinstance(found.direct, str | None) else [hit.id for hit in found.direct.hits]
    return "\n".join(
        [
            _decision(found),
            _rationale(found),
            '<div class="sides">',
            _side("Direct", found.direct, found.thinks is False, []),
            _side("Reasoned", found.reasoned, found.thinks is True, direct_ids),
            "</div>",
        ]
    )


def _decision(found: Comparison) -> str:
    """Say what the gate decided."""
    if found.gate_prob is None:
        refused = isinstance(found.direct, str) and isinstance(found.reasoned, str)
        told = "The query could not be searched." if refused else "Reading the query …"
        return f'<p class="decision" role="status">{told}</p>'
    sign, verb = ("≥", "think") if found.thinks else ("&lt;", "don’t think")
    return (
        f'<p class="decision" role="status">Gate {found.gate_prob:.3f} {sign} threshold {found.threshold:.2f}: '
        f"<strong>{verb}</strong></p>"
    )


def _rationale(found: Comparison) -> str:
    """Show the rationale, or as much of it as is written."""
    if found.writing is not None:
        text, told = found.writing, "Rationale, being written …"
    elif found.reasoned is None or isinstance(found.reasoned, str):
        return ""
    else:
        text, told = found.reasoned.rationale, "Rationale"
    return f'<section class="rationale"><h3>{told}</h3><p>{escape(text) or "(empty)"}</p></section>'


def _side(name: str, result: SearchResult | str | None, is_chosen: bool, compared: list[str]) -> str:
    """Show the hits of one vector, and how their ranks differ from those `compared` with."""
    chosen = ' <span class="chosen">the gate’s choice</span>' if is_chosen else ""
    if result is None:
        facts, body = "", '<p class="quiet">not searched</p>'
    elif isinstance(result, str):
        facts, body = "", f'<p class="refused" role="alert">{escape(result)}</p>'
    else:
        tokens = f" · {result.num_reasoning_tokens} tokens" if result.reasoned else ""
        facts = f'<p class="quiet">{result.seconds:.2f} s{tokens}</p>'
        body = "".join(_hit(hit, rank, compared) for rank, hit in enumerate(result.hits, start=1))
        body = f"<ol>{body}</ol>" if body else '<p class="quiet">no hits</p>'
    kind = "side is-chosen" if is_chosen else "side"
    return f'<section class="{kind}" aria-label="{name} results"><h3>{name}{chosen}</h3>{facts}{body}</section>'


def _hit(hit: Hit, rank: int, compared: list[str]) -> str:
    title = escape(str(hit.metadata.get("name") or hit.id))
    text = escape(hit.text if len(hit.text) <= TEXT_SHOWN else f"{hit.text[:TEXT_SHOWN]}…")
    if hit.thumbnail is None:
        picture = f'<p class="text">{text}</p>'
    else:
        picture = f'<img alt="{title}" src="{hit.thumbnail_url}">'
    page = "" if hit.page is None else f" · page {hit.page}"
    moved = f' <span class="moved">{moved_by(hit.id, rank, compared)}</span>' if compared else ""
    return (
        f'<li>{picture}<p class="name" title="{escape(hit.id)}">{rank}. {title}</p>'
        f'<p class="quiet">{hit.score:.3f}{page}{moved}</p></li>'
    )


def moved_by(name: str, rank: int, compared: list[str]) -> str:
    """
    Say how far a hit's rank, from 1, is from its place in another ranking.

    >>> moved_by("a", 1, ["b", "a"]), moved_by("b", 3, ["b"]), moved_by("c", 1, ["b"]), moved_by("b", 1, ["b"])
    ('↑ 1', '↓ 2', 'new', '')
    """
    if name not in compared:
        return "new"
    change = compared.index(name) + 1 - rank
    return f"↑ {change}" if change > 0 else f"↓ {-change}" if change else ""
