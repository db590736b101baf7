"""The engine `llamacpp`: llama.cpp's own server core, called in this process, on a GGUF file.

In: a prompt and how to go on from it. Out: pieces of text as they come, then the whole. The engine
batches continuously; each answer is one blocking call of a thread. Its library cannot leave out an
HTTP listener, so that listens on a Unix socket whose name is removed at once: nobody can connect.
"""

from __future__ import annotations

import secrets
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from inferbus_schemas import generation
from inferbus_schemas import messages as m
from inferbus_schemas.manifest import Manifest
from inferbus_worker.engines import calls, telling
from inferbus_worker.engines.pieces import DemandedCall, OfferedCalls, Piece, Reader, Text
from inferbus_worker.engines.refusals import LoadError
from inferbus_worker.engines.slots import Slots

_PROMPT_TOKENS = 16
"""Tokens of prompts that are computed in one go, beside a token of each answer.

What else there is to do, as the first token of a request or an abort, waits for them. On one core
more of them are no faster.
"""
_MAGIC = b"GGUF"
_CONTEXT_EXCEEDED = "exceed_context_size_error"
_BAD_REQUEST = 400


class PromptError(ValueError):
    """The engine refuses this prompt or how to go on from it; `code` is stable."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class LlamaEngine:
    """One model in one server core.

    Invariants: an answer never has more tokens than the context leaves; what is not said in a
    request is the engine's default, but without any `Generation` it answers greedily; calls may
    come from as many threads as there are slots.
    """

    def __init__(self, manifest: Manifest, folder: Path, threads: int) -> None:
        try:
            import xllamacpp  # noqa: PLC0415 -- only this engine pays for it
        except ImportError as error:
            raise LoadError(
                "this worker lacks the package xllamacpp; install inferbus-worker[llamacpp]"
            ) from error
        settings = generation.settings(manifest)
        said = msgspec.convert(manifest.engine_settings, generation.LlamaSettings)
        path = folder / manifest.files[0].path
        with path.open("rb") as file:
            if file.read(len(_MAGIC)) != _MAGIC:
                raise LoadError(f"{path.name} is not a GGUF file")
        self.parallel = said.parallel
        self._slots = Slots(said.parallel)
        self._default_max_tokens = settings.default_max_tokens
        self._forces_calls = settings.forced_calls
        self._tells_tools = settings.tools
        params = xllamacpp.CommonParams()
        params.model.path = str(path)
        params.model_alias = {manifest.model}
        params.n_parallel = said.parallel
        params.n_ctx = settings.context_tokens * said.parallel
        params.n_batch = params.n_ubatch = said.parallel + _PROMPT_TOKENS
        params.ctx_shift = False
        params.cache_ram_mib = 0
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
        params.verbosity = 0
        params.ui = False
        with tempfile.TemporaryDirectory(dir=Path.cwd()) as private:
            params.hostnames = [f"{Path(private).relative_to(Path.cwd())}/s.sock"]
            try:
                self._server = xllamacpp.Server(params)
            except Exception as error:
                raise LoadError(f"llama.cpp refuses the file: {str(error)[:300]}") from error

    def generate(
        self,
        prompt: str,
        said: m.Generation | None,
        choice: int,
        tell: Callable[[Piece], bool],
        tenant: str,
        *,
        of_row: bool = False,
    ) -> None:
        """Go on from a tenant's prompt; call `tell` with each piece, until it answers False.

        Raises:
            PromptError: the prompt is too long, or the engine cannot do what was asked.
            RuntimeError: the engine failed.
        """
        refusal: list[Exception] = []
        chat = said is not None and said.prompt_kind == m.PROMPT_KIND_CHAT
        reader: Reader = Text()
        n_told = said.top_logprobs if said is not None else 0

        def heard(chunk: dict[str, Any]) -> bool:
            """Tell the engine whether to stop."""
            try:
                if "error" in chunk:
                    refusal.append(_refusal(chunk["error"]))
                    return True
                said_now = _pieces(chunk, n_told)
                held.read = held.read or any(one.n_tokens or one.finish_reason for one in said_now)
                pieces = [one for each in said_now for one in reader.take(each)]
                # Each is told, also after one that was answered with False.
                answers = [tell(piece) for piece in pieces]
                return reader.over or not all(answers)
            except Exception as error:  # noqa: BLE001 -- the engine swallows what a call raises
                refusal.append(error)
                return True

        asked = self._asked(said, choice)
        with self._slots.held(tenant, prompt, of_row=of_row) as held:
            asked["id_slot"] = held.number
            if not held.theirs:
                asked["cache_prompt"] = False
            if said is not None and chat:
                reader = self._chat(asked, msgspec.json.decode(prompt), said)
                self._server.handle_chat_completions(asked, heard)
            else:
                of_tokens = said is not None and said.prompt_kind == m.PROMPT_KIND_TOKENS
                asked["prompt"] = msgspec.json.decode(prompt) if of_tokens else prompt
                self._server.handle_completions(asked, heard)
        if refusal:
            raise refusal[0]
        for piece in reader.end():
            tell(piece)

    def _chat(
        self, asked: dict[str, Any], messages: list[dict[str, Any]], said: m.Generation
    ) -> Reader:
        """Put the messages of a chat into a request; return what reads the answer."""
        asked["messages"] = messages if self._tells_tools else telling.plain(messages)
        if not self._forces_calls:
            return Text()
        if functions := calls.demanded(said):
            asked["messages"] = telling.of_demand(telling.plain(messages), functions)
            asked["json_schema"] = calls.schema(functions)
            asked.pop("tools", None)
            asked.pop("tool_choice", None)
            return DemandedCall(_new_id())
        if self._tells_tools or not (names := calls.offered(said)):
            return Text()
        asked["messages"] = telling.of_offer(asked["messages"], said)
        return OfferedCalls(names, _new_id, one_call=said.one_call)

    def _asked(self, said: m.Generation | None, choice: int) -> dict[str, Any]:
        """Return a request in the library's words."""
        asked: dict[str, Any] = {
            "stream": True,
            "stream_options": {"include_usage": True},
            "return_progress": True,
            "max_tokens": self._default_max_tokens,
        }
        if said is None:
            return asked | {"temperature": 0.0}
        asked |= {name: getattr(said, name) for name in _SAMPLING if said.HasField(name)}
        asked["max_tokens"] = said.max_tokens or self._default_max_tokens
        if said.HasField("seed"):
            asked["seed"] = (said.seed + choice) % _DRAWN_SEED
            # What a slot has kept of a prompt is not, to the last bit, what reading it gives.
            asked["cache_prompt"] = False
        if said.stop:
            asked["stop"] = list(said.stop)
        if said.HasField("top_logprobs"):
            asked |= _logprobs(said)
        if said.logit_bias:
            asked["logit_bias"] = {str(key): bias for key, bias in said.logit_bias.items()}
        for name in ("json_schema", *(("tools", "tool_choice") if self._tells_tools else ())):
            if text := getattr(said, name):
                asked[name] = msgspec.json.decode(text)
        return asked


_DRAWN_SEED = 0xFFFFFFFF
"""`LLAMA_DEFAULT_SEED`: the library draws one in its place."""
_SAMPLING = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "frequency_penalty",
    "presence_penalty",
)


def _new_id() -> str:
    return f"call_{secrets.token_hex(12)}"


def _logprobs(said: m.Generation) -> dict[str, Any]:
    # The engine counts the chosen token among the alternatives and knows no zero.
    n_wanted = max(1, said.top_logprobs)
    if said.prompt_kind == m.PROMPT_KIND_CHAT:
        return {"logprobs": True, "top_logprobs": n_wanted}
    return {"n_probs": n_wanted}


def _pieces(chunk: dict[str, Any], n_told: int) -> list[Piece]:
    """Return what a chunk of the library says, in its order, with `n_told` alternatives."""
    out = []
    for choice in chunk.get("choices", ()):
        delta = choice.get("delta") or choice
        probabilities = (choice.get("logprobs") or {}).get("content") or []
        text = delta.get("content") or delta.get("text") or ""
        calls = delta.get("tool_calls") or []
        out.append(
            Piece(
                text=text,
                token_ids=tuple(one["id"] for one in probabilities if "id" in one),
                logprobs=[_as_asked(one, n_told) for one in probabilities],
                tool_calls=calls,
                finish_reason=choice.get("finish_reason") or "",
                n_tokens=len(probabilities) or int(bool(text or calls)),
            )
        )
    if (usage := chunk.get("usage")) is not None:
        out.append(Piece(usage=usage))
    if (progress := chunk.get("prompt_progress")) is not None:
        out.append(Piece(n_prompt_tokens=int(progress.get("total", 0))))
    return out


def _as_asked(one: dict[str, Any], n_told: int) -> dict[str, Any]:
    """Return a token's log probability as the OpenAI API has it, without the library's own ids."""
    told = {key: one[key] for key in ("token", "logprob", "bytes")}
    alternatives = one.get("top_logprobs", ())[:n_told]
    return told | {
        "top_logprobs": [{key: each[key] for key in told} for each in alternatives],
    }


def _refusal(error: dict[str, Any]) -> Exception:
    message = str(error.get("message", "no reason given"))[:300]
    if error.get("type") == _CONTEXT_EXCEEDED:
        n, most = error.get("n_prompt_tokens"), error.get("n_ctx")
        return PromptError(
            "context_length_exceeded",
            f"the prompt has {n} tokens, and the model reads {most} at most, prompt and answer "
            "together: shorten it",
        )
    if error.get("code") == _BAD_REQUEST:
        return PromptError("invalid_input", message)
    return RuntimeError(message)
