"""
Models as the evaluation asks them: inputs in; vectors, what was decided, and the time it took out.

    encoder         what is asked, and what comes back
    factory         which encoder a model gets
    adaptive        models that think; watched_cache keeps their embeddings and tells what it had
    plain           any other sentence-transformers model
    parts           many inputs, part by part
"""

from __future__ import annotations
