from __future__ import annotations

import pytest


@pytest.fixture
def trainer_of(processor, tmp_path, on_cpu):
    """`trainer_of(model, table, eval_dataset=..., joint_pairs=..., reward_funcs=..., **arguments)`: a trainer on the
    CPU."""

    from mmemb_r1.training import AdaptiveGRPOConfig, AdaptiveGRPOTrainer

    def build(model, table, **changes):
        given = {
            name: changes.pop(name)
            for name in ("eval_dataset", "joint_pairs", "reward_funcs", "callbacks")
            if name in changes
        }
        used = changes.pop("processing_class", processor)
        defaults = {
            "output_dir": str(tmp_path / "checkpoints"),
            "per_device_train_batch_size": 12,
            "num_generations": 4,
            "max_steps": 2,
            "max_reasoning_tokens": 4,
            "learning_rate": 1e-3,
            "target_probability_temperature": 0.1,
            "logging_steps": 1,
            **on_cpu,
            "save_strategy": "no",
        }
        return AdaptiveGRPOTrainer(model, AdaptiveGRPOConfig(**{**defaults, **changes}), table, used, **given)

    return build
