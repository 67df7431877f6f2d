"""Push what a training saves to the Hub: whole checkpoints, which load as what they are, or nothing."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from transformers.trainer_utils import HubStrategy
from transformers.utils.hub import PushInProgress

from mmemb_r1.hub import check_checkpoint
from mmemb_r1.hub.client import explained, hub_api, is_allowed
from mmemb_r1.model_card import write_model_card
from mmemb_r1.modeling.files_mmemb_r1 import copy_content

logger = logging.getLogger(__name__)

STAGING = "_push-"  # before the name of what is pushed, in the folder of checkpoints
STATE_FILE = "trainer_state.json"


def check_pushes(args: Any, has_adapters: bool, is_sharded: bool) -> None:
    """
    Check before a training that what it is to push will load.

    Raises:
        ValueError: if no repository is named, or checkpoints would be pushed that are adapters, or shards of a model.
    """
    if args.hub_model_id is None:
        raise ValueError("push_to_hub needs hub_model_id, the repository: owner/name.")
    strategy = HubStrategy(args.hub_strategy)
    if strategy == HubStrategy.END:
        return
    remedy = "Set hub_strategy to end: the trained model is pushed, whole"
    if has_adapters:
        raise ValueError(
            f"hub_strategy={strategy.value!r} would push adapters, which don't load without the weights below them. "
            f"{remedy}, with the adapters merged into it."
        )
    if is_sharded:
        raise ValueError(
            f"hub_strategy={strategy.value!r} would push sharded checkpoints, which no library loads. {remedy}; or "
            "save whole ones (fsdp_state_dict_type: FULL_STATE_DICT in the configuration of accelerate)."
        )


def stage(checkpoint: Path, record: Mapping[str, Any], whole: bool = False) -> Path:
    """
    Link the files of a model in a checkpoint, or with `whole` those of its trainer as well, in a folder beside it.

    A checkpoint may be removed while it is uploaded, when a later one is saved; what is staged stays. It gets a card
    of `record`, the facts of the training. A folder that does not load as a model is a `ValueError`.
    """
    folder = checkpoint.parent / f"{STAGING}{checkpoint.name}{'-whole' if whole else ''}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for path in checkpoint.iterdir():
        if path.is_file() and is_allowed(path.name) and path.name != STATE_FILE:
            _link(path, folder)
    write_model_card(folder, training=record)
    check_checkpoint(folder)
    for path in checkpoint.iterdir() if whole else ():
        if path.is_file() and not (folder / path.name).exists():
            _link(path, folder)
    return folder


def _link(path: Path, folder: Path) -> None:
    try:
        os.link(path, folder / path.name)
    except OSError:  # not every file system has links
        copy_content(path, folder / path.name)


class PushesWholeCheckpoints:
    """Mixed into a trainer: `push_to_hub` and `hub_strategy` as of `transformers`, for folders that load."""

    accelerator: Any
    args: Any
    model: Any
    state: Any
    hub_model_id: str
    push_in_progress: Any
    is_world_process_zero: Any
    save_model: Any
    _finish_current_push: Any

    def _record(self) -> dict[str, Any]:
        raise NotImplementedError

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Make the repository to push to, unless what is to be pushed there would not load."""
        plugin = getattr(self.accelerator.state, "fsdp_plugin", None)
        is_sharded = plugin is not None and "FULL_STATE_DICT" not in str(plugin.state_dict_type)
        check_pushes(self.args, hasattr(self.accelerator.unwrap_model(self.model), "peft_config"), is_sharded)
        if not self.is_world_process_zero():
            return
        name = self.args.hub_model_id
        private = self.args.hub_private_repo if private is None else private
        with explained(name):
            made = hub_api(token or self.args.hub_token).create_repo(name, private=private, exist_ok=True)
        self.hub_model_id, self.push_in_progress = made.repo_id, None

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Push a checkpoint's model and, if the strategy is to keep checkpoints, all of it in a folder of its own."""
        strategy = HubStrategy(self.args.hub_strategy)
        if not self.is_world_process_zero() or strategy == HubStrategy.END:
            return
        if self.push_in_progress is not None and not self.push_in_progress.is_done():
            if not self.args.hub_always_push:
                return
            self.push_in_progress.wait_until_done()
        folder, message = Path(checkpoint_folder), f"Training in progress, step {self.state.global_step}"
        jobs = [self._upload(stage(folder, self._record()), message)]
        if strategy != HubStrategy.EVERY_SAVE:
            path = "last-checkpoint" if strategy == HubStrategy.CHECKPOINT else folder.name
            jobs.append(self._upload(stage(folder, self._record(), whole=True), f"{message}, checkpoint", path))
        self.push_in_progress = PushInProgress(jobs)

    def push_to_hub(self, commit_message: str = "End of training", **unused: Any) -> Any:
        """Push the model as it is now; it is a `ValueError` if it would not load, as adapters alone."""
        saved = Path(self.args.output_dir) / f"{STAGING}model"
        if self.hub_model_id is None:
            self.init_hf_repo()
        self.save_model(str(saved), _internal_call=True)
        if not self.is_world_process_zero():
            return None
        write_model_card(saved, training=self._record())
        pushed = self.push_folder(saved, commit_message)
        shutil.rmtree(saved)
        return pushed

    def push_folder(self, folder: Path, message: str) -> Any:
        """Push a checkpoint and wait for it; files of the repository that it does not have stay there."""
        self._finish_current_push()
        check_checkpoint(folder)
        with explained(self.hub_model_id, self.args.hub_revision):
            return hub_api(self.args.hub_token).upload_folder(
                repo_id=self.hub_model_id,
                folder_path=folder,
                commit_message=message,
                revision=self.args.hub_revision,
            )

    def _upload(self, folder: Path, message: str, path_in_repo: str = "") -> Future[Any]:
        """Begin to upload a folder, after those before it, and remove it then."""
        job = hub_api(self.args.hub_token).upload_folder(
            repo_id=self.hub_model_id,
            folder_path=folder,
            path_in_repo=path_in_repo,
            commit_message=message,
            revision=self.args.hub_revision,
            run_as_future=True,
        )

        def ended(done: Future[Any]) -> None:
            if (error := done.exception()) is not None:
                logger.warning("%r was not pushed to %s: %s. Training goes on.", message, self.hub_model_id, error)
            shutil.rmtree(folder, ignore_errors=True)

        job.add_done_callback(ended)
        return job
