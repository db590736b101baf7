"""The servers that Inferbus is compared with: one ONNX model behind FastAPI and uvicorn.

`usual` is what most people write: a pydantic body, numpy, a sync handler in the thread pool.
`tuned` is the same by hand: raw body, orjson, no validation by pydantic, run in the event loop.
Run: `python -m bench.peer_app usual|tuned MODEL PORT`.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort
import orjson
import uvicorn
from fastapi import FastAPI, Request, Response
from pydantic import BaseModel


def _session(model: str) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


class Features(BaseModel):
    """Rows of 30 features."""

    features: list[list[float]]


def usual() -> FastAPI:
    """Return the app that a tutorial would write."""
    app = FastAPI()
    session = ort.InferenceSession(os.environ["PEER_MODEL"], providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    @app.post("/predict")
    def predict(body: Features) -> dict[str, list[int] | list[list[float]]]:
        label, probabilities = session.run(
            None, {name: np.asarray(body.features, dtype=np.float32)}
        )
        return {"label": label.tolist(), "probabilities": probabilities.tolist()}

    return app


def tuned() -> FastAPI:
    """Return the app that a careful engineer would write."""
    app = FastAPI()
    session = _session(os.environ["PEER_MODEL"])
    name = session.get_inputs()[0].name

    async def predict(request: Request) -> Response:
        body = orjson.loads(await request.body())
        rows = np.array(body["features"], dtype=np.float32)
        label, probabilities = session.run(None, {name: rows})
        answer = {"label": label, "probabilities": probabilities}
        return Response(
            orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY), media_type="application/json"
        )

    app.add_route("/predict", predict, methods=["POST"])
    return app


if __name__ == "__main__":
    kind, model, port = sys.argv[1], sys.argv[2], int(sys.argv[3])
    os.environ["PEER_MODEL"] = str(Path(model).resolve())
    uvicorn.run(
        f"bench.peer_app:{kind}",
        factory=True,
        host="127.0.0.1",
        port=port,
        workers=2 if kind == "tuned" else 1,
        log_level="warning",
        access_log=False,
    )
