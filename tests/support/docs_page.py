"""Checks that a service's page of documentation is whole where no other host can be reached."""

from __future__ import annotations

import re

import httpx

_REFERENCE = re.compile(r"""(?:src|href|url)\s*[=:]\s*["']([^"']*)["']""")
_POLICY = "content-security-policy"
_KINDS = {"js": "text/javascript", "css": "text/css", "png": "image/png"}


def check(url: str) -> None:
    """Fetch `url`/docs and all that it loads; each must come from the service itself."""
    with httpx.Client(base_url=url, timeout=20, trust_env=False) as http:
        page = http.get("/docs")
        assert page.status_code == 200
        assert page.headers["content-type"].startswith("text/html")
        assert "//" not in re.sub(r"//[ ].*|<!--.*?-->", "", page.text), "it names another host"
        assert '"validatorUrl": null' in page.text
        # A browser that obeys this can start the page, and reach nothing else.
        policy = dict(part.split(" ", 1) for part in page.headers[_POLICY].split("; "))
        for kind in ("script-src", "style-src", "connect-src", "img-src"):
            assert "'self'" in policy.pop(kind), kind
        assert policy == {"default-src": "'none'", "frame-ancestors": "'none'"}
        assert "'unsafe-inline'" in page.headers[_POLICY]
        names = _REFERENCE.findall(page.text)
        for name in names:
            assert re.match(r"/[^/]", name), name
            got = http.get(name)
            assert got.status_code == 200, name
            kind = _KINDS.get(name.rpartition(".")[2], "application/json")
            assert got.headers["content-type"].startswith(kind), name
            if kind == "text/css":
                assert not re.search(r"(?:@import|url\()\s*[\"']?(?:https?:)?//", got.text)
        assert {name.rpartition(".")[2] for name in names} == {"js", "css", "png", "json"}
        # What is beside the assets stays there.
        for odd in ("..%2fcore.py", "%00", "%2e%2e/__init__.py", "", "x" * 300):
            assert http.get(f"/docs/static/{odd}").status_code == 404, odd
