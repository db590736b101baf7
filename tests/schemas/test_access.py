"""Keys, scopes and verdicts: what opens, what does not, what may be told."""

from __future__ import annotations

import hashlib
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferbus_schemas import access, policies
from inferbus_schemas import messages as m
from inferbus_schemas.access import Verdict

KEY = access.make_key(bytes(range(40)))
NOW_S = 1_800_000_000.0


def record(key: str = KEY, **fields: Any) -> m.AccessKey:
    base: dict[str, Any] = {
        "id": access.key_id(key),
        "sha256": access.key_sha256(key),
        "tenant": "acme",
        "scopes": ["infer:digits"],
        "generation": 1,
    }
    return m.AccessKey(**{**base, **fields})


def held(*scopes: str) -> access.Principal:
    return access.principal("acme", "key:1", scopes)


@given(st.binary(min_size=40, max_size=40))
def test_a_key_is_its_random_bytes(entropy: bytes) -> None:
    key = access.make_key(entropy)
    assert access.key_id(key) == entropy[:8].hex()
    assert len(key) == 64
    assert access.key_sha256(key) == hashlib.sha256(key.encode()).digest()


def test_a_key_takes_neither_more_nor_fewer_bytes() -> None:
    for size in (0, 39, 41):
        with pytest.raises(ValueError, match="random bytes"):
            access.make_key(bytes(size))


@pytest.mark.parametrize(
    "text",
    ["", "mlk_", KEY[:-1], f"{KEY}x", KEY.upper(), f" {KEY}", f"{KEY}\n", KEY.replace("mlk", "sk")],
)
def test_what_is_no_key_has_no_id(text: str) -> None:
    assert access.key_id(text) is None


@pytest.mark.parametrize(
    ("header", "text"),
    [
        (f"Bearer {KEY}".encode(), KEY),
        (f"bearer   {KEY} ".encode(), KEY),
        (b"Basic eDp5", None),
        (b"Bearer", None),
        (b"Bearer ", None),
        (b"", None),
        ("Bearer \u00e4".encode(), None),
    ],
)
def test_what_a_header_presents(header: bytes, text: str | None) -> None:
    assert access.bearer(header) == text


def test_a_keyring_opens_to_the_right_key_alone() -> None:
    ring = access.Keyring()
    assert ring.find(KEY, NOW_S) is None
    assert ring.apply(record())
    found = ring.find(KEY, NOW_S)
    assert found is not None
    assert (found.tenant, found.who) == ("acme", "acme/key:0001020304050607")
    other = access.make_key(bytes(range(8)) + bytes(32))
    assert access.key_id(other) == access.key_id(KEY)
    assert ring.find(other, NOW_S) is None
    assert ring.find("", NOW_S) is None
    assert ring.find("mlk_nothing", NOW_S) is None


def test_expiry_and_revocation_end_a_key() -> None:
    ring = access.Keyring()
    ring.apply(record(expires_us=int(NOW_S * 1e6)))
    assert ring.find(KEY, NOW_S - 1e-3) is not None
    assert ring.find(KEY, NOW_S) is None
    ring.apply(record(generation=2))
    assert ring.find(KEY, NOW_S) is not None
    ring.apply(record(generation=3, revoked=True))
    assert ring.find(KEY, NOW_S) is None
    assert not ring.apply(record(generation=2)), "an older record came again"
    assert ring.find(KEY, NOW_S) is None
    ring.forget(str(access.key_id(KEY)))
    assert ring.apply(record(generation=1))


def test_no_stored_digest_is_a_key_of_its_own() -> None:
    """Whoever reads the topic or the table cannot call with what stands there."""
    ring = access.Keyring()
    ring.apply(record())
    for text in (record().sha256.hex(), f"mlk_{access.key_id(KEY)}_{'A' * 43}"):
        assert ring.find(text, NOW_S) is None


def test_limits_have_a_burst_of_one_at_least() -> None:
    limited = access.holder(record(limits=m.Limits(requests_per_s=2)))
    assert (limited.requests_per_s, limited.burst) == (2.0, 1)
    free = access.holder(record())
    assert (free.requests_per_s, free.burst, free.expires_s) == (0.0, 0, math.inf)


@pytest.mark.parametrize(
    ("said", "counted"),
    [
        (-1.0, 0.0),
        (1e-320, access.LEAST_RATE_PER_S),
        (1e-17, access.LEAST_RATE_PER_S),
        (math.nan, access.LEAST_RATE_PER_S),
        (math.inf, access.LEAST_RATE_PER_S),
        (0.5, 0.5),
    ],
)
def test_a_rate_is_none_or_one_that_counts(said: float, counted: float) -> None:
    limited = access.holder(record(limits=m.Limits(requests_per_s=said)))
    assert limited.requests_per_s == counted
    assert limited.burst == (1 if counted else 0)


@pytest.mark.parametrize("scope", [*access.ALL_SCOPES, "infer:breast-cancer"])
def test_scopes_that_there_are(scope: str) -> None:
    assert access.check_scope(scope) == scope


@pytest.mark.parametrize(
    "scope",
    ["", "infer", "infer:", "infer:UP", "infer:**", "Admin", "models:*", "root", "infer:a b"],
)
def test_scopes_that_there_are_not(scope: str) -> None:
    with pytest.raises(access.InvalidScopeError):
        access.check_scope(scope)


def test_verdicts() -> None:
    bound = held("infer:digits")
    reader = held("infer:digits", "models:read")
    everything = held("infer:*")
    auditor = held("audit:read")
    cases = [
        (bound, "infer", "digits", Verdict.ALLOWED),
        (bound, "infer", "minilm", Verdict.HIDDEN),
        (reader, "infer", "minilm", Verdict.FORBIDDEN),
        (everything, "infer", "minilm", Verdict.ALLOWED),
        (auditor, "infer", "minilm", Verdict.FORBIDDEN),
        (bound, "models:read", "digits", Verdict.ALLOWED),
        (bound, "models:read", "minilm", Verdict.HIDDEN),
        (bound, "models:read", "", Verdict.FORBIDDEN),
        (reader, "models:read", "minilm", Verdict.ALLOWED),
        (everything, "models:read", "minilm", Verdict.ALLOWED),
        (auditor, "models:read", "minilm", Verdict.FORBIDDEN),
        (auditor, "audit:read", "", Verdict.ALLOWED),
        (auditor, "admin", "", Verdict.FORBIDDEN),
        (held("admin"), "deploy", "digits", Verdict.FORBIDDEN),
        (held(), "authenticated", "", Verdict.ALLOWED),
        (bound, "infer:some", "", Verdict.ALLOWED),
        (everything, "infer:some", "", Verdict.ALLOWED),
        (held("models:read", "deploy", "admin"), "infer:some", "", Verdict.FORBIDDEN),
    ]
    for caller, policy, model, verdict in cases:
        assert access.judge(caller, policy, model) is verdict, (caller.scopes, policy, model)


def test_only_what_is_held_can_be_handed_on() -> None:
    assert access.covers(["infer:*"], "infer:digits")
    assert access.covers(["infer:digits"], "infer:digits")
    assert not access.covers(["infer:digits"], "infer:*")
    assert not access.covers(["admin"], "deploy")


@pytest.mark.parametrize(
    ("host", "inside"),
    [
        (b"127.0.0.1:8080", True),
        (b"localhost", True),
        (b"LOCALHOST:1", True),
        (b"[::1]:8080", True),
        (b"127.1.2.3", True),
        (b"", False),
        (b"evil.example", False),
        (b"127.0.0.1.evil.example", False),
        (b"localhost.evil.example:8080", False),
        (b"127.0.0.1@evil.example", False),
        (b"10.0.0.1:8080", False),
        (b"0.0.0.0", False),
    ],
)
def test_hosts_of_this_machine(host: bytes, *, inside: bool) -> None:
    assert access.is_loopback_host(host) is inside


def test_addresses_of_this_machine() -> None:
    for address in ("127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1"):
        assert access.is_loopback_address(address)
    for address in ("", "10.0.0.1", "1127.0.0.1", "::2", "fe80::1", "unix"):
        assert not access.is_loopback_address(address)


TABLE = {
    ("GET", "/v2"): access.AUTHENTICATED,
    ("GET", "/v2/models/{model}"): access.MODELS_READ,
    ("POST", "/v2/models/{model}/infer"): access.INFER,
    ("PUT", "/blobs/{sha256}"): access.MODELS_WRITE,
    ("HEAD", "/blobs/{sha256}"): access.MODELS_READ,
}


def test_a_request_finds_its_route() -> None:
    found = policies.Policies(TABLE)
    assert found.find("GET", "/v2") == policies.Match(access.AUTHENTICATED, "")
    assert found.find("GET", "/v2/models/m") == policies.Match(access.MODELS_READ, "m")
    assert found.find("POST", "/v2/models/a b\n/infer") == policies.Match(access.INFER, "a b\n")
    assert found.find("PUT", "/blobs/1") == policies.Match(access.MODELS_WRITE, "")
    assert found.find("DELETE", "/blobs/1") == policies.WrongMethod(("HEAD", "PUT"))
    for path in ("", "/", "/v2/", "/v2/models/", "/v2/models/m/x", "/v2/models//infer", "/V2"):
        assert found.find("GET", path) is None


def test_a_table_with_a_hole_is_refused() -> None:
    for path, policy in (("/a", "nobody"), ("/a", ""), ("/a", access.INFER)):
        with pytest.raises(ValueError, match="/a"):
            policies.Policies({("GET", path): policy})


@pytest.mark.parametrize(
    ("headers", "by"),
    [
        ([(b"host", b"localhost")], ""),
        ([(b"host", b"evil.example"), (b"host", b"localhost")], "proxy"),
        ([(b"x-forwarded-for", b"127.0.0.1")], "proxy"),
        ([(b"via", b"1.1 x")], "proxy"),
        ([(b"origin", b"http://localhost")], ""),
        ([(b"origin", b"http://localhost:8080")], "page"),
        ([(b"sec-fetch-site", b"cross-site")], "page"),
        ([(b"accept", b"via")], ""),
    ],
)
def test_what_came_from_elsewhere_says_so(headers: list[tuple[bytes, bytes]], by: str) -> None:
    assert access.came_from_afar(headers, b"localhost") == by
