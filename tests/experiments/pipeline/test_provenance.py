from __future__ import annotations

import subprocess

import pytest

from experiments.pipeline.provenance import commit_of, folder_digest


def git(folder, *command):
    name = ["-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(["git", "-C", str(folder), *name, *command], check=True, capture_output=True)


@pytest.fixture
def checkout(tmp_path):
    (tmp_path / "tracked.py").write_text("1")
    (tmp_path / ".gitignore").write_text("venv\n")
    git(tmp_path, "init")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "first")
    return tmp_path


def test_the_commit_says_whether_something_was_changed(checkout):
    found = commit_of(checkout / "tracked.py")
    assert found is not None and len(found) >= 12 and not found.endswith("-dirty")
    (checkout / "tracked.py").write_text("2")
    assert commit_of(checkout / "tracked.py") == f"{found}-dirty"


def test_somebody_elses_checkout_around_an_environment_has_no_say(checkout):
    installed = checkout / "venv" / "lib" / "package.py"
    installed.parent.mkdir(parents=True)
    installed.write_text("1")
    assert commit_of(installed) is None


def test_every_file_counts_for_a_digest_and_where_it_lies_does_not(tmp_path):
    for name in ("one", "two"):
        folder = tmp_path / name
        (folder / "deep").mkdir(parents=True)
        (folder / "deep" / "model.bin").write_bytes(b"w" * 3_000_000)  # of no kind that is known by its ending
        (folder / "config.json").write_text("{}")
    first = folder_digest(tmp_path / "one")
    assert folder_digest(tmp_path / "two") == first
    (tmp_path / "two" / ".cache").write_text("x")
    assert folder_digest(tmp_path / "two") == first
    (tmp_path / "two" / "deep" / "model.bin").write_bytes(b"w" * 2_999_999 + b"v")
    assert folder_digest(tmp_path / "two") != first
    (tmp_path / "one" / "config.json").rename(tmp_path / "one" / "other.json")
    assert folder_digest(tmp_path / "one") != first


def test_a_folder_without_files_has_no_digest(tmp_path):
    with pytest.raises(ValueError, match="has no files"):
        folder_digest(tmp_path)
