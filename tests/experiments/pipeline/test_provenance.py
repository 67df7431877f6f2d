from __future__ import annotations

import subprocess

import pytest

from experiments.pipeline.provenance import commit_of


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
