"""Say what is indexed: one picture, video, page or text, and how it is opened."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, NamedTuple

from PIL import Image

from mmemb_r1.modeling.media_mmemb_r1 import MediaOptions, open_image
from mmemb_r1.modeling.videos_mmemb_r1 import open_video

if TYPE_CHECKING:
    import pyarrow

THUMBNAIL_SIDE = 256  # pixels
_QUALITY = 85  # of JPEG


class Opened(NamedTuple):
    """Hold an item's input, as `encode` takes it, and its text."""

    value: Any
    text: str


@dataclass(frozen=True)
class Item:
    """
    One picture, video, page or text of a source.

    Attributes:
        id: its name, unique in the source.
        kind: `"image"`, `"video"`, `"page"` or `"text"`.
        content: digest of what the model gets to see: equal ones have equal vectors.
        open: reads it; called only if it has to be embedded.
        path: of its file, as the source names it.
        page: of a PDF, counted from 1.
        metadata: values of the columns of a table.
    """

    id: str
    kind: str
    content: bytes
    open: Callable[[], Opened]
    path: str | None = None
    page: int | None = None
    metadata: dict[str, Any] = field(default_factory=dict)

    @property
    def facts(self) -> bytes:
        """Digest what is kept of it besides its content."""
        facts = [self.kind, self.path, self.page, sorted(self.metadata.items())]
        return blake2b(repr(facts).encode("utf-8", "backslashreplace"), digest_size=16).digest()


class Unreadable(NamedTuple):
    """Name what could not be indexed, and say why."""

    id: str
    reason: str


@dataclass
class Source:
    """
    What is indexed.

    Attributes:
        name: what it is: the absolute path of a folder or file, or the id of a data set.
        total: how many files or rows there are.
        items: reads them, in a fixed order.
        metadata: type of the metadata, an Arrow struct. `None`: there are none.
        passed_over: suffix -> how many files of it were left out, because nothing reads them.
    """

    name: str
    total: int
    items: Callable[[MediaOptions], Iterator[Item | Unreadable | int]]
    metadata: pyarrow.StructType | None = None
    passed_over: dict[str, int] = field(default_factory=dict)


def thumbnail(value: Any, media: MediaOptions) -> bytes | None:
    """
    Make a small JPEG of the first picture of an input, or of the middle frame of its first video; `None` if it has
    none.

    Args:
        value: a dict with any of `text`, `image` and `video`.
        media: limits.

    Raises:
        MediumError: if the picture or video can't be read.
    """
    image, video = (_first(value.get(part)) for part in ("image", "video"))
    if image is not None:
        picture = open_image(image, media)
    elif video is not None:
        frames = open_video(video, media)[0]  # (T, H, W, 3)
        picture = Image.fromarray(frames[len(frames) // 2])
    else:
        return None
    picture.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    data = io.BytesIO()
    picture.save(data, "JPEG", quality=_QUALITY)
    return data.getvalue()


def _first(media: Any) -> Any:
    return media[0] if isinstance(media, list) and media else media or None
