"""Let a CUDA build of torchvision be imported beside a CPU build of torch, in the environment of this interpreter.

Development only, run by `make setup`. Where torch is a `+cpu` build and `import torchvision` fails because torch lacks
the operators that torchvision's compiled library would have brought, two files are put into site-packages: a hook that
declares those operators before torchvision's Python code runs, and the .pth file that loads the hook. Everything else
is left as it is. torchvision's own file decoding stays unusable; nothing of this project uses it.
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from importlib.metadata import version
from pathlib import Path

HOOK = """\
import importlib.abc
import sys


class _DeclareOperators(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == "torchvision":
            sys.meta_path.remove(self)
            import torch

            # the declarations live as long as this reference
            _DeclareOperators.library = torch.library.Library("torchvision", "FRAGMENT")
            for operator in ("nms", "qnms"):
                self.library.define(operator + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        return None


sys.meta_path.insert(0, _DeclareOperators())
"""


def torchvision_error() -> str | None:
    """What `import torchvision` says in a fresh process, or None when it works."""
    child = subprocess.run([sys.executable, "-c", "import torchvision"], capture_output=True, text=True)
    return child.stderr.strip() if child.returncode else None


def main() -> int:
    error = torchvision_error()
    if error is None:
        return 0
    if "operator torchvision::nms does not exist" not in error or not version("torch").endswith("+cpu"):
        versions = f"torchvision {version('torchvision')} can't be imported beside torch {version('torch')}"
        print(f"{versions}:\n{error}", file=sys.stderr)
        return 1
    site_packages = Path(sysconfig.get_path("purelib"))
    (site_packages / "_torchvision_shim.py").write_text(HOOK, encoding="utf-8")
    (site_packages / "_torchvision_shim.pth").write_text("import _torchvision_shim\n", encoding="utf-8")
    error = torchvision_error()
    if error is not None:
        print(f"torchvision can't be imported, even with its operators declared:\n{error}", file=sys.stderr)
        return 1
    print("torch is a CPU build: declared torchvision's operators for it")
    return 0


if __name__ == "__main__":
    sys.exit(main())
