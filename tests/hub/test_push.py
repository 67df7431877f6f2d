"""A push is one commit that makes the repository what the folder is, or nothing."""

from __future__ import annotations

import hashlib
import json
import threading

import pytest
from huggingface_hub import constants

from mmemb_r1.cli import main
from mmemb_r1.hub import HubError, RepositoryMovedError, check_checkpoint, push_checkpoint

REPO = "org/tiny"
PICTURE = b"\x89PNG somebody's"


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def edit(folder, name="config.json", **changes):
    """Change a JSON file of a checkpoint."""
    content = json.loads((folder / name).read_text()) | changes
    (folder / name).write_text(json.dumps(content))


def test_the_repository_holds_what_the_folder_holds(hub, tiny_checkpoint, contents):
    pushed = push_checkpoint(tiny_checkpoint, REPO, private=True, commit_message="First")
    repository = hub.repositories[REPO]
    assert hub.files(REPO) == contents
    assert repository.private
    assert pushed.commit == hub.head(REPO)
    assert (set(pushed.changed), pushed.deleted, pushed.pull_request) == (set(contents), (), None)
    assert repository.messages[pushed.commit] == "First"
    assert len(repository.commits) == 2, "the one that the Hub makes, and one"


def test_pushing_the_same_again_makes_no_commit(hub, tiny_checkpoint, capsys):
    first = push_checkpoint(tiny_checkpoint, REPO)
    second = push_checkpoint(tiny_checkpoint, REPO)
    assert (second.commit, second.changed, second.deleted) == (first.commit, (), ())
    assert push_checkpoint(tiny_checkpoint, REPO, create_pr=True).pull_request is None
    assert len(hub.repositories[REPO].commits) == 2
    assert main(["push", str(tiny_checkpoint), REPO]) == 0
    assert f"{REPO} holds this checkpoint already, at {first.commit}: no commit was made" in capsys.readouterr().out


def test_what_the_checkpoint_lacks_is_deleted_by_the_same_commit(hub, checkpoint):
    push_checkpoint(checkpoint, REPO)
    hub.change(REPO, **{"assets/old.png": PICTURE, "pytorch_model.bin": b"old"})
    edit(checkpoint, gate_threshold=0.25)
    before = hub.head(REPO)
    pushed = push_checkpoint(checkpoint, REPO)
    assert (pushed.changed, pushed.deleted) == (("config.json",), ("assets/old.png", "pytorch_model.bin"))
    assert hub.files(REPO) == {file.name: file.read_bytes() for file in checkpoint.iterdir()}
    assert hub.repositories[REPO].parents[pushed.commit] == before
    assert ".gitattributes" in hub.repositories[REPO].commits[pushed.commit]


def test_branches(hub, checkpoint, contents):
    push_checkpoint(checkpoint, REPO)
    main_branch = hub.head(REPO)
    edit(checkpoint, gate_threshold=0.25)
    for _ in range(2):
        pushed = push_checkpoint(checkpoint, REPO, revision="v2")
    assert hub.head(REPO, "refs/heads/v2") == pushed.commit
    assert hub.files(REPO, "v2")["config.json"] == (checkpoint / "config.json").read_bytes()
    assert hub.head(REPO) == main_branch
    assert hub.files(REPO) == contents
    with pytest.raises(ValueError, match=f"revision='{main_branch}' is a commit, which can't change; name a branch"):
        push_checkpoint(checkpoint, REPO, revision=main_branch)


def test_pull_requests(hub, checkpoint, contents, monkeypatch, capsys):
    push_checkpoint(checkpoint, REPO)
    hub.change(REPO, **{"old.png": PICTURE})
    main_branch = hub.head(REPO)
    edit(checkpoint, gate_threshold=0.25)
    monkeypatch.setenv("HF_TOKEN", "hf_stranger")
    pushed = push_checkpoint(checkpoint, REPO, create_pr=True)
    assert pushed.pull_request == f"{hub.endpoint}/{REPO}/discussions/1"
    assert hub.head(REPO, "refs/pr/1") == pushed.commit
    assert hub.files(REPO, "refs/pr/1") == {file.name: file.read_bytes() for file in checkpoint.iterdir()}
    assert hub.head(REPO) == main_branch, "a proposal changes nothing"

    monkeypatch.setenv("HF_TOKEN", "hf_writer")
    edit(checkpoint, gate_threshold=0.75)
    added = push_checkpoint(checkpoint, REPO, revision="refs/pr/1")
    assert hub.repositories[REPO].parents[added.commit] == pushed.commit
    assert added.changed == ("config.json",)
    assert hub.head(REPO) == main_branch
    assert main(["push", str(checkpoint), REPO, "--create-pr"]) == 0
    assert f"pull request: {hub.endpoint}/{REPO}/discussions/2" in capsys.readouterr().out
    with pytest.raises(HubError, match="there is no repository org/none"):
        push_checkpoint(checkpoint, "org/none", create_pr=True)
    with pytest.raises(ValueError, match="revision='v2' and create_pr=True: a pull request goes to the main branch"):
        push_checkpoint(checkpoint, REPO, revision="v2", create_pr=True)
    assert push_checkpoint(checkpoint, REPO, revision="main", create_pr=True).pull_request.endswith("/discussions/3")


def test_a_push_that_is_cut_changes_nothing_and_goes_on(hub, checkpoint, contents):
    """The weights are cut on their way; the other large file arrives, and is not sent again."""
    first = push_checkpoint(checkpoint, REPO)
    tokenizer = checkpoint / "tokenizer.json"
    tokenizer.write_bytes(tokenizer.read_bytes() + b"\n")
    weights = checkpoint / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert len(data) > len(tokenizer.read_bytes())
    hub.cut_uploads = len(tokenizer.read_bytes())
    message = "uploading 'model.safetensors'.*org/tiny holds what it held; push again: what has arrived is not sent"
    with pytest.raises(HubError, match=message):
        push_checkpoint(checkpoint, REPO)
    assert hub.head(REPO) == first.commit
    assert hub.files(REPO) == contents, "the old revision is whole"
    assert hub.uploads[sha256(tokenizer.read_bytes())] == 1
    assert hub.uploads[sha256(data)] == 0

    hub.cut_uploads = None
    pushed = push_checkpoint(checkpoint, REPO)
    assert pushed.changed == ("model.safetensors", "tokenizer.json")
    assert hub.files(REPO) == contents | {name: (checkpoint / name).read_bytes() for name in pushed.changed}
    assert hub.uploads[sha256(tokenizer.read_bytes())] == hub.uploads[sha256(data)] == 1


@pytest.mark.parametrize("exists", [True, False])
def test_a_push_to_a_new_branch_that_is_cut_makes_none(hub, checkpoint, contents, exists):
    """A new repository has to be there before anything is sent; there is no checkpoint in it."""
    if exists:
        hub.create(REPO, **{"old.png": PICTURE})
    hub.cut_uploads = 1000
    with pytest.raises(HubError, match="org/tiny holds what it held; push again"):
        push_checkpoint(checkpoint, REPO, revision="new/branch")
    assert set(hub.repositories[REPO].refs) == {"refs/heads/main"}
    assert hub.files(REPO) == ({"old.png": PICTURE} if exists else {})
    hub.cut_uploads = None
    main_branch = hub.head(REPO)
    pushed = push_checkpoint(checkpoint, REPO, revision="new/branch")
    assert hub.files(REPO, "new/branch") == contents
    assert hub.repositories[REPO].parents[pushed.commit] == hub.head(REPO) == main_branch


def test_a_new_branch_whose_commit_is_cut_is_a_copy_of_main(hub, checkpoint):
    hub.create(REPO, **{"old.png": PICTURE})

    def cut():
        raise ConnectionError

    hub.on_commit = cut
    with pytest.raises(HubError, match="the Hub can't be reached at .*; try again"):
        push_checkpoint(checkpoint, REPO, revision="v2")
    assert hub.head(REPO, "refs/heads/v2") == hub.head(REPO)


def test_a_new_branch_that_somebody_makes_meanwhile_is_no_mix(hub, checkpoint):
    hub.create(REPO)

    def make():
        repository = hub.repositories[REPO]
        start = repository.refs["refs/heads/main"]
        repository.add("refs/heads/v2", dict(repository.commits[start]), "theirs", start)

    hub.on_preupload = once(make)
    with pytest.raises(RepositoryMovedError, match="org/tiny moved while this push was under way"):
        push_checkpoint(checkpoint, REPO, revision="v2")
    assert hub.files(REPO, "v2") == {}


def test_progress_is_shown_on_standard_error(hub, tiny_checkpoint, capsys):
    assert main(["push", str(tiny_checkpoint), REPO]) == 0
    captured = capsys.readouterr()
    for name in ("Upload 2 LFS files", "model.safetensors", "tokenizer.json"):
        assert f"{name}: 100%" in captured.err
    assert "100%" not in captured.out


def test_of_two_pushes_at_once_one_is_refused(hub, tiny_checkpoint, checkpoint):
    """Both are ready to commit before either does, and each leaves out what is at the head already."""
    hub.create(REPO)
    edit(checkpoint, gate_threshold=0.25)
    (checkpoint / "notes.txt").write_text("more")
    together = threading.Barrier(2, timeout=30)
    hub.on_commit = together.wait
    outcomes = {}

    def push(folder):
        try:
            outcomes[folder] = push_checkpoint(folder, REPO)
        except RepositoryMovedError as error:
            outcomes[folder] = error

    threads = [threading.Thread(target=push, args=(folder,)) for folder in (tiny_checkpoint, checkpoint)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (lost,) = (error for error in outcomes.values() if isinstance(error, RepositoryMovedError))
    (won,) = (folder for folder, outcome in outcomes.items() if outcome is not lost)
    commit = hub.head(REPO)
    assert outcomes[won].commit == commit
    assert hub.files(REPO) == {file.name: file.read_bytes() for file in won.iterdir()}, "no mix of the two"
    assert len(hub.repositories[REPO].commits) == 2
    parent = hub.repositories[REPO].parents[commit]
    assert f"org/tiny moved while this push was under way, from {parent} to {commit}; nothing was changed" in str(lost)
    assert str(lost).endswith("push again")

    hub.on_commit = lambda: None
    (loser,) = (folder for folder, outcome in outcomes.items() if outcome is lost)
    push_checkpoint(loser, REPO)
    assert hub.files(REPO) == {file.name: file.read_bytes() for file in loser.iterdir()}


@pytest.mark.parametrize("create_pr", [False, True])
@pytest.mark.slow
def test_a_repository_that_moves_during_the_upload(hub, checkpoint, create_pr):
    """The client compares with the head of that moment. A commit on the old one would lack what is the same there."""
    push_checkpoint(checkpoint, REPO)
    edit(checkpoint, gate_threshold=0.25)
    (checkpoint / "notes.txt").write_text("more")
    hub.on_preupload = once(lambda: hub.change(REPO, **{"config.json": b"{}"}))
    with pytest.raises(RepositoryMovedError, match="org/tiny moved while this push was under way"):
        push_checkpoint(checkpoint, REPO, create_pr=create_pr)
    assert set(hub.repositories[REPO].refs) == {"refs/heads/main"}
    assert hub.files(REPO)["config.json"] == b"{}"
    assert "notes.txt" not in hub.files(REPO)


def test_a_pull_request_to_a_repository_that_moves_at_last_is_no_mix(hub, checkpoint):
    push_checkpoint(checkpoint, REPO)
    edit(checkpoint, gate_threshold=0.25)
    hub.on_commit = once(lambda: hub.change(REPO, **{"config.json": b"{}", "theirs.txt": b"theirs"}))
    push_checkpoint(checkpoint, REPO, create_pr=True)
    assert hub.files(REPO, "refs/pr/1") == {file.name: file.read_bytes() for file in checkpoint.iterdir()}


def once(act):
    left = [act]
    return lambda: left.pop()() if left else None


def test_what_the_hub_holds_is_compared_with_the_folder(hub, checkpoint):
    """A file is changed while the commit is under way."""
    hub.on_commit = lambda: edit(checkpoint, gate_threshold=0.25)
    with pytest.raises(HubError, match="is not what .*checkpoint holds: config.json differ"):
        push_checkpoint(checkpoint, REPO)


def test_a_bad_folder_never_reaches_the_hub(hub, checkpoint, capsys):
    (checkpoint / "optimizer.pt").touch()
    assert main(["push", str(checkpoint), REPO]) == 2
    assert "optimizer.pt is not a file of a checkpoint; allowed are *.json" in capsys.readouterr().err
    assert not hub.repositories
    assert not hub.stored


class TestRefusals:
    def test_no_token(self, hub, tiny_checkpoint, monkeypatch):
        monkeypatch.delenv("HF_TOKEN")
        with pytest.raises(HubError, match="no token was found, and pushing to org/tiny needs one: log in"):
            push_checkpoint(tiny_checkpoint, REPO)

    def test_a_token_that_the_hub_does_not_know(self, hub, tiny_checkpoint, monkeypatch):
        hub.create(REPO)
        monkeypatch.setenv("HF_TOKEN", "hf_unknown")
        with pytest.raises(HubError, match="org/tiny: the Hub does not know the token that was sent") as error:
            push_checkpoint(tiny_checkpoint, REPO)
        assert "hf_unknown" not in str(error.value)

    @pytest.mark.parametrize("exists", [True, False])
    def test_a_token_that_may_not_write(self, hub, tiny_checkpoint, monkeypatch, exists):
        if exists:
            hub.create(REPO)
        monkeypatch.setenv("HF_TOKEN", "hf_stranger")
        with pytest.raises(HubError, match="the token that was sent may not write to org/tiny .*as a pull request"):
            push_checkpoint(tiny_checkpoint, REPO)

    def test_private_does_not_hide_what_is_public(self, hub, tiny_checkpoint, capsys):
        hub.create(REPO)
        assert main(["push", str(tiny_checkpoint), REPO, "--private"]) == 2
        assert "error: org/tiny exists and is public; make it private in its settings" in capsys.readouterr().err
        assert hub.files(REPO) == {}

    def test_offline(self, hub, tiny_checkpoint, monkeypatch):
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        with pytest.raises(HubError, match="org/tiny can't be reached: offline mode is on; unset HF_HUB_OFFLINE"):
            push_checkpoint(tiny_checkpoint, REPO)

    def test_nobody_answers(self, hub, tiny_checkpoint, monkeypatch):
        monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
        with pytest.raises(HubError, match=r"the Hub can't be reached at http://127.0.0.1:9 \("):
            push_checkpoint(tiny_checkpoint, REPO)

    @pytest.mark.parametrize("repo_id", ["tiny", "org/tiny/more", "or g/tiny", "org/tiny.git"])
    def test_names(self, hub, tiny_checkpoint, repo_id):
        with pytest.raises(ValueError, match="llowed: owner/name, for example org/name"):
            push_checkpoint(tiny_checkpoint, repo_id)


def test_the_command(hub, checkpoint, contents, capsys):
    hub.create(REPO, **{"old.png": PICTURE})
    assert main(["push", str(checkpoint), REPO, "--message", "First", "--revision", "v1"]) == 0
    commit = hub.head(REPO, "refs/heads/v1")
    assert capsys.readouterr().out.splitlines() == [
        f"pushed to {REPO}: {len(contents)} files changed, 1 deleted",
        "deleted old.png",
        f'MMEmbR1("{REPO}", revision="{commit}")',
    ]
    assert hub.files(REPO, "v1") == contents
    assert hub.repositories[REPO].messages[commit] == "First"
    with pytest.raises(SystemExit):  # a token would stay in the shell's history
        main(["push", str(checkpoint), REPO, "--token", "hf_writer"])


def test_push_to_hub_of_sentence_transformers(hub, tiny_checkpoint, contents, tmp_path):
    """`MMEmbR1.push_to_hub` brings a whole checkpoint, with the same weights, configuration and code."""
    from mmemb_r1 import MMEmbR1

    MMEmbR1(str(tiny_checkpoint), device="cpu").push_to_hub(REPO, private=True)
    files = hub.files(REPO)
    assert hub.repositories[REPO].private
    assert set(files) == set(contents)
    same = [
        name for name in files if name.endswith((".py", ".safetensors")) or name in ("config.json", "modules.json")
    ]
    assert len(same) > 10
    assert all(files[name] == contents[name] for name in same)
    (tmp_path / "again").mkdir()
    for name, data in files.items():
        (tmp_path / "again" / name).write_bytes(data)
    assert check_checkpoint(tmp_path / "again") == sorted(contents)


def test_push_to_hub_of_sentence_transformers_to_branches_and_pull_requests(hub, tiny_checkpoint, contents):
    from mmemb_r1 import MMEmbR1

    model = MMEmbR1(str(tiny_checkpoint), device="cpu")
    first = push_checkpoint(tiny_checkpoint, REPO)
    repository = hub.repositories[REPO]

    model[0].model.config.gate_threshold = 0.25
    model.push_to_hub(REPO, exist_ok=True, revision="v2", commit_message="Second")
    branch = hub.head(REPO, "refs/heads/v2")
    assert (repository.messages[branch], repository.parents[branch]) == ("Second", first.commit)
    assert json.loads(hub.files(REPO, "v2")["config.json"])["gate_threshold"] == 0.25

    model[0].model.config.gate_threshold = 0.75
    url = model.push_to_hub(REPO, create_pr=True, commit_message="Third")
    proposal = hub.head(REPO, "refs/pr/1")
    assert (repository.messages[proposal], repository.parents[proposal]) == ("Third", first.commit)
    assert url == f"{hub.endpoint}/{REPO}/discussions/1"
    assert json.loads(hub.files(REPO, "refs/pr/1")["config.json"])["gate_threshold"] == 0.75

    assert hub.head(REPO) == first.commit
    assert hub.files(REPO) == contents, "a branch and a proposal change nothing"
