"""Load what a repository of sentence-transformers says, by this package's code and no pickles."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sentence_transformers import SentenceTransformer
from sentence_transformers.util import load_file_path

from mmemb_r1.engines import ServedModule
from mmemb_r1.engines.choice import exported_folder
from mmemb_r1.modeling.sentence_mmemb_r1 import MMEmbR1Module


class Loading(SentenceTransformer):
    """Be a [`SentenceTransformer`] that takes the code of its first module from this package."""

    def _load_module_class_from_ref(
        self,
        class_ref: str,
        model_name_or_path: str,
        trust_remote_code: bool,
        revision: str | None,
        model_kwargs: dict[str, Any] | None,
        **hub: Any,
    ) -> type:
        # the repository's own copy of the module is not needed, hence neither is the permission to run it
        if class_ref.split(".")[-1] == ServedModule.__name__:
            return ServedModule
        if class_ref.split(".")[-1] == MMEmbR1Module.__name__:
            if model_kwargs is not None:
                model_kwargs.pop("code_revision", None)  # as sentence-transformers does; of code that is not run
            return MMEmbR1Module
        return super()._load_module_class_from_ref(
            class_ref, model_name_or_path, trust_remote_code, revision, model_kwargs, **hub
        )

    def _load_default_modules(self, model_name_or_path: str, *args: Any, **kwargs: Any) -> Any:
        if exported_folder(model_name_or_path) is not None:
            raise ValueError(
                f"{model_name_or_path} was exported for vLLM, and is loaded with an engine: MMEmbR1(..., "
                'engine="vllm"), or the addresses of its servers; without one, load the checkpoint itself.'
            )
        raise ValueError(
            f"{model_name_or_path} is no mmemb-r1 checkpoint: it has no modules.json. Make one of a vision-language "
            f"model with `mmemb-r1 init --vlm {model_name_or_path} --output DIR`, or with MMEmbR1.from_vlm."
        )

    def _load_config_modules(self, model_name_or_path: str, **options: Any) -> Any:
        hub = {name: options.get(name) for name in ("token", "cache_folder", "revision", "local_files_only")}

        def found(path: str) -> str | None:
            return load_file_path(model_name_or_path, path, **hub)

        modules = json.loads(Path(str(found("modules.json"))).read_text(encoding="utf-8"))
        folders = [module["path"] for module in modules if module["path"]]
        for folder in list(folders):
            if router := found(f"{folder}/router_config.json"):
                folders += [
                    f"{folder}/{name}" for name in json.loads(Path(router).read_text(encoding="utf-8"))["types"]
                ]
        for folder in folders:
            pickled = f"{folder}/pytorch_model.bin"
            if found(pickled) and not found(f"{folder}/model.safetensors"):
                raise ValueError(
                    f"{model_name_or_path} has {pickled}, a pickle, which can hold code. mmemb-r1 reads safetensors "
                    "only: convert the file to model.safetensors beside it."
                )
        return super()._load_config_modules(model_name_or_path, **options)
