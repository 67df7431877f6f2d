"""Print the oldest versions that setup.cfg allows, as constraints: `python scripts/oldest_versions.py setup.cfg`.

Development only, run by `make oldest`. A requirement `name>=1.2` becomes `name==1.2`. Those of the package, and of the
extras that the development set has, must say such a bound; tools of development may do without.
"""

from __future__ import annotations

import sys
from configparser import ConfigParser
from pathlib import Path

from packaging.requirements import Requirement


def requirements(path: Path) -> dict[str, list[Requirement]]:
    """Read what the package ("install_requires"), the extra dev, and each of our extras in dev require of others."""
    parser = ConfigParser()
    parser.read(path, encoding="utf-8")
    extras = parser["options.extras_require"]
    read = {
        "install_requires": list(map(Requirement, parser["options"]["install_requires"].strip().splitlines())),
        "dev": list(map(Requirement, extras["dev"].strip().splitlines())),
    }
    for extra in sorted(set().union(*(one.extras for one in read["dev"] if one.name == "mmemb-r1"))):
        read[extra] = list(map(Requirement, extras[extra].strip().splitlines()))
    return {name: [one for one in ones if one.name != "mmemb-r1"] for name, ones in read.items()}


def oldest(requirement: Requirement) -> str | None:
    """Find the version that a requirement allows at least. None where it names none.

    >>> oldest(Requirement("trl>=1.2")), oldest(Requirement("trl"))
    ('1.2', None)
    """
    bounds = [specifier.version for specifier in requirement.specifier if specifier.operator in (">=", "==", "~=")]
    if len(bounds) > 1:
        raise ValueError(f"{requirement} has {len(bounds)} lower bounds. Write one.")
    return bounds[0] if bounds else None


def constraints(path: Path) -> list[str]:
    """List `name==version` for every requirement with a bound. ValueError for one without that is no mere tool."""
    lines = set()
    for extra, ones in requirements(path).items():
        for requirement in ones:
            version = oldest(requirement)
            if version is not None:
                lines.add(f"{requirement.name}=={version}")
            elif extra != "dev":
                raise ValueError(
                    f"{path.name}, {extra}: {requirement.name} has no oldest version. Write "
                    f"{requirement.name}>=VERSION, with the oldest release that passes `make oldest`."
                )
    return sorted(lines)


if __name__ == "__main__":
    print("\n".join(constraints(Path(sys.argv[1]))))
