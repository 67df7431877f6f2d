"""Name pictures: look up emojis by their CLDR names, and put names into sentences."""

from __future__ import annotations

from functools import cache

from mmemb_r1.atlas.pictures import svg_folder


@cache
def emoji_hexcodes() -> dict[str, str]:
    """Map the English CLDR name of each emoji to OpenMoji's file name, where OpenMoji has drawn it."""
    import emoji

    folder, found = svg_folder(), {}
    for characters, data in emoji.EMOJI_DATA.items():
        if data["status"] != emoji.STATUS["fully_qualified"]:
            continue
        codes = [f"{ord(character):X}" for character in characters]
        plain = [code for code in codes if code != "FE0F"]  # asks for a coloured picture; most file names lack it
        hexcode = next((name for name in map("-".join, (codes, plain)) if (folder / f"{name}.svg").exists()), None)
        if hexcode is not None:
            found[words_of(data["en"])] = hexcode
    return found


def words_of(label: str) -> str:
    """Read the words of an emoji's label.

    >>> words_of(":dog_face:")
    'dog face'
    """
    return label.strip(":").replace("_", " ")


def with_article(name: str) -> str:
    """Put the indefinite article before a noun, unless it is a plural.

    >>> with_article("dog face"), with_article("onion"), with_article("grapes"), with_article("compass")
    ('a dog face', 'an onion', 'grapes', 'a compass')
    >>> with_article("up arrow"), with_article("unicorn"), with_article("END arrow")
    ('an up arrow', 'a unicorn', 'an END arrow')
    """
    return name if name.endswith("s") and not name.endswith(("ss", "us")) else singular(name)


def singular(name: str) -> str:
    """Put the indefinite article before a noun.

    >>> singular("man lifting weights")
    'a man lifting weights'
    """
    return f"an {name}" if name[0] in "aeioAEIO" or name.startswith("up") else f"a {name}"
