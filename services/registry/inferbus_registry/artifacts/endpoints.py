"""`/v1/registry/blobs`: files by digest."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Header, Request, Response
from pydantic import BaseModel

from inferbus_registry.artifacts.service import BlobService


class Blob(BaseModel):
    """A stored file."""

    sha256: str
    created: bool


def routes(service: BlobService) -> APIRouter:
    """Return the routes on `service`."""
    router = APIRouter(prefix="/v1/registry/blobs", tags=["blobs"])

    @router.head("/{sha256}", summary="Whether a file is stored")
    async def head(sha256: str) -> Response:
        size = await service.size_bytes(sha256)
        return Response(headers={"content-length": str(size)})

    @router.put(
        "/{sha256}",
        summary="Upload a file",
        status_code=201,
        responses={200: {"model": Blob, "description": "It was stored already"}},
        openapi_extra={
            "requestBody": {
                "required": True,
                "content": {
                    "application/octet-stream": {"schema": {"type": "string", "format": "binary"}}
                },
            }
        },
    )
    async def put(
        sha256: str,
        request: Request,
        response: Response,
        content_length: Annotated[int | None, Header(ge=0)] = None,
    ) -> Blob:
        created = await service.put(sha256, content_length, request.stream())
        response.status_code = 201 if created else 200
        return Blob(sha256=sha256, created=created)

    return router
