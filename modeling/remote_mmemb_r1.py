"""Download a picture or video, for callers who allowed it: from public servers only, limited in size and time.

A link comes from whoever wrote the input, and the request leaves from the machine that embeds. It must not reach what
only that machine can reach: its own services, its network, the metadata of its cloud.
"""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import socket
import ssl
import threading
import time
from typing import Any
from urllib.parse import SplitResult, quote, urljoin, urlsplit

MAX_BYTES = 64 * 2**20
MAX_SECONDS = 30.0
MAX_REDIRECTS = 3
_GLOBAL_UNICAST, _NAT64 = ipaddress.IPv6Network("2000::/3"), ipaddress.IPv6Network("64:ff9b::/96")
_KEPT = "%/:?#[]@!$&'()*+,;=~"  # what a path or a query may hold as it is


def download(url: str, max_bytes: int = MAX_BYTES, max_seconds: float = MAX_SECONDS) -> bytes:
    """
    Download what a web address holds. Proxies and credentials of the environment are not used.

    Args:
        url: `http://` or `https://`.
        max_bytes: more than so many is an error.
        max_seconds: for everything, redirections included.

    Raises:
        ValueError: if the address is not allowed, does not answer in time, or holds too much.
    """
    deadline = time.monotonic() + max_seconds
    for _ in range(MAX_REDIRECTS + 1):
        parts = _checked(url)
        try:
            moved, data = _get(parts, max_bytes, deadline)
        except (OSError, http.client.HTTPException, UnicodeError) as error:  # UnicodeError: a name that can't be one
            late = time.monotonic() >= deadline
            reason = f"it took more than {max_seconds:g} s" if late else error or type(error).__name__
            raise ValueError(f"{url!r:.200} can't be downloaded ({reason}).") from error
        if moved is None:
            return data
        target = urljoin(url, moved)
        if parts.scheme == "https" and urlsplit(target).scheme == "http":
            raise ValueError(f"{url!r:.200} can't be downloaded: it leads from https to {target!r:.200}.")
        url = target
    raise ValueError(f"{url!r:.200} can't be downloaded: more than {MAX_REDIRECTS} redirections led there.")


def _checked(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise ValueError(f"{url!r:.200} is no web address ({error}).") from error
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        raise ValueError(f"{url!r:.200} can't be downloaded; allowed: http:// and https:// addresses.")
    if parts.username is not None or parts.password is not None:
        raise ValueError(f"a link to {parts.hostname!r} holds a user name or password; download it yourself.")
    return parts


def _get(parts: SplitResult, max_bytes: int, deadline: float) -> tuple[str | None, bytes]:
    """Request an address: where it leads (or `None`), and what it holds."""
    connection = _PublicConnection(parts, deadline)
    # timeouts of a socket begin anew with every byte: a server that trickles would be waited for without end
    watchdog = threading.Timer(seconds_left(deadline), connection.abort)
    watchdog.daemon = True
    watchdog.start()
    try:
        path = quote(parts.path or "/", safe=_KEPT) + (f"?{quote(parts.query, safe=_KEPT)}" if parts.query else "")
        connection.request("GET", path, headers={"Accept": "image/*, video/*", "Accept-Encoding": "identity"})
        response = connection.getresponse()
        if response.status in (301, 302, 303, 307, 308) and response.headers["Location"]:
            return response.headers["Location"], b""
        if response.status != 200:
            raise ConnectionError(f"the server answered {response.status} {response.reason}")
        data = response.read(max_bytes + 1) if (response.length or 0) <= max_bytes else None
        if data is None or len(data) > max_bytes:
            raise ConnectionError(f"it has more than {max_bytes} bytes")
        if response.length:  # `read(n)` says nothing of what is missing
            raise ConnectionError(f"it broke off with {response.length} bytes still to come")
        seconds_left(deadline)  # an answer of unknown length that was cut looks whole
        return None, data
    finally:
        watchdog.cancel()
        connection.close()


class _PublicConnection(http.client.HTTPConnection):
    """Connect to an address that was checked; the name is not looked up a second time."""

    def __init__(self, parts: SplitResult, deadline: float) -> None:
        port = parts.port or (443 if parts.scheme == "https" else 80)
        super().__init__(parts.hostname or "", port, timeout=seconds_left(deadline))
        self._tls, self._deadline = parts.scheme == "https", deadline
        self._opened: socket.socket | None = None

    def connect(self) -> None:
        family, address = _public_address(self.host, self.port)
        self._open(socket.socket(family, socket.SOCK_STREAM))
        self.sock.settimeout(seconds_left(self._deadline))
        self.sock.connect(address)
        if self._tls:
            context = ssl.create_default_context()
            secured = context.wrap_socket(self.sock, server_hostname=self.host, do_handshake_on_connect=False)
            self._open(secured)  # before the handshake, which may be waited for as well
            secured.do_handshake()

    def _open(self, opened: socket.socket) -> None:
        self.sock = self._opened = opened
        seconds_left(self._deadline)  # where `abort` came too early to find a socket

    def abort(self) -> None:
        """End the connection from another thread, whatever it waits for: the deadline has passed."""
        if self._opened is not None:
            with contextlib.suppress(OSError):  # it has ended already
                self._opened.shutdown(socket.SHUT_RDWR)


def seconds_left(deadline: float) -> float:
    """Count the seconds until a time of `time.monotonic`; a `TimeoutError` if it has passed."""
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _public_address(host: str, port: int) -> tuple[int, Any]:
    """Look up a host's first address (family, socket address), if all of its addresses are public."""
    found = [(entry[0], entry[4]) for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    for _, address in found:
        if not is_public(str(address[0])):
            raise ConnectionError(f"{host!r} is at {address[0]}, which is no public address")
    return found[0]


def is_public(address: str) -> bool:
    """
    Tell whether an IP address belongs to the public internet.

    >>> [is_public(a) for a in ("9.9.9.9", "127.0.0.1", "10.0.0.1", "169.254.169.254", "::1", "::ffff:10.0.0.1")]
    [True, False, False, False, False, False]
    """
    ip = ipaddress.ip_address(address.split("%")[0])  # without the zone of a link-local address
    if isinstance(ip, ipaddress.IPv6Address):
        # an IPv4 address inside an IPv6 one is where the packets go
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo and ip.teredo[1])
        if ip in _NAT64:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner is not None and not is_public(str(inner)):
            return False
        if ip.ipv4_mapped is not None or ip in _NAT64:
            return True
        if ip not in _GLOBAL_UNICAST:  # nothing else is routed; what is reserved there, Python's tables know
            return False
    return ip.is_global and not ip.is_multicast
