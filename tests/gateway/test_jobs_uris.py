"""Inputs that are named: what is refused before anything is looked up, and what is read."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from inferbus_gateway.control.jobs.origins import Origins, Stored, Web
from inferbus_gateway.control.jobs.remote import Remote
from inferbus_gateway.errors import UriRefusedError, UriUnreadableError
from tests.support.https_origin import HttpsOrigin

ORIGINS = Origins(("https://data.example.com", "https://other.example.com:8443", "s3://rows"), ())


@pytest.mark.parametrize(
    ("uri", "place"),
    [
        ("https://data.example.com/a.jsonl?x=1", Web("data.example.com", 443, "/a.jsonl?x=1")),
        ("https://DATA.example.com:443", Web("data.example.com", 443, "/")),
        ("https://other.example.com:8443/a", Web("other.example.com", 8443, "/a")),
        ("s3://rows/a/b%20c.parquet", Stored("rows", "a/b c.parquet")),
    ],
)
def test_what_is_listed_is_read(uri: str, place: Web | Stored) -> None:
    assert ORIGINS.place(uri) == place


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "data.example.com/a",
        "http://data.example.com/a",
        "file:///etc/passwd",
        "gopher://data.example.com/",
        "ftp://data.example.com/a",
        "store://uploads/a",
        "https:data.example.com/a",
        "https:///a",
        "https://data.example.com@evil.example.com/",
        "https://me:pw@data.example.com/",
        "https://data.example.com:8443/",
        "https://data.example.com:0/",
        "https://data.example.com:99999/",
        "https://data.example.com:x/",
        "https://data.example.com.evil.example.com/",
        "https://evil.example.com/?https://data.example.com",
        "https://evil.example.com\\@data.example.com/",
        "https://data.example.com\\.evil.example.com/",
        "https://data.example.com /a",
        "https://data.example.com\r\nx: y/",
        "https://data.example.com/a#b",
        "https://data.example.com./",
        "https://data。example.com/",
        "https://127.0.0.1/",
        "https://2130706433/",
        "https://0x7f000001/",
        "https://0177.0.0.1/",
        "https://[::1]/",
        "https://[::ffff:127.0.0.1]/",
        "https://[::1%25eth0]/",
        "https://169.254.169.254/latest/meta-data/",
        "https://localhost/",
        "https://data.example.com/" + "a" * 2048,
        "s3://other/a",
        "s3://rows@other/a",
        "s3://ROWS/a",
        "s3://rows/../other/a",
        "s3://rows/%2e%2e/other/a",
        "s3://rows/a%00b",
        "s3://rows/a?versionId=1",
    ],
)
def test_what_is_not_listed_is_refused_by_its_text(uri: str) -> None:
    with pytest.raises(UriRefusedError):
        ORIGINS.place(uri)


def test_an_empty_list_names_the_setting() -> None:
    with pytest.raises(UriRefusedError, match="INFERBUS_JOB_URI_SOURCES"):
        Origins((), ()).place("https://data.example.com/a")


@pytest.mark.parametrize(
    ("sources", "networks"),
    [
        (("data.example.com",), ()),
        (("http://data.example.com",), ()),
        (("https://data.example.com/a",), ()),
        (("https://*.example.com",), ()),
        (("s3://rows/a",), ()),
        ((), ("10.0.0.1/8",)),
        ((), ("all",)),
    ],
)
def test_a_list_that_means_nothing_stops_the_start(
    sources: tuple[str, ...], networks: tuple[str, ...]
) -> None:
    with pytest.raises(ValueError, match=r"."):
        Origins(sources, networks)


@pytest.mark.parametrize(
    "found",
    [
        [],
        ["127.0.0.1"],
        ["10.0.0.1"],
        ["172.16.0.1"],
        ["192.168.1.1"],
        ["169.254.169.254"],
        ["100.64.0.1"],
        ["0.0.0.0"],
        ["224.0.0.1"],
        ["255.255.255.255"],
        ["::1"],
        ["::"],
        ["fe80::1%eth0"],
        ["fd00::1"],
        ["::ffff:127.0.0.1"],
        ["::ffff:169.254.169.254"],
        ["64:ff9b::a9fe:a9fe"],
        ["2002:7f00:1::"],
        ["2001:0:7f00:1::"],
        ["fec0::1"],
        ["::127.0.0.1"],
        ["::ffff:0:127.0.0.1"],
        ["93.184.215.14", "127.0.0.1"],
    ],
)
def test_addresses_that_are_not_public_are_refused(found: list[str]) -> None:
    with pytest.raises(UriRefusedError):
        ORIGINS.addresses(found)


def test_public_addresses_and_allowed_networks() -> None:
    both = ["2606:2800:21f:cb07:6820:80da:af6b:8b2c", "93.184.215.14"]
    assert ORIGINS.addresses(both) == both
    inside = Origins((), ("10.1.0.0/16", "fd00::/8"))
    assert inside.addresses(["10.1.2.3", "fd00::1", "::ffff:10.1.2.3"])[:2] == [
        "10.1.2.3",
        "fd00::1",
    ]
    with pytest.raises(UriRefusedError):
        inside.addresses(["10.2.0.1"])


@pytest.fixture
async def origin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[HttpsOrigin]:
    made = HttpsOrigin(tmp_path)
    await made.start()
    monkeypatch.setenv("SSL_CERT_FILE", str(made.authority))
    yield made
    await made.stop()


def remote(*sources: str) -> Remote:
    return Remote(Origins(sources, ("127.0.0.0/8", "::1/128")))


async def read(source: Remote, uri: str) -> bytes:
    async with source.open(uri) as body:
        return b"".join([piece async for piece in body])


async def test_a_body_behind_redirects_of_allowed_origins(origin: HttpsOrigin) -> None:
    body = b'{"x": [1, 2, 3]}\n' * 50_000
    origin.answers = {
        "/a?b=c": (302, {"location": "/d"}, b""),
        "/d": (307, {"location": f"{origin.url}/e"}, b""),
        "/e": (200, {}, body),
    }
    assert await read(remote(origin.url), f"{origin.url}/a?b=c") == body
    assert origin.asked == [(one, f"localhost:{origin.port}") for one in ("/a?b=c", "/d", "/e")]


@pytest.mark.parametrize(
    "where",
    [
        "http://localhost/",
        "https://169.254.169.254/",
        "https://127.0.0.1:{port}/e",
        "//evil.example.com/",
        "https://me@localhost:{port}/e",
        "file:///etc/passwd",
        "s3://rows/a",
        "//[",
        "\\\\evil.example.com/",
    ],
)
async def test_a_redirect_is_checked_like_a_uri(origin: HttpsOrigin, where: str) -> None:
    where = where.replace("{port}", str(origin.port))
    origin.answers = {"/a": (302, {"location": where}, b""), "/e": (200, {}, b"no")}
    with pytest.raises(UriRefusedError):
        await read(remote(origin.url, "s3://rows"), f"{origin.url}/a")
    assert [one for one, _ in origin.asked] == ["/a"]


async def test_what_cannot_be_read_says_so_and_names_nothing(origin: HttpsOrigin) -> None:
    origin.answers = {
        "/loop": (302, {"location": "/loop"}, b""),
        "/zip": (200, {"content-encoding": "gzip"}, b"x"),
        "/short": (200, {"content-length": "100"}, b"x"),
    }
    for path in ("/none", "/loop", "/zip", "/short"):
        with pytest.raises(UriUnreadableError) as refusal:
            await read(remote(origin.url), f"{origin.url}{path}")
        assert "localhost" not in str(refusal.value)
    # The name in the certificate is another one.
    by_address = f"https://127.0.0.1:{origin.port}"
    with pytest.raises(UriUnreadableError):
        await read(remote(by_address), f"{by_address}/loop")


async def test_without_the_operators_word_loopback_is_out_of_reach(origin: HttpsOrigin) -> None:
    with pytest.raises(UriRefusedError, match="INFERBUS_JOB_URI_NETWORKS"):
        await read(Remote(Origins((origin.url,), ())), f"{origin.url}/a")
    assert origin.asked == []


async def test_an_authority_that_nobody_trusts(
    tmp_path: Path, origin: HttpsOrigin, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "other").mkdir()
    monkeypatch.setenv("SSL_CERT_FILE", str(HttpsOrigin(tmp_path / "other").authority))
    with pytest.raises(UriUnreadableError):
        await read(remote(origin.url), f"{origin.url}/a")
    assert origin.asked == []
