"""Web addresses are off; where they are allowed, nothing private is reached and nothing is waited for without end."""

from __future__ import annotations

import io
import socket
import ssl
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import urlsplit

import numpy as np
import pytest
import trustme
from PIL import Image

from mmemb_r1.modeling import remote_mmemb_r1 as remote
from mmemb_r1.modeling.inputs_mmemb_r1 import InputError, to_conversations
from mmemb_r1.modeling.media_mmemb_r1 import MediaOptions

ALLOWED = MediaOptions(allow_remote=True)


class Site(BaseHTTPRequestHandler):
    """A small web site; `/picture.png` is the only honest page of it."""

    protocol_version = "HTTP/1.1"
    pages: dict[str, tuple[int, dict[str, str], bytes]] = {}
    asked: list[str] = []

    def do_GET(self) -> None:
        self.asked.append(self.path)
        if self.path == "/slow":
            self.send_response(200)
            self.end_headers()
            try:
                for _ in range(200):
                    self.wfile.write(b"x")
                    time.sleep(0.05)
            except OSError:
                self.close_connection = True
            return
        status, headers, body = self.pages.get(self.path, (404, {"Content-Length": "0"}, b""))
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
        self.close_connection = True

    def log_message(self, *args: object) -> None:
        """Silence."""


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture(scope="module")
def site(picture: Image.Image) -> Iterator[str]:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    data = buffer.getvalue()
    length = {"Content-Length": str(len(data))}
    with ThreadingHTTPServer(("127.0.0.1", 0), Site) as server:
        address = f"http://127.0.0.1:{server.server_port}"
        Site.pages = {
            "/picture.png": (200, length, data),
            "/picture.png?size=1": (200, length, data),
            "/moved": (302, {"Location": "/picture.png", "Content-Length": "0"}, b""),
            "/circle": (301, {"Location": "/circle", "Content-Length": "0"}, b""),
            "/inside": (302, {"Location": "http://10.0.0.1/", "Content-Length": "0"}, b""),
            "/file": (302, {"Location": "file:///etc/passwd", "Content-Length": "0"}, b""),
            "/gone": (404, {"Content-Length": "0"}, b""),
            "/cut": (200, {"Content-Length": "100000"}, data),
            "/large": (200, {"Content-Length": "5000"}, b"x" * 5000),
            "/endless": (200, {}, b"x" * 5000),
            "/page": (200, {"Content-Length": "9"}, b"<html></>"),
        }
        Thread(target=server.serve_forever, daemon=True).start()
        yield address
        server.shutdown()


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def secure_site(site: str, authority: trustme.CA) -> Iterator[str]:
    """The same site under https, as pictures.test; with a certificate that nobody trusts by default."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Site) as server:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("pictures.test").configure_cert(context)
        server.socket = context.wrap_socket(server.socket, server_side=True)
        server.handle_error = lambda *args: None  # of handshakes that are broken off
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"https://pictures.test:{server.server_port}"
        server.shutdown()


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> None:
    """All names are those of this machine."""
    monkeypatch.setattr(
        remote.socket, "getaddrinfo", lambda host, port, **kwargs: [(2, 1, 6, "", ("127.0.0.1", port))]
    )


@pytest.fixture
def trusted(authority: trustme.CA, monkeypatch: pytest.MonkeyPatch) -> None:
    def default() -> ssl.SSLContext:
        authority.configure_trust(context := create())
        return context

    create = ssl.create_default_context
    monkeypatch.setattr(remote.ssl, "create_default_context", default)


@pytest.fixture
def public(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if this machine's own address were a public one."""
    original = remote.is_public
    monkeypatch.setattr(remote, "is_public", lambda address: address == "127.0.0.1" or original(address))


def test_off_unless_asked_for(site):
    Site.asked.clear()
    for value in ({"image": f"{site}/picture.png"}, {"video": f"{site}/film.mp4"}):
        with pytest.raises(
            InputError, match="is a web address; nothing is downloaded unless .*allow_remote_media=True"
        ):
            to_conversations([value])
    with pytest.raises(InputError, match="nothing is downloaded unless allow_remote_media=True"):
        to_conversations([f"{site}/picture.png"])
    assert not Site.asked


def test_a_config_cannot_allow_it(qwen):
    qwen.model.config.allow_remote = True  # what somebody else's checkpoint might say
    try:
        assert not MediaOptions.of(qwen.model.config).allow_remote
    finally:
        del qwen.model.config.allow_remote


def test_pictures_of_the_web(site, public, picture):
    message = {"role": "user", "content": [{"type": "image", "image": f"{site}/picture.png"}]}
    addresses = (f"{site}/picture.png", f"{site}/picture.png?size=1", f"{site}/moved")
    for value in (addresses[0], [message], *({"image": address} for address in addresses)):
        ((part,),) = [chat[-1]["content"] for chat in to_conversations([value], media=ALLOWED)]
        assert np.array_equal(np.asarray(part["image"]), np.asarray(picture))


def test_other_letters_in_a_path(site, public):
    Site.asked.clear()
    with pytest.raises(ValueError, match="the server answered 404"):
        remote.download(f"{site}/gone/Z\u00fcrich a.png?q=\u00e9&a=%20b")
    assert Site.asked == ["/gone/Z%C3%BCrich%20a.png?q=%C3%A9&a=%20b"]


def test_text_that_names_a_page_stays_text(site):
    ((message,),) = to_conversations([site], media=ALLOWED)
    assert message["content"] == [{"type": "text", "text": site}]


def test_encode_takes_the_option(qwen, site, public, picture):
    from mmemb_r1 import MMEmbR1

    model = MMEmbR1.from_model(qwen.model, qwen.processor)
    expected = model.encode([{"image": picture}])
    np.testing.assert_allclose(
        model.encode([{"image": f"{site}/moved"}], allow_remote_media=True), expected, atol=1e-5
    )
    for encode in (model.encode, model.encode_query, model.encode_document):
        with pytest.raises(InputError, match="allow_remote_media=True"):
            encode([{"image": f"{site}/moved"}])


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/circle", "more than 3 redirections"),
        ("/inside", "'10.0.0.1' is at 10.0.0.1, which is no public address"),
        ("/file", "'file:///etc/passwd' can't be downloaded; allowed: http:// and https://"),
        ("/gone", "the server answered 404"),
        ("/cut", "it broke off with [0-9]+ bytes still to come"),
        ("/page", "it is in none of the formats PNG, JPEG"),
    ],
)
def test_what_goes_wrong_is_named(site, public, path, message):
    with pytest.raises(InputError, match=f"Input 0 can't be embedded: .*{message}"):
        to_conversations([{"image": site + path}], media=ALLOWED)


@pytest.mark.parametrize("path", ["/large", "/endless"])
def test_size_is_limited(site, public, path):
    assert len(remote.download(site + path, max_bytes=5000)) == 5000
    with pytest.raises(ValueError, match="it has more than 4999 bytes"):
        remote.download(site + path, max_bytes=4999)


def test_time_is_limited_in_all(site, public):
    """The server sends a byte every 0.05 s for 10 s: no single wait is long."""
    start = time.monotonic()
    with pytest.raises(ValueError, match="it took more than 0.5 s"):
        remote.download(f"{site}/slow", max_seconds=0.5)
    assert time.monotonic() - start < 5


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_slow_look_up_does_not_switch_the_limit_off(site, public, secure_site, names, trusted, monkeypatch, scheme):
    """What comes after it, a handshake or a body in drops, is limited all the same."""
    found = remote.socket.getaddrinfo

    for delay in (0.2, 0.6):
        monkeypatch.setattr(
            remote.socket, "getaddrinfo", lambda *args, delay=delay, **kw: time.sleep(delay) or found(*args, **kw)
        )
        start = time.monotonic()
        with pytest.raises(ValueError, match="it took more than 0.5 s"):
            remote.download(f"{site if scheme == 'http' else secure_site}/slow", max_seconds=0.5)
        assert time.monotonic() - start < 5


def test_a_handshake_that_never_ends_is_limited(public):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        start = time.monotonic()
        with pytest.raises(ValueError, match="it took more than 0.5 s"):
            remote.download(f"https://127.0.0.1:{silent.getsockname()[1]}/a.png", max_seconds=0.5)
        assert time.monotonic() - start < 5


def test_a_certificate_that_nobody_vouches_for_is_refused(public, secure_site, names):
    with pytest.raises(ValueError, match="can't be downloaded .*certificate verify failed"):
        remote.download(f"{secure_site}/picture.png")


def test_a_certificate_is_of_its_name_only(public, secure_site, names, trusted):
    assert remote.download(f"{secure_site}/picture.png")
    with pytest.raises(ValueError, match="can't be downloaded .*certificate verify failed: Hostname mismatch"):
        remote.download(f"{secure_site.replace('pictures', 'other')}/picture.png")


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.8.8.8", "0.0.0.0", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1",
        "224.0.0.1", "255.255.255.255", "::1", "::", "fe80::1%eth0", "fc00::1", "ff02::1", "::ffff:127.0.0.1",
        "::ffff:169.254.169.254", "64:ff9b::7f00:1", "2002:7f00:1::", "fec0::2", "::7f00:1", "64:ff9b:1::7f00:1",
        "::ffff:0:7f00:1", "2001:db8::1",
    ],
)  # fmt: skip
def test_private_addresses(address):
    assert not remote.is_public(address)


@pytest.mark.parametrize("address", ["9.9.9.9", "2620:fe::fe", "::ffff:9.9.9.9", "64:ff9b::909:909"])
def test_public_addresses(address):
    assert remote.is_public(address)


def test_private_hosts_are_not_connected_to(site):
    Site.asked.clear()
    port = urlsplit(site).port
    for host in ("127.0.0.1", "localhost", "2130706433", "0x7f.1"):  # numbers that the system reads as 127.0.0.1
        with pytest.raises(ValueError, match="no public address|can't be downloaded"):
            remote.download(f"http://{host}:{port}/picture.png")
    assert not Site.asked


def test_a_host_with_one_private_address_is_refused(monkeypatch):
    found = [(2, 1, 6, "", ("9.9.9.9", 80)), (2, 1, 6, "", ("10.0.0.1", 80))]
    monkeypatch.setattr(remote.socket, "getaddrinfo", lambda *args, **kwargs: found)
    with pytest.raises(ValueError, match="'example.org' is at 10.0.0.1, which is no public address"):
        remote.download("http://example.org/a.png")


def test_names_are_looked_up_once(site, public, monkeypatch):
    """A name that changes its address between check and connection would be a way in."""
    asked: list[str] = []

    def look_up(host: str, port: int, **kwargs: object) -> object:
        asked.append(host)
        return [(2, 1, 6, "", ("127.0.0.1", port))]

    monkeypatch.setattr(remote.socket, "getaddrinfo", look_up)
    assert remote.download(f"http://pictures.test:{urlsplit(site).port}/picture.png")
    assert asked == ["pictures.test"]


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("ftp://example.org/a.png", "allowed: http:// and https:// addresses"),
        ("http:///a.png", "allowed: http:// and https:// addresses"),
        ("http://example.org:0/", "allowed: http:// and https:// addresses"),
        ("http://[::1/", "is no web address"),
        ("http://a..b/a.png", "can't be downloaded"),
        ("http://user:secret@example.org/a.png", "holds a user name or password; download it yourself"),
    ],
)
def test_addresses_that_are_none(url, message):
    with pytest.raises(ValueError, match=message) as error:
        remote.download(url)
    assert "secret" not in str(error.value)


def test_no_way_from_https_to_http(monkeypatch):
    monkeypatch.setattr(remote, "_get", lambda *args: ("http://example.org/a.png", b""))
    with pytest.raises(ValueError, match="it leads from https to 'http://example.org/a.png'"):
        remote.download("https://example.org/a.png")
