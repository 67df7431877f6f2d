"""The package is whole, its parts depend on each other in one direction, and importing it is cheap."""

from __future__ import annotations

import ast
import importlib.resources
import importlib.util
import os
import re
import subprocess
import sys
from configparser import ConfigParser
from importlib.metadata import entry_points, metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import mmemb_r1
import mmemb_r1.evaluation

# What a part may import of the package, besides itself and the private helpers at the top (_lazy, _files).
ALLOWED = {
    "modeling": set(),
    "tiny": set(),
    "atlas": set(),
    "model_card": {"evaluation", "modeling"},
    "embedding_cache": set(),
    "stream": {"modeling"},
    "sentence_transformer": {"embedding_cache", "model_card", "modeling", "stream"},
    "evaluation": {"atlas", "embedding_cache", "hub", "modeling"},
    "hub": set(),
    "training": {"atlas", "model_card", "modeling", "sentence_transformer"},
    "pipeline": {"atlas", "evaluation", "model_card", "modeling", "sentence_transformer", "tiny", "training"},
    "study": {"atlas", "evaluation", "pipeline", "sentence_transformer", "training"},
    "quickstart": {
        "atlas", "evaluation", "model_card", "modeling", "pipeline", "sentence_transformer", "training",
    },
    "cli": {
        "atlas", "evaluation", "hub", "model_card", "modeling", "pipeline", "quickstart", "sentence_transformer",
        "stream", "study", "tiny", "training",
    },
}  # fmt: skip
# The same among the parts of mmemb_r1.evaluation, whose docstring says it.
ALLOWED_IN_EVALUATION = {
    part: set() if needs == "nothing" else set(needs.split(", "))
    for part, needs in re.findall(r"^ {4}(\w+) {2,}(.+)$", mmemb_r1.evaluation.__doc__, re.MULTILINE)
}


def options(root: Path) -> ConfigParser:
    parser = ConfigParser()
    parser.read(root / "setup.cfg", encoding="utf-8")
    return parser


def folders(root: Path) -> dict[str, Path]:
    """Package -> its folder in the checkout, from setup.cfg."""
    lines = options(root)["options"]["package_dir"].strip().splitlines()
    return {package: root / folder for package, folder in (line.split(" = ") for line in lines)}


def sources(root: Path, pattern: str = "*") -> dict[str, Path]:
    """Path inside the import package -> file in the checkout, for every file that users should get."""
    return {
        "/".join([*package.split(".")[1:], *file.relative_to(folder).parts]): file
        for package, folder in folders(root).items()
        for file in sorted(folder.rglob(pattern))
        if file.is_file() and "__pycache__" not in file.parts
    }


def test_setup_cfg_lists_every_package(root):
    on_disk = {
        ".".join([package, *init.parent.relative_to(folder).parts])
        for package, folder in folders(root).items()
        for init in folder.rglob("__init__.py")
    }
    assert set(options(root)["options"]["packages"].split()) == on_disk


@pytest.mark.skipif("MMEMB_R1_WHEEL" not in os.environ, reason="an editable install is its sources")
def test_the_wheel_holds_every_file_and_no_other(root):
    wheel = Path(os.environ["MMEMB_R1_WHEEL"]) / "mmemb_r1"
    assert Path(mmemb_r1.__file__).parent == wheel, "the tests do not import the wheel"
    installed = {
        file.relative_to(wheel).as_posix(): file.read_bytes()
        for file in wheel.rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    expected = {name: file.read_bytes() for name, file in sources(root).items()}
    assert sorted(installed) == sorted(expected)
    assert installed == expected
    assert {"py.typed", "model_card/template.md", "modeling/modeling_mmemb_r1.py"} <= set(installed)


def test_data_files_are_found():
    assert importlib.resources.files("mmemb_r1.model_card").joinpath("template.md").is_file()
    assert importlib.resources.files("mmemb_r1").joinpath("py.typed").is_file()


def test_metadata():
    about = metadata("mmemb-r1")
    assert about["License-Expression"] == "Apache-2.0"
    assert about["Requires-Python"] == ">=3.10"
    assert about["Version"] == mmemb_r1.__version__
    assert {"atlas", "peft", "smolvlm", "dev"} <= set(about.get_all("Provides-Extra"))
    (command,) = entry_points(group="console_scripts", name="mmemb-r1")
    assert command.value == "mmemb_r1.cli:main"


def test_every_requirement_is_pinned(root):
    """A direct dependency without a pin would make the development set depend on the day."""
    pinned = {line.split("==")[0] for line in (root / "constraints.txt").read_text(encoding="utf-8").splitlines()}
    names = {Requirement(text).name for text in metadata("mmemb-r1").get_all("Requires-Dist")}
    assert names - {"mmemb-r1"} <= pinned


def test_modeling_is_remote_code(root):
    """transformers copies what a file imports by `from .sibling import name`; any other import dies on the Hub."""
    for file in sorted((root / "modeling").glob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            where = f"{file.name}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.ImportFrom):
                assert node.level <= 1, f"{where} imports from above modeling/"
                assert node.level == 0 or node.module, f"{where}: write `from .sibling import name`"
                assert node.level == 0 or "." not in node.module, f"{where} imports from a folder below modeling/"
                assert (node.module or "").split(".")[0] != "mmemb_r1", f"{where} imports the package"
            if isinstance(node, ast.Import):
                names = {alias.name.split(".")[0] for alias in node.names}
                assert "mmemb_r1" not in names, f"{where} imports the package"


def test_modeling_imports_little(root):
    """Whoever loads a checkpoint has these; transformers demands every import that stands outside `try`."""
    from transformers.dynamic_module_utils import get_imports

    always = {*sys.stdlib_module_names, "numpy", "torch", "transformers", "sentence_transformers", "PIL"}
    optional = {"av", "jinja2"}  # videos; what transformers renders templates with
    for file in sorted((root / "modeling").glob("*.py")):
        assert set(get_imports(file)) <= always, file.name
        nodes = list(ast.walk(ast.parse(file.read_text(encoding="utf-8"))))
        names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
        names += [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom) and node.level == 0]
        assert {name.split(".")[0] for name in names} <= always | optional, file.name


def test_nothing_reads_pickles(root):
    for name, file in sources(root, "*.py").items():
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import | ast.ImportFrom):
                imported = {alias.name for alias in node.names} | {getattr(node, "module", None)}
                assert not imported & {"pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}, name
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                raise AssertionError(f"{name}:{node.lineno} calls torch.load")
            if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
                assert ast.unparse(node.value) == "False", f"{name}:{node.value.lineno}"


def imported_parts(name: str, file: Path, base: tuple[str, ...] = ("mmemb_r1",)) -> set[str]:
    """Parts of the package `base`, `atlas` or `training` say, that the file imports; relative imports are resolved."""
    package = ["mmemb_r1", *name.split("/")[:-1]]
    modules = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules += [alias.name.split(".") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = package[: len(package) - node.level + 1] if node.level else []
            module = [*module, *(node.module.split(".") if node.module else [])]
            # `from mmemb_r1 import x` names a part, or one of the names of mmemb_r1/__init__.py
            modules += [[*module, alias.name] for alias in node.names] if module == list(base) else [module]
    depth = len(base)
    return {module[depth] for module in modules if tuple(module[:depth]) == base and len(module) > depth}


def test_dependencies_point_down(root):
    homes = {"MMEmbR1": "sentence_transformer", "MMEmbR1Config": "modeling", "MMEmbR1Model": "modeling"}
    for name, file in sources(root, "*.py").items():
        part = name.split("/")[0].removesuffix(".py")
        if part.startswith("_"):
            continue
        assert part in ALLOWED, f"{part} is new: say in ALLOWED what it may import"
        used = {homes.get(module, module) for module in imported_parts(name, file)}
        used = {module for module in used if not module.startswith("_") and module != part}
        assert used <= ALLOWED[part], f"{file.relative_to(root)} imports {sorted(used - ALLOWED[part])}"


def test_dependencies_within_evaluation_point_down(root):
    folder = root / "src/mmemb_r1/evaluation"
    on_disk = {path.stem for path in folder.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert set(ALLOWED_IN_EVALUATION) == on_disk - {"__init__"}
    for part, allowed in ALLOWED_IN_EVALUATION.items():
        for file in [folder / f"{part}.py", *sorted((folder / part).glob("*.py"))]:
            if file.exists():
                name = file.relative_to(root / "src/mmemb_r1").as_posix()
                used = imported_parts(name, file, ("mmemb_r1", "evaluation")) - {part}
                assert used <= allowed, f"{name} imports {sorted(used - allowed)}"


@pytest.mark.parametrize("allowed", [ALLOWED, ALLOWED_IN_EVALUATION], ids=["all", "evaluation"])
def test_the_allowed_dependencies_have_no_circle(allowed):
    left = {part: set(needs) for part, needs in allowed.items()}
    while left:
        free = {part for part, needs in left.items() if not needs & set(left)}
        assert free, f"a circle among {sorted(left)}"
        left = {part: needs for part, needs in left.items() if part not in free}


def test_importing_the_package_is_cheap():
    code = "import sys, mmemb_r1.training, mmemb_r1.evaluation; print(*{'torch', 'numpy'} & set(sys.modules))"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert child.stdout.strip() == ""


def test_public_names_are_lazy_and_complete():
    assert dir(mmemb_r1) == sorted(mmemb_r1.__all__)
    assert dir(mmemb_r1.evaluation) == sorted(mmemb_r1.evaluation.__all__)
    for name in mmemb_r1.evaluation.__all__:
        assert getattr(mmemb_r1.evaluation, name).__name__ == name
    assert mmemb_r1.MMEmbR1Config.model_type == "mmemb_r1"
    with pytest.raises(AttributeError, match="no attribute 'nothing'; it offers MMEmbR1"):
        mmemb_r1.nothing  # noqa: B018


def test_every_file_has_future_annotations_and_a_docstring(root):
    for file in sources(root, "*.py").values():
        tree = ast.parse(file.read_text(encoding="utf-8"))
        assert ast.get_docstring(tree), f"{file.relative_to(root)} has no docstring"
