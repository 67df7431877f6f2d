"""Saving what a trainer trained, as a checkpoint that loads anywhere."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mmemb_r1.training.joint_trainer import JointTrainer


def save_trained(trainer: JointTrainer, checkpoint: str, output: Path) -> None:
    """
    Save a trained model in `output/model`, complete and with its card, and adapters, if it has any, in
    `output/adapter` as well.

    All processes of a run have to call it; the main one saves. Sharded weights are gathered. The model is put together
    anew from the checkpoint that training began with, and is saved in that one's dtype: adapters are merged into its
    weights as they are stored, also where training saw them quantised.

    Args:
        trainer: after training.
        checkpoint: what was trained on: a folder or a Hub id.
        output: the folder.
    """
    from accelerate.utils import is_peft_model

    from mmemb_r1 import MMEmbR1
    from mmemb_r1.model_card import write_model_card
    from mmemb_r1.training.adapters import load_adapters, merged

    state = trainer.accelerator.get_state_dict(trainer.model)
    if not trainer.is_world_process_zero():
        return
    trained = trainer.accelerator.unwrap_model(trainer.model)
    folder = output / "model"
    model = MMEmbR1(checkpoint, device="cpu")
    if is_peft_model(trained):
        trained.save_pretrained(str(output / "adapter"), state_dict=state)
        model[0].model = merged(load_adapters(model[0].model, output / "adapter"))
    else:
        model[0].model.load_state_dict(state)
    model.save_pretrained(str(folder), create_model_card=False)
    write_model_card(folder, training=trainer.facts | {"steps": trainer.state.global_step})
