"""What a key and a tenant may use - requests, tokens: counted here, settled with the fleet; pure.

In: callers, the time, and what the shared count answers. Out: leave to go on, or how long to wait.
Nothing here waits: a request spends what was leased, or goes ahead within this gateway's share of
what the shared count had left, and is debited there within milliseconds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from inferbus_gateway.errors import RateLimitedError
from inferbus_schemas.access import Principal

BLOCK_S = 0.1
MAX_BLOCK = 64
"""A lease is at most this many requests, and at most `BLOCK_S` of the rate."""
LEASE_S = 1.0
"""How long a lease is good: what a quiet gateway holds is not added to a later burst."""
ASK_AGAIN_S = 0.05
IDLE_S = 60.0


@dataclass(frozen=True, slots=True)
class Ask:
    """What to ask the shared count: `owed` was spent already, `want` is to be leased."""

    owed: int
    want: int


@dataclass(slots=True)
class Part:
    """This gateway's part of the fleet: `share` of it, and whether the count is shared now."""

    share: float = 1.0
    shared: bool = False


class Quota:
    """One rate, as this gateway sees it.

    Invariants: `owed` is what was spent and not debited in the shared count; what is spent between
    two answers is at most what was leased and this gateway's share of the room that the last one
    told, or 1 where that is less; the room grows with time as the shared one does. With one
    gateway, what is spent by any time is therefore at most `burst` and the rate times that time.
    While nobody answers it is a bucket of its own, of this gateway's share.
    """

    __slots__ = (
        "_asked",
        "_asked_s",
        "_denied",
        "_leased_s",
        "_room",
        "_room_s",
        "_tokens",
        "block",
        "burst",
        "owed",
        "queued",
        "rate_per_s",
        "used_s",
    )

    def __init__(
        self, rate_per_s: float, burst: int, part: Part, now_s: float, *, ahead: bool = True
    ) -> None:
        """Start full; without `ahead` nothing is leased before it is used."""
        self.rate_per_s = rate_per_s
        self.burst = burst
        self.block = min(int(rate_per_s * BLOCK_S), MAX_BLOCK, burst) if ahead else 0
        self.owed = 0
        self.queued = False
        self.used_s = now_s
        self._tokens = 0
        self._leased_s = now_s
        self._room = max(1.0, burst * part.share)
        self._room_s = now_s
        self._asked: Ask | None = None
        self._asked_s = now_s - ASK_AGAIN_S
        self._denied = False

    def take(self, part: Part, now_s: float, n: int = 1) -> float:
        """Spend `n` requests; return 0, or the seconds after which it may be tried again."""
        self.used_s = now_s
        if self._tokens:
            if now_s - self._leased_s > LEASE_S:
                self._tokens = 0
            elif self._tokens >= n:
                self._tokens -= n
                return 0.0
        more = n - self._tokens
        room = self._grown(part, now_s)
        if room >= more:
            self._tokens = 0
            self._room = room - more
            self.owed += more
            return 0.0
        self._room = room
        self._denied = True
        return (more - room) / (self.rate_per_s * (1.0 if part.shared else part.share))

    def wait_s(self, part: Part, now_s: float) -> float:
        """Return 0 while anything is left, or the seconds until there is again; spend nothing."""
        self.used_s = now_s
        self._room = self._grown(part, now_s)
        if self._room >= 1.0:
            return 0.0
        self._denied = True
        return (1.0 - self._room) / (self.rate_per_s * (1.0 if part.shared else part.share))

    def charge(self, n: int, part: Part, now_s: float) -> None:
        """Spend what was used already, whether or not it was left."""
        self.used_s = now_s
        self._room = self._grown(part, now_s) - n
        self.owed += n

    def give_back(self, n: int = 1) -> None:
        """Undo the last `take`, of `n`: another limit refused the request."""
        owed = min(n, self.owed)
        self.owed -= owed
        self._room += owed
        self._tokens += n - owed

    def _grown(self, part: Part, now_s: float) -> float:
        """Return the room that there is by now."""
        grown, share = (now_s - self._room_s) * self.rate_per_s, part.share
        self._room_s = now_s
        room, most = self._room + grown * share, self.burst * share
        if room > most:
            room = max(1.0, most)
        if room < 1.0 and part.shared:
            # A single request is settled before it does harm, so it need not wait for its share.
            room = min(1.0, self._room + grown)
        return room

    def full(self, part: Part, now_s: float) -> bool:
        """Tell whether what was spent has come back in time, here and so in the shared count."""
        grown, most = (now_s - self._room_s) * self.rate_per_s, self.burst * part.share
        if self._room + grown * part.share >= most:
            return True
        return part.shared and most < 1.0 and self._room + grown >= 1.0

    def due(self, now_s: float) -> bool:
        """Tell whether the shared count is to be asked."""
        if self._asked is not None:
            return False
        again = self._denied and now_s - self._asked_s >= ASK_AGAIN_S
        low = self.block > 1 and self._tokens * 2 < self.block
        return self.owed > 0 or again or low

    def ask(self, now_s: float) -> Ask:
        """Return what to ask now; one question is open at a time."""
        # A slow rate leases nothing ahead: a request of it is worth more than a round trip.
        want = max(0, self.block - self._tokens) if self.block > 1 else 0
        self._asked, self._asked_s, self._denied = Ask(self.owed, want), now_s, False
        return self._asked

    def answered(self, granted: int, room: int, part: Part, now_s: float) -> None:
        """Take the answer to the open question.

        Args:
            granted: of what was wanted.
            room: what the whole fleet may still spend at once; below 0 where it spent too much.
            part: this gateway's part of the fleet.
            now_s: monotonic.
        """
        asked = self._asked or Ask(0, 0)
        self._asked = None
        # What was given back in the meantime was debited: it counts as leased.
        paid_back = max(0, asked.owed - self.owed)
        self.owed = max(0, self.owed - asked.owed)
        self._tokens += granted + paid_back
        # What was spent since the question is paid with the lease, which is debited already.
        paid = min(self.owed, self._tokens)
        self.owed -= paid
        self._tokens -= paid
        self._leased_s = now_s
        self._room = max(room * part.share, min(1.0, room)) if room > 0 else float(room)
        self._room -= self.owed
        self._room_s = now_s

    def unanswered(self) -> None:
        """The question found nobody; what is owed stays so, within a burst."""
        self._asked = None
        self.owed = min(self.owed, self.burst)


def _nothing() -> None:
    return None


class Limits:
    """The quotas of all callers of this gateway.

    Invariants: a caller without limits costs nothing; one that was not seen for a minute and may
    spend a whole burst is forgotten by `forget_idle`, which so gives nobody anything; `wake` is
    called when a quota is to be asked for.
    """

    def __init__(
        self,
        tenant_rate_per_s: float = 0.0,
        tenant_burst: int = 1,
        tenant_tokens_per_min: int = 0,
    ) -> None:
        self._tenant_rate_per_s = tenant_rate_per_s
        self._tenant_burst = tenant_burst
        self._tenant_tokens_per_min = tenant_tokens_per_min
        self.wake: Callable[[], None] = _nothing
        self._quotas: dict[str, Quota] = {}
        self._due: dict[str, Quota] = {}
        self.part = Part()

    def take(self, caller: Principal, now_s: float, n: int = 1) -> None:
        """Spend `n` requests of a caller's key and of its tenant, at a monotonic time.

        Raises:
            RateLimitedError: one of them has not so many left; nothing was spent.
        """
        key: Quota | None = None
        if caller.requests_per_s > 0:
            key = self._spend(caller.who, caller.requests_per_s, caller.burst, now_s, n)
        if self._tenant_rate_per_s > 0:
            try:
                self._spend(caller.tenant, self._tenant_rate_per_s, self._tenant_burst, now_s, n)
            except RateLimitedError:
                if key is not None:
                    key.give_back(n)
                raise

    def _spend(self, name: str, rate_per_s: float, burst: int, now_s: float, n: int) -> Quota:
        quota = self._quotas.get(name)
        if quota is None or quota.rate_per_s != rate_per_s or quota.burst != burst:
            quota = self._quotas[name] = Quota(rate_per_s, burst, self.part, now_s)
        wait_s = quota.take(self.part, now_s, n)
        self._look(name, quota, now_s)
        if wait_s > 0:
            raise RateLimitedError(wait_s)
        return quota

    def at_once(self, caller: Principal, most: int) -> int:
        """Return how many requests a caller may ever spend at one time, up to `most`."""
        for rate_per_s, burst in (
            (caller.requests_per_s, caller.burst),
            (self._tenant_rate_per_s, self._tenant_burst),
        ):
            if rate_per_s > 0:
                most = min(most, max(1, int(burst * self.part.share)))
        return most

    def check_tokens(self, caller: Principal, now_s: float) -> None:
        """Check that a caller may begin to generate; spend nothing.

        Raises:
            RateLimitedError: its key or its tenant has no tokens left.
        """
        for name, quota in self._token_quotas(caller, now_s):
            wait_s = quota.wait_s(self.part, now_s)
            self._look(name, quota, now_s)
            if wait_s > 0:
                raise RateLimitedError(wait_s)

    def charge(self, caller: Principal, n_tokens: int, now_s: float) -> None:
        """Spend the tokens that a generation has used; what began within the limit may pass it."""
        for name, quota in self._token_quotas(caller, now_s):
            quota.charge(n_tokens, self.part, now_s)
            self._look(name, quota, now_s)

    def _token_quotas(self, caller: Principal, now_s: float) -> list[tuple[str, Quota]]:
        found = []
        for whose, per_min in (
            (caller.who, caller.tokens_per_min),
            (caller.tenant, self._tenant_tokens_per_min),
        ):
            if per_min > 0:
                name = f"{whose}#tokens"
                quota = self._quotas.get(name)
                if quota is None or quota.burst != per_min:
                    quota = Quota(per_min / 60, per_min, self.part, now_s, ahead=False)
                    self._quotas[name] = quota
                found.append((name, quota))
        return found

    def _look(self, name: str, quota: Quota, now_s: float) -> None:
        if not quota.queued and quota.due(now_s):
            self.queue(name, quota)

    def queue(self, name: str, quota: Quota) -> None:
        """Have a quota asked for."""
        quota.queued = True
        self._due[name] = quota
        self.wake()

    def due(self) -> dict[str, Quota]:
        """Return, and forget, the quotas to ask for.

        Their names: `<tenant>` or `<tenant>/<principal>`, and `#tokens` behind that for tokens.
        """
        found, self._due = self._due, {}
        for quota in found.values():
            quota.queued = False
        return found

    def forget_idle(self, now_s: float) -> None:
        """Drop what nobody used for a while and would be the same if it were made anew."""
        idle = [
            name
            for name, one in self._quotas.items()
            if now_s - one.used_s > IDLE_S and one.full(self.part, now_s)
        ]
        for name in idle:
            del self._quotas[name]
            self._due.pop(name, None)
