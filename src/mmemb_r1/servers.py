"""Talk to servers: which addresses there are, what pictures are sent as, and when to ask again."""

from __future__ import annotations

import base64
import email.utils
import io
import ipaddress
import re
import time
from collections.abc import Mapping
from datetime import UTC
from typing import Any
from urllib.parse import urlsplit

from PIL import Image

AWAY = (502, 503, 504)  # statuses of a proxy whose server is not there, or of a server that starts


def is_address(value: Any) -> bool:
    """Tell whether this is the address of a server, which begins with http:// or https:// and holds no secret."""
    if not isinstance(value, str):
        return False
    try:
        url = urlsplit(value)
        plain = url.username is None and not url.query and not url.fragment and (url.port or 1) > 0
    except ValueError:  # no port number, half an IPv6 address
        return False
    return url.scheme in ("http", "https") and bool(url.hostname) and plain


def without_secrets(address: Any) -> str:
    """Write an address without a user, a password and a query."""
    return re.sub(r"(?<=//)[^/]*@", "***@", str(address).partition("?")[0])


def is_loopback(address: str) -> bool:
    """Tell whether a server is on this machine."""
    host = urlsplit(address).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def is_variable(value: Any) -> bool:
    """Tell whether this is the name of an environment variable, and not what it holds."""
    return isinstance(value, str) and re.fullmatch(r"[A-Z_][A-Z0-9_]*", value) is not None


def is_usable_key(key: str) -> bool:
    """Tell whether a header can hold this key."""
    return bool(key) and key.isascii() and key.isprintable()


def encoded_url(image: Image.Image, image_format: str = "png") -> str:
    """Encode a picture as a data URL; PNG keeps every pixel."""
    file = io.BytesIO()
    image.save(file, format=image_format, quality=95)
    return data_url(file.getvalue(), image_format)


def data_url(data: bytes, image_format: str) -> str:
    """Write the bytes of a picture's file as a data URL."""
    return f"data:image/{image_format.lower()};base64,{base64.b64encode(data).decode()}"


def retry_after(headers: Mapping[str, str]) -> float | None:
    """
    Read how many seconds to wait before the next try: from `retry-after-ms` or `retry-after` (seconds or a date).

    >>> retry_after({"retry-after": "150"}), retry_after({"retry-after-ms": "2500"}), retry_after({})
    (150.0, 2.5, None)
    """
    for name, unit in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        if re.fullmatch(r"\d+(\.\d+)?", headers.get(name, "")):
            return float(headers[name]) / unit
    try:
        date = email.utils.parsedate_to_datetime(headers["retry-after"])
    except (KeyError, ValueError):
        return None
    return (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp() - time.time()
