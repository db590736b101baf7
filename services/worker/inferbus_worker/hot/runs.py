"""Executions of requests that generate, and which rows of jobs make way for a request; pure.

In: what the engine says of them, by `generate`. Out: the row that stays when a request comes. All
others go back and come again as the pace of jobs lets them: each answer that an engine makes beside
another slows every token of that one, and a prompt that it reads stops all tokens meanwhile.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain

from inferbus_worker.engines import wire
from inferbus_worker.hot.work import Batch, Work

MAX_YIELDS = 12
"""How often a row is sent back that says nothing yet: beside steady requests for two minutes."""


@dataclass(slots=True, eq=False)
class Run:
    """One execution of a request.

    `began`: a token of it has come; `cancelled`, `expired` and `yields`: why it was aborted;
    `prompt_tokens` and `sent_tokens`: what is known of those prompts of which chunks left, and
    stands for the chunks; `n_running`: its choices that the engine still makes.
    """

    work: Work
    run: int
    stream: bool
    batch: Batch
    n_chunks: int = 0
    n_unacknowledged: int = 0
    prompt_tokens: dict[int, int] = field(default_factory=dict)
    sent_tokens: int = 0
    n_running: int = 0
    began: bool = False
    cancelled: bool = False
    expired: bool = False
    yields: bool = False
    done: tuple[wire.Done, bytes] | None = None


def staying(running: Sequence[Run], waiting: Sequence[Work]) -> Work | None:
    """Return the row that comes to its end beside requests; rows stand in the order they came in.

    It is the first that answers, since what it has said would be lost, else the first that was sent
    back often enough: so a job goes on, however many requests come.
    """
    answering = (run.work for run in running if run.began)
    patient = (
        work
        for work in chain((run.work for run in running), waiting)
        if work.n_yields >= MAX_YIELDS
    )
    return next(chain(answering, patient), None)
