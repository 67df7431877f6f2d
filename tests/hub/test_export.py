"""What is exported of a checkpoint on the Hub says which one it was."""

from __future__ import annotations

import json

from mmemb_r1.cli import main
from mmemb_r1.hub import push_checkpoint
from mmemb_r1.hub.source import cached_commit

REPO = "org/tiny"


def test_an_export_for_vllm_names_repository_and_commit(hub, tiny_checkpoint, tmp_path):
    commit = push_checkpoint(tiny_checkpoint, REPO).commit
    assert cached_commit(REPO) is None
    for source, known in ((REPO, commit), (str(tiny_checkpoint), None)):
        folder = tmp_path / f"of-{known}"
        assert main(["export", "vllm", source, str(folder), "--device", "cpu"]) == 0
        facts = json.loads((folder / "mmemb_r1/export.json").read_text(encoding="utf-8"))
        text = (folder / "README.md").read_text(encoding="utf-8")
        assert facts["revision"] == known
        assert (f"`{REPO}` at the revision `{commit}`" in text) == (known is not None)
        assert f"--served-model-name {REPO if known else tiny_checkpoint.name} " in text
