"""The table of a service's routes: which policy each has; what is not in it is not reached.

In: method and path of a request. Out: the policy of its route, and the model that it names. Paths
are matched as the routers do it: a parameter is one segment, whatever stands in it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from inferbus_schemas import access

Route = tuple[str, str]
"""Method and path template, as in `("GET", "/v2/models/{model}")`."""

_PARAMETER = re.compile(r"\\{([a-z0-9_]+)\\}")


@dataclass(frozen=True, slots=True)
class Match:
    """The route that a request is for; `model` is empty where it names none."""

    policy: str
    model: str


@dataclass(frozen=True, slots=True)
class WrongMethod:
    """There is such a path, for other methods."""

    allowed: tuple[str, ...]


class Policies:
    """The routes of one service.

    Invariants: each route has exactly one policy, and it is one of `access.POLICIES`; a policy
    that speaks of a model stands on a route that names one.
    """

    def __init__(self, table: Mapping[Route, str]) -> None:
        self.table = dict(table)
        self._paths: dict[str, dict[str, str]] = {}
        for (method, path), policy in table.items():
            if policy not in access.POLICIES:
                raise ValueError(f"{method} {path} has no policy that there is: {policy}")
            if policy == access.INFER and "{model}" not in path:
                raise ValueError(f"{method} {path} names no model")
            self._paths.setdefault(path, {})[method] = policy
        self._plain = {path for path in self._paths if "{" not in path}
        self._patterns = [(_pattern(path), path) for path in self._paths if "{" in path]

    def find(self, method: str, path: str) -> Match | WrongMethod | None:
        """Return the route of a request; None where there is no such path."""
        model, template = "", path if path in self._plain else ""
        if not template:
            for pattern, candidate in self._patterns:
                if found := pattern.fullmatch(path):
                    model, template = found.groupdict().get("model", ""), candidate
                    break
            else:
                return None
        methods = self._paths[template]
        if method not in methods:
            return WrongMethod(tuple(sorted(methods)))
        return Match(methods[method], model)


def _pattern(path: str) -> re.Pattern[str]:
    return re.compile(_PARAMETER.sub(r"(?P<\1>[^/]+)", re.escape(path)), re.DOTALL)
