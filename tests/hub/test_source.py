"""What the name of a model stands for: a folder, what the cache holds, or what the Hub lets us read."""

from __future__ import annotations

import pytest

from mmemb_r1.hub import HubError
from mmemb_r1.hub.source import check_model


def test_a_repository_that_is_there(hub, contents, tmp_path, monkeypatch):
    hub.create("org/tiny", private=True, **contents)
    hub.create("org/modules", **{"modules.json": b"[]"})
    cache = str(tmp_path / "kept")
    check_model("org/tiny", cache_folder=cache)
    check_model("org/modules", cache_folder=cache)  # it has no config.json at its top
    with pytest.raises(HubError, match="has no revision 'v9'; name a branch"):
        check_model("org/tiny", revision="v9", cache_folder=cache)
    monkeypatch.setattr("mmemb_r1.hub.source.hf_hub_download", None)  # what the cache holds is not asked for
    check_model("org/tiny", cache_folder=cache, local_files_only=True)


def test_a_repository_that_is_not_there(hub, contents, tmp_path, monkeypatch):
    with pytest.raises(HubError, match="There is no folder org/none here, and on the Hub there is no repository"):
        check_model("org/none")
    with pytest.raises(HubError, match="does not hold that model either; the Hub was not reached"):
        check_model("org/none", local_files_only=True)
    hub.create("org/tiny", private=True, **contents)
    monkeypatch.setenv("HF_TOKEN", "hf_stranger")
    with pytest.raises(HubError, match="or it is private and the token that was sent may not read it"):
        check_model("org/tiny")


def test_a_cache_that_cannot_be_written(hub, contents, monkeypatch):
    hub.create("org/tiny", **contents)

    def refuse(*arguments, **options):
        raise PermissionError(13, "Permission denied", "/srv/of-others")

    monkeypatch.setattr("mmemb_r1.hub.source.hf_hub_download", refuse)
    with pytest.raises(HubError, match="cache can't be written .*/srv/of-others.* Set HF_HOME to a folder"):
        check_model("org/tiny")
