"""Engines that run a model's backbone: vLLM in this process, or servers. Head and gate stay with the model."""

from __future__ import annotations

from mmemb_r1.engines.http_engine import HttpEngine
from mmemb_r1.engines.protocol import Engine, EngineError, EnginePrompt
from mmemb_r1.engines.served import ServedModule
from mmemb_r1.engines.vllm_engine import VllmEngine

__all__ = ["Engine", "EngineError", "HttpEngine", "EnginePrompt", "ServedModule", "VllmEngine"]
