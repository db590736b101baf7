"""Text generation: what a manifest says of it, and what every gateway and worker agrees on.

In: a manifest of the task `text-generation`. Out: its settings, and the limits that no request may
pass, checked by the gateway before an engine sees anything.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import msgspec

from inferbus_schemas import messages as m

if TYPE_CHECKING:
    from inferbus_schemas.manifest import Manifest

TASK = "text-generation"
PROMPT = "text_input"
"""The one input, BYTES [1]: a text, token ids, or for chats a JSON array of messages.

A request that says how to generate may hold several, where they are no chats.
"""
TEXT = "text_output"
"""The one output, BYTES [-1]: a text per choice, prompt by prompt.

Both names are those of Triton's LLM backends.
"""

_TENSORS = [(PROMPT, "BYTES", (1,)), (TEXT, "BYTES", (-1,))]

MAX_CHOICES = 8
MAX_PROMPTS = 16
MAX_LIST_CHOICES = 32
"""Of all prompts of a request together."""
MAX_STOPS = 4
MAX_STOP_CHARS = 256
MAX_LOGPROBS = 20
MAX_LOGIT_BIASES = 300
MAX_CONTEXT_TOKENS = 1 << 20


class GenerationSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`task_settings["generation"]` of a manifest.

    `context_tokens` bounds prompt and answer together; `default_max_tokens` bounds an answer whose
    request says nothing, but for chats, which the context bounds; `chat` and `tools` say what the
    model's own template knows. With `forced_calls` a call that a request demands is made by a
    grammar, whatever the template knows, and where that knows no tools, the worker tells the model
    of them in SmolLM2's form.
    """

    context_tokens: Annotated[int, msgspec.Meta(ge=16, le=MAX_CONTEXT_TOKENS)]
    default_max_tokens: Annotated[int, msgspec.Meta(ge=1, le=MAX_CONTEXT_TOKENS)] = 16
    chat: bool = True
    tools: bool = False
    forced_calls: bool = False


class LlamaSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`engine_settings` of the engine `llamacpp`: answers at once, threads (0: the host says)."""

    parallel: Annotated[int, msgspec.Meta(ge=1, le=64)] = 4
    intra_op_threads: Annotated[int, msgspec.Meta(ge=0, le=256)] = 0


def settings(manifest: Manifest) -> GenerationSettings:
    """Return how the version generates.

    Raises:
        msgspec.ValidationError: its settings are missing or say what cannot be.
    """
    return msgspec.convert(manifest.task_settings.get("generation"), GenerationSettings)


def n_tokens(said: m.Prediction) -> int:
    """Return the tokens that a request has used, those of its inputs and of its answer."""
    return said.generated.prompt_tokens + said.generated.completion_tokens + said.input_tokens


def usage(said: m.Generated) -> m.Generated:
    """Return what a record without an answer says of a generation: all but the answer itself."""
    out = m.Generated()
    out.CopyFrom(said)
    del out.choices[:]
    return out


def problem(manifest: Manifest) -> str:
    """Return what is wrong with a manifest of this task or of its engine, or an empty string."""
    graphs = [entry for entry in manifest.files if entry.path.endswith(".gguf")]
    if (manifest.task == TASK) != (manifest.engine == "llamacpp"):
        return f"the task {TASK} and the engine llamacpp go together"
    if manifest.task != TASK:
        return "only the engine llamacpp reads .gguf files" if graphs else ""
    if len(graphs) != 1 or len(manifest.files) != 1:
        return "a version of the engine llamacpp has exactly one file, a .gguf"
    tensors = (*manifest.signature.inputs, *manifest.signature.outputs)
    if [(one.name, one.datatype, one.shape) for one in tensors] != _TENSORS:
        return f"{TASK} has the input {PROMPT} BYTES [1] and the output {TEXT} BYTES [-1]"
    try:
        settings(manifest)
        msgspec.convert(manifest.engine_settings, LlamaSettings)
    except msgspec.ValidationError as error:
        return f"task_settings.generation or engine_settings: {error}"
    return ""


def excess(said: m.Generation, n_prompts: int) -> str:
    """Return which bound a request passes, or an empty string."""
    if said.n > MAX_CHOICES:
        return f"n is at most {MAX_CHOICES}"
    if n_prompts > (1 if said.prompt_kind == m.PROMPT_KIND_CHAT else MAX_PROMPTS):
        return f"there are at most {MAX_PROMPTS} prompts, of chats one"
    if n_prompts > 1 and n_prompts * said.n > MAX_LIST_CHOICES:
        return f"several prompts have at most {MAX_LIST_CHOICES} choices together"
    return ""
