"""Show what a search found as one page of HTML that needs nothing else: the pictures are in it."""

from __future__ import annotations

from html import escape

from mmemb_r1.index.results import Hit, SearchResult

_STYLE = """
:root { color-scheme: light dark; font: 16px/1.4 system-ui, sans-serif }
body { margin: 1.5rem auto; max-width: 75rem; padding: 0 1rem; overflow-wrap: anywhere }
ol { display: grid; grid-template-columns: repeat(auto-fill, minmax(13rem, 1fr)); gap: 1rem }
ol { padding: 0; list-style: none }
li { border: 1px solid #8886; border-radius: .5rem; padding: .75rem }
img { width: 100%; height: 11rem; object-fit: contain }
p { margin: .4rem 0 0 } .text { max-height: 11rem; overflow: auto } .quiet { opacity: .75; font-size: .875rem }
"""


def html_sheet(query: str, result: SearchResult) -> str:
    """
    Write the hits of a query, with thumbnails, scores, texts and metadata, as an HTML page.

    Args:
        query: how the query is named.
        result: what was found for it.
    """
    thought = f"reasoned, {result.num_reasoning_tokens} tokens" if result.reasoned else "not reasoned"
    facts = f"{len(result.hits)} hits · gate {result.gate_prob:.2f} · {thought} · {result.seconds:.2f} s"
    rationale = f"<details open><summary>Rationale</summary><p>{escape(result.rationale)}</p></details>"
    return "\n".join(
        [
            '<!doctype html><html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(query)}</title><style>{_STYLE}</style></head><body>",
            f'<h1>{escape(query)}</h1><p class="quiet">{facts}</p>',
            rationale if result.rationale else "",
            "<ol>",
            *map(_entry, result.hits),
            "</ol></body></html>\n",
        ]
    )


def _entry(hit: Hit) -> str:
    name = escape(hit.id)
    picture = ""
    if hit.thumbnail is not None:
        picture = f'<img alt="{name}" loading="lazy" src="{hit.thumbnail_url}">'
    metadata = "".join(
        f"<p>{escape(column)}: {escape(str(value))}</p>" for column, value in hit.metadata.items() if value is not None
    )
    text = f'<p class="text">{escape(hit.text)}</p>' if hit.text else ""
    return f'<li>{picture}<p><b>{name}</b></p><p class="quiet">{hit.score:.3f} · {hit.kind}</p>{text}{metadata}</li>'
