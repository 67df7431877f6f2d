"""Show an index in the browser: `mmemb-r1 demo`. What is searched and shown needs no Gradio; only `page` does."""
