"""A pull brings one commit, and only what that commit lists."""

from __future__ import annotations

import os
import pickle
from contextlib import suppress
from pathlib import Path

import pytest
from huggingface_hub import constants
from jinja2 import TemplateError
from safetensors import SafetensorError

from mmemb_r1 import MMEmbR1
from mmemb_r1.cli import main
from mmemb_r1.hub import HubError, pull_checkpoint

REPO = "org/tiny"


@pytest.fixture
def pushed(hub, contents):
    """The commit of a repository that holds the tiny checkpoint."""
    hub.create(REPO, **contents)
    return hub.head(REPO)


def read(folder):
    """What is in a folder, but for .gitattributes."""
    files = {file.relative_to(folder).as_posix(): file for file in folder.rglob("*") if file.is_file()}
    return {name: file.read_bytes() for name, file in files.items() if name != ".gitattributes"}


def test_into_the_cache(hub, pushed, contents, tmp_path):
    pulled = pull_checkpoint(REPO)
    assert (pulled.commit, pulled.code_commit, pulled.left_out) == (pushed, None, ())
    assert read(pulled.folder) == contents
    assert pulled.folder.is_relative_to(tmp_path / "cache")
    before = hub.downloads.copy()
    assert pull_checkpoint(REPO, revision="main") == pulled
    assert hub.downloads == before, "nothing comes twice"
    elsewhere = pull_checkpoint(REPO, cache_dir=tmp_path / "other")
    assert elsewhere.folder.is_relative_to(tmp_path / "other")


@pytest.mark.parametrize("made", [False, True])
def test_into_a_folder(hub, pushed, contents, tmp_path, made):
    if made:
        (tmp_path / "model").mkdir()
    pulled = pull_checkpoint(REPO, output=tmp_path / "model")
    assert (pulled.folder, pulled.commit) == (tmp_path / "model", pushed)
    assert read(tmp_path / "model") == contents
    assert [entry.name for entry in tmp_path.iterdir() if "model" in entry.name] == ["model"], "nothing beside it"


def test_into_the_current_folder(hub, pushed, contents, tmp_path, monkeypatch, capsys):
    (tmp_path / "model").mkdir()
    monkeypatch.chdir(tmp_path / "model")
    assert main(["pull", REPO, "--output", "."]) == 0
    assert f"in {tmp_path / 'model'}\n" in capsys.readouterr().out
    assert read(Path()) == contents, "it is still the folder that a shell would be in"
    assert [entry.name for entry in tmp_path.iterdir() if "model" in entry.name] == ["model"]
    with pytest.raises(ValueError, match="model exists and is not an empty folder; name a new one"):
        pull_checkpoint(REPO, output=".")


def test_a_folder_that_was_filled_meanwhile_stays_as_it_is(hub, pushed, tmp_path):
    (tmp_path / "model").mkdir()
    hub.on_download = lambda: (tmp_path / "model" / "config.json").write_text("mine")
    with pytest.raises(ValueError, match="exists and is not an empty folder"):
        pull_checkpoint(REPO, output=tmp_path / "model")
    assert read(tmp_path / "model") == {"config.json": b"mine"}


def test_progress_is_shown_on_standard_error(hub, pushed, contents, capsys):
    assert main(["pull", REPO]) == 0
    captured = capsys.readouterr()
    assert f"Fetching {len(contents) + 1} files: 100%" in captured.err
    assert "100%" not in captured.out


def test_a_folder_with_something_in_it_stays_as_it_is(hub, pushed, tmp_path):
    (tmp_path / "config.json").write_text("mine")
    with pytest.raises(ValueError, match="exists and is not an empty folder; name a new one"):
        pull_checkpoint(REPO, output=tmp_path)
    assert (tmp_path / "config.json").read_text() == "mine"


def test_revisions(hub, pushed, contents, tmp_path):
    """Branch, pull request and commit are all pinned to a commit."""
    second = hub.change(REPO, **{"config.json": b"{}"})
    hub.repositories[REPO].refs |= {"refs/pr/1": pushed, "refs/tags/v1": pushed}
    assert pull_checkpoint(REPO).commit == second
    for revision in ("refs/pr/1", "v1", pushed):
        pulled = pull_checkpoint(REPO, revision=revision)
        assert pulled.commit == pushed
        assert read(pulled.folder) == contents
    assert read(pull_checkpoint(REPO).folder)["config.json"] == b"{}"


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
@pytest.mark.parametrize("where", ["cache", "folder"])
def test_a_file_changed_on_its_way(hub, pushed, contents, tmp_path, name, where):
    """Its length and the headers of the answer are right; only the content is not."""
    options = {"output": tmp_path / "model"} if where == "folder" else {}
    hub.corrupt = {name}
    for _ in range(2):  # the bad copy is not taken for the file by the second pull
        with pytest.raises(HubError, match=f"{REPO} at {pushed}: {name} is not what .* lists.*pull again"):
            pull_checkpoint(REPO, **options)
    assert not (tmp_path / "model").exists()
    assert hub.downloads[name] == 2
    hub.corrupt = set()
    assert read(pull_checkpoint(REPO, **options).folder) == contents
    assert hub.downloads == {name: 1 for name in [*contents, ".gitattributes"]} | {name: 3}, "the others came once"


def test_a_bad_copy_in_the_cache_is_not_copied_into_a_folder_forever(hub, pushed, contents, tmp_path):
    cached = pull_checkpoint(REPO).folder / "model.safetensors"
    cached.resolve().write_bytes(b"X" + contents["model.safetensors"][1:])
    with pytest.raises(HubError, match="model.safetensors is not what the repository lists"):
        pull_checkpoint(REPO, output=tmp_path / "model")
    pull_checkpoint(REPO, output=tmp_path / "model")
    assert read(tmp_path / "model") == contents
    assert read(pull_checkpoint(REPO).folder) == contents


@pytest.mark.parametrize("where", ["cache", "folder"])
def test_a_pull_that_is_cut_goes_on(hub, pushed, contents, tmp_path, where):
    options = {"output": tmp_path / "model"} if where == "folder" else {}
    hub.failing = {"model.safetensors"}
    with pytest.raises(HubError, match="org/tiny: the Hub answered 500: Internal error"):
        pull_checkpoint(REPO, **options)
    assert not (tmp_path / "model").exists()
    hub.failing = set()
    hub.cut_downloads = {"model.safetensors": 1000}
    assert read(pull_checkpoint(REPO, **options).folder) == contents
    assert hub.downloads == {name: 1 for name in [*contents, ".gitattributes"]} | {"model.safetensors": 2}


def test_pickles_stay_where_they_are(hub, pushed, contents, tmp_path, capsys):
    pickles = {"optimizer.pt": b"code", "1_Dense/pytorch_model.BIN": b"code"}
    hub.change(REPO, **pickles)
    pulled = pull_checkpoint(REPO)
    assert set(pulled.left_out) == set(pickles)
    assert read(pulled.folder) == contents
    assert main(["pull", REPO, "--output", str(tmp_path / "model")]) == 0
    assert "left out optimizer.pt, which is not a file of a checkpoint\n" in capsys.readouterr().out
    assert read(tmp_path / "model") == contents
    assert not hub.downloads.keys() & pickles.keys()


@pytest.mark.parametrize("where", ["cache", "folder"])
def test_nothing_comes_that_is_not_of_a_checkpoint(hub, pushed, contents, tmp_path, where):
    """Nor as code of another commit. It is not even downloaded."""
    others = {"notes.dat": pickle.dumps([1]), "deep/packed.zip": b"PK", "run.sh": b"code", "train.py": b"code"}
    hub.change(REPO, **others)
    for number in range(2):
        options = {"output": tmp_path / f"model{number}"} if where == "folder" else {}
        pulled = pull_checkpoint(REPO, revision=pushed, code_revision="main", **options)
        assert pulled.left_out == ("train.py",)
        assert read(pulled.folder) == contents
        options = {"output": tmp_path / f"other{number}"} if where == "folder" else {}
        pulled = pull_checkpoint(REPO, **options)
        assert set(pulled.left_out) == set(others)
        assert read(pulled.folder) == contents
    assert not hub.downloads.keys() & others.keys()


class Malicious:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


NOT_CODE = [
    "chat_template.jinja", "config.json", "config_sentence_transformers.json", "generation_config.json",
    "model.safetensors", "modules.json", "processor_config.json", "tokenizer.json", "tokenizer_config.json",
    "special_tokens_map.json", "vocab.json", "merges.txt", "tokenizer.model", "added_tokens.json",
]  # fmt: skip


@pytest.mark.parametrize("protocol", [0, pickle.HIGHEST_PROTOCOL])
@pytest.mark.parametrize("name", NOT_CODE)
def test_a_pickle_under_an_allowed_name_runs_no_code(hub, contents, tmp_path, name, protocol):
    """It may come along, but whatever loads a file of this name does not unpickle it."""
    data = pickle.dumps(Malicious(tmp_path / "escaped"), protocol=protocol)
    hub.create(REPO, **contents | {name: data})
    pulled = pull_checkpoint(REPO)
    assert (pulled.folder / name).read_bytes() == data
    with suppress(OSError, ValueError, RuntimeError, TypeError, AttributeError, TemplateError, SafetensorError):
        MMEmbR1(str(pulled.folder), device="cpu").encode("a", reasoning="always", max_reasoning_tokens=1)
    assert not (tmp_path / "escaped").exists()
    pickle.loads(data)
    assert (tmp_path / "escaped").exists(), "the file would have run code"


def test_code_of_another_commit(hub, pushed, contents, tmp_path, capsys):
    code = {"sentence_mmemb_r1.py": contents["sentence_mmemb_r1.py"] + b"# checked\n"}
    checked = hub.change(REPO, **code, **{"config.json": b"{}"})
    options = {"revision": pushed, "code_revision": "main"}
    pulled = pull_checkpoint(REPO, **options, output=tmp_path / "model")
    assert (pulled.commit, pulled.code_commit) == (pushed, checked)
    assert read(tmp_path / "model") == contents | code

    assert main(["pull", REPO, "--revision", pushed, "--code-revision", "main"]) == 0
    *_, place, first, second = capsys.readouterr().out.splitlines()
    snapshots = tmp_path / "cache" / "models--org--tiny" / "snapshots"
    assert place == f"in {snapshots / pushed}"
    assert read(snapshots / pushed) == contents
    assert read(snapshots / checked) == {name: (contents | code)[name] for name in contents if name.endswith(".py")}
    assert first == f'MMEmbR1("{REPO}", revision="{pushed}")'
    assert second == (
        f'SentenceTransformer("{REPO}", revision="{pushed}", trust_remote_code=True, '
        f'model_kwargs={{"code_revision": "{checked}"}})'
    )
    with pytest.raises(HubError, match="org/tiny has no revision 'none'"):
        pull_checkpoint(REPO, code_revision="none")


def test_the_command(hub, pushed, contents, tmp_path, capsys):
    folder = tmp_path / "model"
    assert main(["pull", REPO, "--output", str(folder)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{REPO} at {pushed}, verified",
        f"in {folder}",
        f'MMEmbR1("{REPO}", revision="{pushed}")',
        f'SentenceTransformer("{REPO}", revision="{pushed}", trust_remote_code=True)',
    ]
    assert read(folder) == contents
    assert main(["pull", REPO, "--revision", "none"]) == 2
    assert capsys.readouterr().err == (
        "error: org/tiny has no revision 'none'; name a branch, a tag, a commit or a pull request (refs/pr/1)\n"
    )


class TestRefusals:
    def test_a_private_repository_needs_a_token(self, hub, contents, monkeypatch):
        hub.create(REPO, private=True, **contents)
        assert read(pull_checkpoint(REPO).folder) == contents
        monkeypatch.delenv("HF_TOKEN")
        with pytest.raises(
            HubError, match="no repository org/tiny, or it is private and no token was found: log in with"
        ):
            pull_checkpoint(REPO)
        monkeypatch.setenv("HF_TOKEN", "hf_stranger")
        with pytest.raises(HubError, match="org/tiny, or it is private and the token that was sent may not read it"):
            pull_checkpoint(REPO)
        monkeypatch.setenv("HF_TOKEN", "hf_unknown")
        with pytest.raises(HubError, match="the Hub does not know the token that was sent"):
            pull_checkpoint(REPO)

    def test_a_public_repository_needs_none(self, hub, pushed, contents, monkeypatch):
        monkeypatch.delenv("HF_TOKEN")
        assert read(pull_checkpoint(REPO).folder) == contents

    def test_no_such_repository(self, hub):
        with pytest.raises(HubError, match="there is no repository org/none"):
            pull_checkpoint("org/none")

    def test_offline(self, hub, pushed, monkeypatch):
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        with pytest.raises(HubError, match="org/tiny can't be reached: offline mode is on; unset HF_HUB_OFFLINE"):
            pull_checkpoint(REPO)

    def test_names(self):
        with pytest.raises(ValueError, match="'tiny' has no owner; allowed: owner/name"):
            pull_checkpoint("tiny")

    def test_names_that_lead_out_of_the_folder(self, hub, pushed, tmp_path):
        hub.change(REPO, **{"../escaped.txt": b"out"})
        with pytest.raises(ValueError, match="cannot contain a '..' path segment"):
            pull_checkpoint(REPO, output=tmp_path / "model")
        assert not (tmp_path / "escaped.txt").exists()
