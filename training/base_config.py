"""Check what the configs of all trainings have in common, before any work is done."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK, get_available_reporting_integrations
from transformers.utils import is_torch_bf16_gpu_available, is_torch_xla_available

from mmemb_r1.modeling.options_mmemb_r1 import nearest_name

SECRETS = ("hub_token",)  # fields of a config that are never written
PACKAGES = {"azure_ml": "azureml-mlflow", "comet_ml": "comet-ml", "flyte": "flytekitplugins-deck-standard"}


@dataclass
class CheckedConfig:
    """
    Mixed into a config, before TRL's.

    Tokens are not pickled, so that `training_args.bin` holds none. What the machine or the installation lacks is a
    `ValueError` when the config is made, and not after the model was loaded.
    """

    # transformers 5.19 has it under the older name alone
    activation_checkpointing: bool | None = field(
        default=None,
        metadata={
            "help": "Recompute activations in the backward pass instead of keeping them: slower, in less memory.",
            "nargs": "?",
            "const": True,
        },
    )

    def __post_init__(self) -> None:
        config: Any = self  # annotations here would take the place of those of its fields
        if config.activation_checkpointing is None:  # TRL sets the older name, of which transformers warns
            config.activation_checkpointing = config.gradient_checkpointing
        config.gradient_checkpointing = config.activation_checkpointing
        wanted = not config.fp16 if config.bf16 is None else config.bf16  # TRL's default
        if wanted and not config.use_cpu and not is_torch_bf16_gpu_available() and not is_torch_xla_available():
            raise ValueError(
                "bf16 is on, and there is no GPU here that computes in bfloat16. To train on the CPU in float32, add "
                "--cpu (in Python: use_cpu=True, bf16=False); on an older GPU set bf16 to false, and fp16 to true "
                "where memory is short."
            )
        super().__post_init__()  # type: ignore[misc]
        check_anchor(vars(self))
        check_reports(config.report_to)

    def __getstate__(self) -> dict[str, Any]:
        return {name: None if name in SECRETS else value for name, value in vars(self).items()}


def check_anchor(settings: Mapping[str, Any]) -> None:
    """
    Check `direct_anchor` and `direct_anchor_weight` among the settings of a phase, if they are there.

    >>> check_anchor({"direct_anchor": 1.5})
    Traceback (most recent call last):
    ValueError: direct_anchor=1.5; allowed: a cosine above 0 and below 1, 0.999 say, or none.
    """
    least, weight = settings.get("direct_anchor"), settings.get("direct_anchor_weight", 1.0)
    if least is not None and not 0 < least < 1:
        raise ValueError(f"direct_anchor={least}; allowed: a cosine above 0 and below 1, 0.999 say, or none.")
    if not weight >= 0:
        raise ValueError(f"direct_anchor_weight={weight}; allowed: 0 or more.")


def check_anchored(least: float | None, has_adapters: bool, has_held_out: bool) -> None:
    """Check that a phase with `direct_anchor` has adapters, without which it begins, and held-out pairs."""
    if least is None:
        return
    if not has_adapters:
        raise ValueError(
            f"direct_anchor={least:g} compares with the model as it was, which is kept only below adapters; train "
            "adapters (lora: {} in the recipe, peft_config in Python), or leave direct_anchor out."
        )
    if not has_held_out:
        raise ValueError(
            f"direct_anchor={least:g} is a promise about inputs that are not trained on; give held-out pairs to "
            "measure it on (--eval-pairs, eval_dataset in Python)."
        )


def check_one_space(config: Any, phase: str) -> None:
    """Refuse to train a model whose direct and reasoned embeddings are two spaces; `config` is an `MMEmbR1Config`."""
    if config.spaces == 2:
        raise ValueError(
            f"The direct and reasoned embeddings of this model are two spaces (spaces: 2 in its config), and the "
            f"{phase} phase compares them. What can be trained of it is its gate: `mmemb-r1 train gate`."
        )


def check_reports(names: Iterable[str]) -> None:
    """
    Check that the packages are installed that a training reports to.

    Raises:
        ValueError: that names the one that is unknown or missing, and how to install it.

    >>> check_reports(["tensorbord"])  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ValueError: report_to: 'tensorbord' is not known; did you mean 'tensorboard'? (allowed: none, azure_ml, ...
    """
    for name in names:
        if name not in INTEGRATION_TO_CALLBACK:
            raise ValueError(
                f"report_to: {name!r} is not known{nearest_name(name, INTEGRATION_TO_CALLBACK)} (allowed: none, "
                f"{', '.join(sorted(INTEGRATION_TO_CALLBACK))})"
            )
        if name != "flyte" and name not in get_available_reporting_integrations():  # which does not look for flyte
            raise ValueError(
                f"report_to: {name} is not installed here. Install it (pip install {PACKAGES.get(name, name)}), or "
                "leave report_to out."
            )
