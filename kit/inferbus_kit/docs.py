"""A service's page of documentation, `/docs`: all of it from the service, nothing from elsewhere.

In: nothing. Out: arguments for `fastapi_offline.FastAPIOffline`, and the policy that holds a
browser to it. Imports no FastAPI: most processes have none.
"""

from __future__ import annotations

from typing import Any, Final

PATH: Final = "/docs"

PAGE: Final[dict[str, Any]] = {
    "docs_url": PATH,
    "static_url": f"{PATH}/static",
    "redoc_url": None,
    "swagger_ui_parameters": {"validatorUrl": None},  # else the page asks another host
}

# FastAPI's page starts Swagger UI by a script inside it, and that sets styles on elements.
POLICY: Final = (
    b"default-src 'none'; connect-src 'self'; img-src 'self' data:; frame-ancestors 'none'; "
    b"script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'"
)
"""The value of `content-security-policy` for `PATH` and what is below it."""
