"""Make the page of the demo, with Gradio: inputs, a slider for the threshold, and what was found."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmemb_r1.demo.comparing import Comparer, Comparison
from mmemb_r1.demo.showing import comparison_html

if TYPE_CHECKING:
    from gradio import Blocks

    from mmemb_r1.index import Index

LOCAL = "127.0.0.1"
# Neither the page nor the server asks for anything elsewhere
OFFLINE = {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1"}


def gradio() -> Any:
    """Import Gradio, which then reports to nobody."""
    os.environ.update(OFFLINE)
    try:
        import gradio
    except ImportError as error:
        raise ImportError("the demo needs Gradio: pip install 'mmemb-r1[demo]'") from error
    return gradio


def build_page(index: Index, title: str = "mmemb-r1") -> Blocks:
    """
    Make the page that searches an index.

    Args:
        index: an [`Index`]; its model is loaded now.
        title: of the page.

    Raises:
        ImportError: if Gradio is not installed.
    """
    gr = gradio()
    comparer = Comparer(index)

    def search(text: str, image: Any, k: int, threshold: float, both: bool) -> Iterator[Any]:
        try:
            for found in comparer.compare({"text": text.strip(), "image": image}, int(k), threshold, both):
                yield comparison_html(found), found
        except ValueError as error:
            raise gr.Error(str(error), print_exception=False) from error

    def decide(found: Comparison | None, threshold: float, both: bool) -> Iterator[Any]:
        if found is None:
            yield gr.skip(), gr.skip()
            return
        for changed in comparer.decide(found, threshold, both):
            yield comparison_html(changed), changed

    with gr.Blocks(title=title, analytics_enabled=False) as page:
        gr.Markdown(f"# {title}\n{len(index):,} items. Type a text, drop a picture, or do both.")
        state = gr.State(None)
        with gr.Row():
            with gr.Column(scale=3, min_width=280):
                text = gr.Textbox(label="Text", placeholder="Which flag has a dragon?", autofocus=True)
                with gr.Row():
                    k = gr.Slider(1, 50, value=10, step=1, label="Results", min_width=200)
                    threshold = gr.Slider(
                        0, 1, value=comparer.threshold, step=0.01, label="Threshold of the gate", min_width=200
                    )
                both = gr.Checkbox(True, label="Reason also where the gate says no, to compare")
                button = gr.Button("Search", variant="primary")
            with gr.Column(scale=2, min_width=240):
                image = gr.Image(
                    label="Picture", type="pil", image_mode=None, sources=["upload", "clipboard"], height=220
                )
        shown = gr.HTML(elem_classes="found", js_on_load=None)
        once: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "model", "show_progress": "hidden"}
        gr.on([text.submit, button.click], search, [text, image, k, threshold, both], [shown, state], **once)
        gr.on(
            [threshold.change, both.change],
            decide,
            [state, threshold, both],
            [shown, state],
            trigger_mode="always_last",
            **once,
        )
    return page


def serve(page: Blocks, host: str = LOCAL, port: int | None = None, **options: Any) -> Any:
    """
    Serve a page; returns at once with `prevent_thread_lock=True`, otherwise when it is interrupted.

    Args:
        page: of [`build_page`].
        host: address to listen at; the default is reached from this computer only.
        port: default: the first free one from 7860 on.
        **options: of `Blocks.launch`.
    """
    gr = gradio()
    fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}  # of the system
    return page.launch(
        server_name=host,
        server_port=port,
        share=False,
        ssr_mode=False,
        footer_links=[],
        theme=gr.themes.Default(**fonts),
        css_paths=Path(__file__).with_name("page.css"),
        **options,
    )
