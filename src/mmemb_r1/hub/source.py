"""Tell what the name of a model stands for, before anything is loaded: a folder, or a repository that is there."""

from __future__ import annotations

import logging
import os
import re
from contextlib import suppress
from pathlib import Path

from huggingface_hub import hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import LocalEntryNotFoundError, RemoteEntryNotFoundError

from mmemb_r1.hub.client import HubError, explained

HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")
FIRST_FILES = ("config.json", "modules.json", "adapter_config.json")  # one of them is read first of any model

logger = logging.getLogger(__name__)


def check_source(name: str) -> None:
    """
    Refuse what can be neither a model's folder nor a Hub id, before the Hub is asked for it.

    Raises:
        ValueError: if it is a file, or there is no such folder.
    """
    if os.path.isdir(name):
        return
    if os.path.exists(name):
        raise ValueError(f"{name} is a file; name the folder that holds the model.")
    if not HUB_ID.fullmatch(name):
        raise ValueError(f"There is no folder {name}, and it is no Hub id, which has the form owner/name.")
    if Path(name).parent.is_dir():
        logger.warning("There is no %s in the folder %s; the Hub is asked for it.", *reversed(name.split("/")))


def cached_commit(name: str, revision: str | None = None, cache_folder: str | None = None) -> str | None:
    """
    Tell which commit of a repository the cache holds under a revision, as it does once a model was loaded from there.

    Args:
        name: a folder or a Hub id.
        revision: a branch, a tag or a commit. Default: the main branch.
        cache_folder: where downloads are kept. Default: the Hub's cache.

    Returns:
        `None` for a folder, and for what is not in the cache.
    """
    if os.path.isdir(name):
        return None
    for file in FIRST_FILES:
        found = try_to_load_from_cache(name, file, cache_dir=cache_folder, revision=revision)
        if isinstance(found, str):
            return Path(found).parent.name  # snapshots/COMMIT/FILE
    return None


def check_model(
    name: str,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_folder: str | None = None,
    local_files_only: bool = False,
) -> None:
    """
    Check that there is a model of this name: a folder, or a repository that the cache holds or the Hub lets us read.

    Args:
        name: a folder or a Hub id, `owner/name`.
        revision: a branch, a tag or a commit of the repository. Default: its main branch.
        token: for the Hub. Default: that of the environment.
        cache_folder: where downloads are kept. Default: the Hub's cache.
        local_files_only: whether only the cache is looked into.

    Raises:
        ValueError: as `check_source`.
        HubError: an `OSError`, if the Hub has no such repository, does not let us read it, or can't be reached.
    """
    check_source(name)
    if os.path.isdir(name):
        return
    if cached_commit(name, revision, cache_folder) is not None:
        return
    try:
        with explained(name, revision), suppress(RemoteEntryNotFoundError):  # it may have no such file at its top
            hf_hub_download(
                name,
                FIRST_FILES[0],
                revision=revision,
                token=token,
                cache_dir=cache_folder,
                local_files_only=local_files_only,
            )
    except LocalEntryNotFoundError as error:  # the Hub was not asked, or gave no answer
        reason = str(error.__cause__ or error).strip().splitlines()[0]
        raise HubError(
            f"There is no folder {name} here, and the Hub's cache does not hold that model either; the Hub was not "
            f"reached ({reason}). Check the name, or go online without HF_HUB_OFFLINE and local_files_only."
        ) from error
    except PermissionError as error:
        raise HubError(
            f"{name} can't be downloaded, as the Hub's cache can't be written ({error}). Set HF_HOME to a folder that "
            "can."
        ) from error
    except HubError as error:
        raise HubError(f"There is no folder {name} here, and on the Hub {error}") from error
