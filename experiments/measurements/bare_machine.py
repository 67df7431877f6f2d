"""
Do what a stranger does: install the wheel into an empty environment, index pictures, search them, change some.

    make dist
    python -m experiments.measurements.bare_machine --output runs/bare-machine

It needs the packages of the extra atlas here, where it draws 1,000 OpenMoji pictures; with --stamps, the unpacked
Debian package tuxpaint-stamps-default, it takes 300 photographs, too. Everything else runs in the new environment,
which has nothing but torch, torchvision and the wheel with its extras search and demo. The model is tiny and untrained
unless --model names one: what is shown is the tool, not the quality of what it finds. Each command is printed with
what it said, and what it did is checked: after changes, only new and changed pictures are embedded. results.json has
counts and times.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from PIL import Image

from experiments.measurements.bare_machine_pictures import copy_photographs, draw_emoji
from mmemb_r1.runs import write_json

ROOT = Path(__file__).resolve().parents[2]
TINY = """
from mmemb_r1 import MMEmbR1
from mmemb_r1.tiny import build_tiny_vlm
MMEmbR1.from_vlm(*build_tiny_vlm("qwen3_vl"), max_reasoning_tokens=8).save_pretrained("model")
"""


class Machine:
    """The new environment: runs its commands, in one folder, and keeps how long they took."""

    def __init__(self, environment: Path, folder: Path) -> None:
        self.binaries = environment / "bin"
        self.folder = folder
        self.seconds: dict[str, float] = {}
        # Nothing of the checkout may be found, and nothing may come from the Hub.
        self.variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        self.variables |= {"HF_HUB_OFFLINE": "1", "PATH": f"{self.binaries}{os.pathsep}{os.environ['PATH']}"}

    def run(self, *command: str, step: str | None = None) -> str:
        """Print a command, run it, print and return its output. CalledProcessError if it fails."""
        print(f"\n$ {shlex.join(command)}", flush=True)
        before = time.monotonic()
        program = str(self.binaries / command[0])
        child = subprocess.run(
            [program, *command[1:]], cwd=self.folder, env=self.variables, stdout=subprocess.PIPE, text=True, check=True
        )
        print(child.stdout.strip(), flush=True)
        if step is not None:
            self.seconds[step] = round(time.monotonic() - before, 1)
        return child.stdout

    def index(self, source: str, model: str, step: str) -> dict[str, Any]:
        """Index a folder, as index SOURCE-index, and return the counts."""
        command = ["mmemb-r1", "index", source, "--model", model, "--index", f"{source}-index", "--json"]
        return json.loads(self.run(*command, step=step))


def install(machine: Machine, python: str, wheel: Path) -> None:
    """Make the environment, as the README tells to."""
    environment = machine.binaries.parent
    subprocess.run([python, "-m", "venv", "--clear", str(environment)], check=True)
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    machine.run("pip", "install", "--quiet", f"torch=={pins['torch']}", step="install torch")
    machine.run("pip", "install", "--quiet", "--no-deps", f"torchvision=={pins['torchvision']}")
    machine.run("pip", "install", "--quiet", f"mmemb-r1[search,demo] @ {wheel.absolute().as_uri()}", step="install")
    machine.run("python", str(ROOT / "scripts" / "torchvision_shim.py"))


def change(folder: Path) -> dict[str, int]:
    """Add 3 pictures, change 2, rename 1 and delete 4. Returns the counts that an index should tell of it."""
    files = sorted(folder.glob("*.png"))
    for number, colour in enumerate(("red", "green", "blue")):
        Image.new("RGB", (128, 128), colour).save(folder / f"new-{number}.png")
    for file in files[:2]:
        with Image.open(file) as picture:
            turned = picture.rotate(180)
        turned.save(file)
    files[2].rename(folder / "renamed.png")
    for file in files[3:7]:
        file.unlink()
    return {"added": 3 + 1, "changed": 2, "deleted": 4 + 1, "unchanged": len(files) - 7, "embedded": 3 + 2}


def check(told: dict[str, Any], expected: dict[str, int]) -> None:
    """Compare counts. ValueError where they differ, or something could not be read."""
    found = {name: told[name] for name in expected}
    if found != expected or told["unreadable"]:
        raise ValueError(f"the index tells {found}, unreadable: {told['unreadable']}; expected: {expected}")


def show(machine: Machine, folder: str, number: int, model: str, *query: str) -> dict[str, Any]:
    """Index a folder of `number` pictures, search it by text and picture, and index again: nothing is embedded."""
    nothing = {"added": 0, "changed": 0, "deleted": 0, "embedded": 0, "unchanged": number}
    told = {"first": machine.index(folder, model, step=f"index {folder}")}
    check(told["first"], {"added": number, "changed": 0, "deleted": 0, "unchanged": 0})
    index = f"{folder}-index"
    machine.run("mmemb-r1", "search", *query, "--index", index, "-k", "5", step=f"search {folder} by text")
    picture = sorted((machine.folder / folder).glob("*.png"))[7]
    by_picture = ("mmemb-r1", "search", "--image", f"{folder}/{picture.name}", "--index", index, "-k", "8")
    found = machine.run(*by_picture, "--json", "--html", f"{folder}.html", step=f"search {folder} by picture")
    best = json.loads(found)["hits"][0]
    if Path(best["path"]).name != picture.name or best["score"] < 0.999:
        raise ValueError(f"a search by {picture.name} found {best['path']} first, with score {best['score']}.")
    told["again"] = machine.index(folder, model, step=f"index {folder} again")
    check(told["again"], nothing)
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/bare-machine"), help="made anew")
    parser.add_argument("--wheel", type=Path, help="default: the one in dist/")
    parser.add_argument("--python", default=sys.executable, help="the interpreter of the new environment")
    parser.add_argument("--environment", type=Path, help="use this one, into which the wheel was installed before")
    parser.add_argument("--model", type=Path, help="default: a tiny untrained one")
    parser.add_argument("--stamps", type=Path, help="the unpacked package tuxpaint-stamps-default")
    parser.add_argument("--emoji", type=int, default=1000, help="how many pictures; default: 1000")
    parser.add_argument("--photographs", type=int, default=300, help="how many of --stamps; default: 300")
    args = parser.parse_args()

    shutil.rmtree(args.output, ignore_errors=True)
    args.output.mkdir(parents=True)
    folder = args.output.absolute()
    draw_emoji(folder / "emoji", args.emoji)
    if args.stamps is not None:
        copy_photographs(args.stamps, folder / "photographs", args.photographs)

    machine = Machine((args.environment or folder / "environment").absolute(), folder)
    if args.environment is None:
        wheels = [args.wheel] if args.wheel else sorted((ROOT / "dist").glob("*.whl"))
        if len(wheels) != 1:
            raise ValueError(f"there are {len(wheels)} wheels in dist/. Run `make dist`, or name one with --wheel.")
        install(machine, args.python, wheels[0])
    machine.run("mmemb-r1", "--version")
    model = str(args.model.absolute()) if args.model else "model"
    if args.model is None:
        machine.run("python", "-c", TINY)

    query = ("a flag with a dragon", "--filter", "metadata.group = 'flag'")
    results: dict[str, Any] = {"emoji": show(machine, "emoji", args.emoji, model, *query)}
    if args.stamps is not None:
        results["photographs"] = show(machine, "photographs", args.photographs, model, "a bird on a branch")
        expected = change(folder / "photographs")
        results["photographs"]["after changes"] = machine.index("photographs", model, step="index after changes")
        check(results["photographs"]["after changes"], expected)
    write_json(folder / "results.json", {"counts": results, "seconds": machine.seconds})
    print(f"\nAll counts are as expected: {folder / 'results.json'}")


if __name__ == "__main__":
    main()
