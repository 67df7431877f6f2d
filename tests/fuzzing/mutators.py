"""Change bytes, texts and nested values a little, by a seed, as damage, typing errors and strangers do."""

from __future__ import annotations

import copy
import random
from typing import Any

SCALARS = (
    *(None, True, False, 0, -1, 1, 3, 2**31, 2**70, 10**400, 0.5, -1e308, float("nan"), float("inf"), "", " ", "\n"),
    *(
        "a",
        "never",
        "null",
        "\ud800",
        "x" * 10_000,
        "a.png",
        "\0",
        "../..",
        b"",
        b"bytes",
        [],
        {},
        [[]],
        [None],
        {"": 0},
    ),
    *({"text": None}, {"role": "user"}, {"bytes": None, "path": None}, object, 1j, range(3), {1, 2}),
)
WORDS = (  # for files of text
    *(
        "null",
        "~",
        "true",
        "[]",
        "{}",
        "[",
        "}",
        ":",
        "- ",
        "'",
        '"',
        "#",
        "\t",
        "\0",
        "\ufeff",
        "1e999",
        ".nan",
        "-1",
    ),
    *(
        "0",
        "99999999999999999999",
        "é",
        "🦙",
        "&a *a",
        "*a",
        "!!python/object/apply:os.getcwd []",
        "? a",
        "---\n",
        "\r",
    ),
    *("NaN", "Infinity", "\\", "\\ud800", "${HOME}", "{{ x }}", "../../etc/passwd", "<script>", "\n\n", "|", "-1"),
    *("a: 1\n", "\r"),
)


def draw_scalar(rng: random.Random) -> Any:
    """Draw a value of any kind, a new one: lists and dicts are changed later."""
    return copy.deepcopy(rng.choice(SCALARS))


def mutated_bytes(rng: random.Random, data: bytes) -> bytes:
    """Flip, overwrite, cut, drop, repeat, insert or swap some bytes."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        if len(changed) < 2:
            break
        # headers are where most of the meaning is
        start = rng.randrange(min(len(changed), rng.choice((16, 64, 256, len(changed)))))
        end = min(len(changed), start + rng.choice((1, 2, 4, 8, 64)))
        kind = rng.randrange(8)
        if kind == 0:
            changed[start] ^= 1 << rng.randrange(8)
        elif kind == 1:
            changed[start:end] = rng.randbytes(end - start)
        elif kind == 2:
            changed[start:end] = bytes([rng.choice((0, 255))]) * (end - start)
        elif kind == 3:
            del changed[rng.randrange(len(changed)) :]
        elif kind == 4:
            del changed[start:end]
        elif kind == 5:
            changed[start:start] = changed[start:end]
        elif kind == 6:
            changed[start:start] = rng.randbytes(rng.choice((1, 3, 17)))
        else:
            other = rng.randrange(len(changed))
            changed[start], changed[other] = changed[other], changed[start]
    return bytes(changed)


def mutated_text(rng: random.Random, text: str) -> bytes:
    """Change a file of lines: words, lines, its end, or its encoding."""
    for _ in range(rng.choice((1, 1, 2, 3))):
        lines = text.splitlines(keepends=True) or [""]
        place = rng.randrange(len(lines))
        line, at = lines[place], rng.randrange(len(lines[place]) + 1)
        kind = rng.randrange(7)
        if kind == 0:
            lines[place] = line[:at] + rng.choice(WORDS) + line[at:]
        elif kind == 1:
            lines[place] = line[:at] + rng.choice(WORDS) + line[at + rng.choice((1, 2, 5)) :]
        elif kind == 2 and ":" in line:
            key, _, _ = line.partition(":")
            lines[place] = f"{key}: {rng.choice(WORDS)}\n"
        elif kind == 3:
            lines[place] = line[:at] + line[at + 1 :]
        elif kind == 4:
            del lines[place]
        elif kind == 5:
            lines[place] = line + line
        else:
            lines[place] = line[:at]
            del lines[place + 1 :]
        text = "".join(lines)
    encoding = rng.choice(("utf-8",) * 12 + ("utf-16", "latin-1", "utf-8-sig"))
    return text.encode(encoding, errors="surrogatepass" if encoding != "latin-1" else "replace")


def mutated_value(rng: random.Random, value: Any) -> Any:
    """Change a nested value of dicts and lists in one or two places: something else there, gone, twice, wrapped."""
    changed = [_copied(value)]
    for _ in range(rng.choice((1, 1, 2))):
        holder, key = rng.choice(list(_places(changed)))
        kind = rng.randrange(6)
        if kind == 0:
            holder[key] = draw_scalar(rng)
        elif kind == 1:
            holder[key] = rng.choice(([holder[key]], (holder[key],), {"text": holder[key]}, [holder[key]] * 2))
        elif kind == 2 and isinstance(holder, dict):
            name = rng.choice((f"{key}s", str(key).upper(), "url", "image_url", "reasoning", "tool_calls", "type", 3))
            holder[name] = holder.pop(key)
        elif kind == 3 and isinstance(holder, dict):
            holder[rng.choice(("fps", "role", "text", "instruction", "id", None))] = draw_scalar(rng)
        elif kind == 4 and (holder is not changed):
            del holder[key]
        elif isinstance(holder, list) and holder is not changed:
            holder.insert(rng.randrange(len(holder) + 1), draw_scalar(rng))
        else:
            holder[key] = str(holder[key])[:200]
    return changed[0]


def _copied(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copied(part) for key, part in value.items()}
    return [_copied(part) for part in value] if isinstance(value, list) else value


def _places(holder: Any) -> list[tuple[Any, Any]]:
    """List all places of a nested value: the dict or list, and the key."""
    keys = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
    found = [(holder, key) for key in keys]
    for key in keys:
        if isinstance(holder[key], dict | list):
            found += _places(holder[key])
    return found
