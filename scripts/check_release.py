"""Check that what is about to be released says one version everywhere: `python scripts/check_release.py dist [0.2.0]`.

Development only, run by `make dist`. The files in the folder have to be of the version that the package says; with a
version as the second argument, as the release workflow gives it, that has to be the one, and the changelog and
CITATION.cff have to be ready for it.
"""

from __future__ import annotations

import re
import sys
import zipfile
from email.parser import HeaderParser
from pathlib import Path

import yaml
from packaging.version import Version


def wheel_version(folder: Path) -> str:
    """Read the version from the metadata of a wheel. ValueError if the folder does not hold it and its sdist alone."""
    names = sorted(file.name for file in folder.iterdir())
    wheels = [name for name in names if name.endswith(".whl")]
    if len(names) != 2 or len(wheels) != 1:
        raise ValueError(f"{folder} holds {', '.join(names) or 'nothing'}; a release is one wheel and one sdist.")
    with zipfile.ZipFile(folder / wheels[0]) as wheel:
        (member,) = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
        version = HeaderParser().parsestr(wheel.read(member).decode("utf-8"))["Version"]
    if f"mmemb_r1-{version}.tar.gz" not in names:
        raise ValueError(f"the wheel is of version {version}, and there is no sdist of it, but {', '.join(names)}.")
    return version


def problems(root: Path, version: str, release: str) -> list[str]:
    """List what is not ready for `release`, in sentences; `version` is that of the built files."""
    found = []
    if version != release:
        found.append(f"The tag says {release}, the built files say {version}: change __version__, or the tag.")
    if Version(release).is_devrelease or Version(release).local:
        found.append(f"{release} is a version of development, which is not uploaded.")
    citation = yaml.safe_load((root / "CITATION.cff").read_text(encoding="utf-8"))
    if citation["version"] != release:
        found.append(f"CITATION.cff says version {citation['version']}.")
    changelog = (root / "CHANGELOG.md").read_text(encoding="utf-8")
    dated = re.search(rf"^## \[{re.escape(release)}\] - (\d{{4}}-\d\d-\d\d)$", changelog, re.MULTILINE)
    if dated is None:
        found.append(f"CHANGELOG.md has no line `## [{release}] - YYYY-MM-DD`.")
    elif str(citation.get("date-released")) != dated[1]:
        found.append(f"CITATION.cff says date-released {citation.get('date-released')}, CHANGELOG.md says {dated[1]}.")
    waiting = re.search(r"^## \[Unreleased\]\n(.*?)(?=^## )", changelog, re.MULTILINE | re.DOTALL)
    if waiting is not None and waiting[1].strip():
        found.append(f"CHANGELOG.md has lines under [Unreleased]: they belong to {release}.")
    return found


def main(arguments: list[str]) -> int:
    root = Path(__file__).resolve().parent.parent
    version = wheel_version(Path(arguments[0]))
    found = problems(root, version, arguments[1]) if len(arguments) > 1 else []
    print("\n".join(found) or f"mmemb-r1 {version}: wheel and sdist", file=sys.stderr if found else sys.stdout)
    return len(found)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
