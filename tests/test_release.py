"""Workflows give no more rights than they need and name what exists; a release says one version everywhere."""

from __future__ import annotations

import re
import zipfile
from configparser import ConfigParser

import pytest
import yaml

from scripts import check_release, oldest_versions

WORKFLOWS = ("docs", "lint", "release", "slow", "tests")


@pytest.fixture(params=WORKFLOWS)
def workflow(root, request):
    return (root / ".github/workflows" / f"{request.param}.yml").read_text(encoding="utf-8")


def jobs_of(workflow):
    return yaml.safe_load(workflow)["jobs"]


def test_every_workflow_is_tested(root):
    assert sorted(file.stem for file in (root / ".github/workflows").iterdir()) == sorted(WORKFLOWS)


def test_actions_are_pinned_to_commits(workflow):
    used = re.findall(r"uses: (.*)$", workflow, re.MULTILINE)
    assert used
    for action in used:
        assert re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", action), action


def test_jobs_may_read_and_only_the_upload_may_more(workflow):
    read = yaml.safe_load(workflow)
    assert read["permissions"] == {"contents": "read"}
    more = {name: job["permissions"] for name, job in read["jobs"].items() if "permissions" in job}
    assert more == ({"publish": {"id-token": "write"}} if read["name"] == "release" else {})
    assert "secrets." not in workflow  # a trusted publisher needs none


def test_the_job_that_may_upload_runs_only_actions(root):
    publish = jobs_of((root / ".github/workflows/release.yml").read_text(encoding="utf-8"))["publish"]
    assert [sorted(set(step) - {"with"}) for step in publish["steps"]] == [["uses"], ["uses"]]
    assert publish["environment"]["name"] == "pypi" and publish["needs"] == "build"
    assert publish["steps"][1]["with"]["attestations"] is True


def test_checkouts_forget_the_token_and_jobs_end(workflow):
    for job in jobs_of(workflow).values():
        assert job["timeout-minutes"] <= 180
        for step in job["steps"]:
            if step.get("uses", "").startswith("actions/checkout@"):
                assert step["with"]["persist-credentials"] is False


def test_what_workflows_run_exists(root, workflow):
    targets = set(re.findall(r"^([\w-]+):", (root / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for job in jobs_of(workflow).values():
        named = [word for step in job["steps"] for word in re.findall(r"make ([\w-]+)", step.get("run", ""))]
        named += job.get("strategy", {}).get("matrix", {}).get("target", [])
        assert set(named) <= targets


def test_the_checklist_names_what_exists(root):
    text = (root / "RELEASING.md").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([\w-]+):", (root / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert {"dist", "newest", "oldest"} <= set(re.findall(r"`make ([\w-]+)", text)) <= targets
    for file in re.findall(r"`((?:\.github|src|tests)/[^`]+)`", text):
        assert (root / file).is_file(), file


def test_supported_versions_of_python_are_those_that_are_tested(root):
    setup = ConfigParser()
    setup.read(root / "setup.cfg", encoding="utf-8")
    told = re.findall(r"Python :: (3\.\d+)$", setup["metadata"]["classifiers"], re.MULTILINE)
    tests = jobs_of((root / ".github/workflows/tests.yml").read_text(encoding="utf-8"))
    assert told == tests["quick"]["strategy"]["matrix"]["python"]
    assert setup["options"]["python_requires"] == f">={told[0]}"


def test_every_requirement_says_its_oldest_version(root):
    pins = oldest_versions.constraints(root / "setup.cfg")
    assert {"torch", "transformers", "trl", "lancedb", "mteb"} <= {pin.split("==")[0] for pin in pins}


def test_a_requirement_without_an_oldest_version_is_named(tmp_path):
    setup = tmp_path / "setup.cfg"
    setup.write_text(
        "[options]\ninstall_requires =\n    torch>=2.6\n[options.extras_require]\n"
        "pdf =\n    pypdfium2\nserve =\n    ray\ndev =\n    mmemb-r1[pdf]\n    ruff\n"
    )
    with pytest.raises(ValueError, match=r"setup.cfg, pdf: pypdfium2 has no oldest version. Write pypdfium2>=VERSION"):
        oldest_versions.constraints(setup)


@pytest.fixture
def built(tmp_path):
    """`built(version)`: a folder with a wheel of that version, as far as it is looked at, and an sdist of 0.2.0."""

    def build(version):
        folder = tmp_path / "dist"
        folder.mkdir()
        (folder / "mmemb_r1-0.2.0.tar.gz").touch()
        with zipfile.ZipFile(folder / f"mmemb_r1-{version}-py3-none-any.whl", "w") as wheel:
            wheel.writestr(f"mmemb_r1-{version}.dist-info/METADATA", f"Name: mmemb-r1\nVersion: {version}\n\nText")
        return folder

    return build


def test_the_version_of_built_files_is_read(built):
    assert check_release.wheel_version(built("0.2.0")) == "0.2.0"


def test_a_wheel_and_an_sdist_of_two_versions_are_refused(built):
    with pytest.raises(ValueError, match="the wheel is of version 0.3.0, and there is no sdist of it"):
        check_release.wheel_version(built("0.3.0"))


def test_files_of_an_older_build_are_refused(built):
    folder = built("0.2.0")
    (folder / "mmemb_r1-0.1.0.tar.gz").touch()
    with pytest.raises(ValueError, match="a release is one wheel and one sdist"):
        check_release.wheel_version(folder)


READY = ("## [Unreleased]\n\n## [0.2.0] - 2026-12-01\n\n- A line.\n", "version: 0.2.0\ndate-released: 2026-12-01\n")


@pytest.mark.parametrize(
    ("changelog", "citation", "version", "said"),
    [
        (*READY, "0.2.0", []),
        (*READY, "0.1.9", ["The tag says 0.2.0, the built files say 0.1.9"]),
        (READY[0].replace("- 2026-12-01", ""), READY[1], "0.2.0", ["CHANGELOG.md has no line `## [0.2.0] - YYYY"]),
        (READY[0].replace("12-01", "12-02"), READY[1], "0.2.0", ["CITATION.cff says date-released 2026-12-01"]),
        (READY[0], READY[1].replace("0.2.0", "0.1.0"), "0.2.0", ["CITATION.cff says version 0.1.0"]),
        (READY[0].replace("ed]\n", "ed]\n\n- New.\n"), READY[1], "0.2.0", ["has lines under [Unreleased]"]),
    ],
)
def test_what_is_not_ready_is_listed(tmp_path, changelog, citation, version, said):
    (tmp_path / "CHANGELOG.md").write_text(changelog, encoding="utf-8")
    (tmp_path / "CITATION.cff").write_text(citation, encoding="utf-8")
    found = check_release.problems(tmp_path, version, "0.2.0")
    assert len(found) == len(said)
    for sentence, part in zip(found, said, strict=True):
        assert part in sentence


def test_versions_of_development_are_not_uploaded(tmp_path):
    (tmp_path / "CHANGELOG.md").write_text("## [0.3.0.dev0] - 2026-12-01\n", encoding="utf-8")
    (tmp_path / "CITATION.cff").write_text("version: 0.3.0.dev0\ndate-released: 2026-12-01\n", encoding="utf-8")
    assert check_release.problems(tmp_path, "0.3.0.dev0", "0.3.0.dev0") == [
        "0.3.0.dev0 is a version of development, which is not uploaded."
    ]
