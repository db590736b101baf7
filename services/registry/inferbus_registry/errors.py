"""Every error of the registry that a client may see, once: code, HTTP status, title."""

from __future__ import annotations

from typing import ClassVar

from inferbus_kit.errors import InferbusError


class RegistryError(InferbusError):
    """An error with a title; `members` travel beside it in the problem document."""

    title: ClassVar[str] = "Error"

    def __init__(self, detail: str, **members: object) -> None:
        super().__init__(detail)
        self.members = members


class ModelNotFoundError(RegistryError):
    """No version of such a model was ever registered."""

    code = "model_not_found"
    http_status = 404
    grpc_status = "NOT_FOUND"
    title = "Model not found"

    def __init__(self) -> None:
        super().__init__("There is no model of this name; `inferbus models list` shows all.")


class UnauthorizedError(RegistryError):
    """No key or token was presented, or one that opens nothing."""

    code = "unauthorized"
    http_status = 401
    grpc_status = "UNAUTHENTICATED"
    title = "Unauthorized"

    def __init__(self) -> None:
        super().__init__(
            "A valid key or token is needed: send `Authorization: Bearer <key or token>`; the "
            "command line takes either from INFERBUS_API_KEY."
        )


class ForbiddenError(RegistryError):
    """The caller is known and may not do this."""

    code = "forbidden"
    http_status = 403
    grpc_status = "PERMISSION_DENIED"
    title = "Forbidden"


class KeyNotFoundError(RegistryError):
    """There is no such key, or none that the caller may know of."""

    code = "key_not_found"
    http_status = 404
    grpc_status = "NOT_FOUND"
    title = "Key not found"

    def __init__(self) -> None:
        super().__init__("There is no key of this id; `inferbus keys list` shows all.")


class KeyEndedError(RegistryError):
    """A key that is revoked, expired or rotated already has no successor to be made."""

    code = "key_ended"
    http_status = 409
    grpc_status = "FAILED_PRECONDITION"
    title = "Key has ended"

    def __init__(self) -> None:
        super().__init__("The key is revoked, expired or was rotated before; create a new one.")


class TooManyKeysError(RegistryError):
    """The tenant has as many keys as it may."""

    code = "too_many_keys"
    http_status = 409
    grpc_status = "RESOURCE_EXHAUSTED"
    title = "Too many keys"

    def __init__(self, limit: int) -> None:
        super().__init__(
            f"The tenant has {limit} keys, which is the limit; those that have ended count until "
            "they are deleted, thirty days later.",
            limit=limit,
        )


class VersionNotFoundError(RegistryError):
    """The model has no such version."""

    code = "version_not_found"
    http_status = 404
    grpc_status = "NOT_FOUND"
    title = "Version not found"

    def __init__(self) -> None:
        super().__init__("The model has no such version; `inferbus models show` lists them.")


class BlobNotFoundError(RegistryError):
    """No file with this digest is stored."""

    code = "blob_not_found"
    http_status = 404
    grpc_status = "NOT_FOUND"
    title = "File not found"

    def __init__(self) -> None:
        super().__init__("No file with this digest is stored.")


class InvalidRequestError(RegistryError):
    """A name, a digest or a body that the rules refuse."""

    code = "invalid_request"
    http_status = 422
    grpc_status = "INVALID_ARGUMENT"
    title = "Invalid request"


class InvalidManifestError(RegistryError):
    """A manifest that cannot describe a version."""

    code = "invalid_manifest"
    http_status = 422
    grpc_status = "INVALID_ARGUMENT"
    title = "Invalid manifest"


class BlobsMissingError(RegistryError):
    """The manifest names files that were not uploaded."""

    code = "blobs_missing"
    http_status = 422
    grpc_status = "FAILED_PRECONDITION"
    title = "Files missing"

    def __init__(self, missing: list[str]) -> None:
        super().__init__(
            "The manifest names files that are not stored; upload them first.", missing=missing
        )


class DigestMismatchError(RegistryError):
    """The bytes that came are not those that were announced."""

    code = "digest_mismatch"
    http_status = 422
    grpc_status = "INVALID_ARGUMENT"
    title = "Digest mismatch"

    def __init__(self) -> None:
        super().__init__("The body's sha256 is not the one in the address; nothing was stored.")


class FormatRefusedError(RegistryError):
    """A file is not of an allowed format, or reaches outside its version."""

    code = "format_refused"
    http_status = 422
    grpc_status = "INVALID_ARGUMENT"
    title = "Format refused"


class TooLargeError(RegistryError):
    """A body over the limit."""

    code = "too_large"
    http_status = 413
    grpc_status = "INVALID_ARGUMENT"
    title = "Too large"

    def __init__(self, limit_bytes: int) -> None:
        super().__init__(
            f"The body is over the limit of {limit_bytes} bytes.", limit_bytes=limit_bytes
        )


class UploadTooSlowError(RegistryError):
    """The body stopped coming, or came at under 1 KiB/s."""

    code = "upload_too_slow"
    http_status = 408
    grpc_status = "DEADLINE_EXCEEDED"
    retryable = True
    title = "Upload too slow"

    def __init__(self) -> None:
        super().__init__("The upload came too slowly; nothing was stored. Try again.")


class AliasConflictError(RegistryError):
    """Compare-and-set: the alias wants another version than the caller expected."""

    code = "alias_conflict"
    http_status = 409
    grpc_status = "ABORTED"
    title = "Alias has changed"

    def __init__(self, wanted: int | None) -> None:
        now = "does not exist" if wanted is None else f"wants version {wanted}"
        super().__init__(f"The alias {now}, which is not what was expected.", wanted=wanted)


class DatabaseUnavailableError(RegistryError):
    """Postgres does not answer; nothing was changed, or it is unknown whether it was."""

    code = "database_unavailable"
    http_status = 503
    grpc_status = "UNAVAILABLE"
    retryable = True
    title = "Database unavailable"

    def __init__(self) -> None:
        super().__init__(
            "The registry's database does not answer, so nothing can be changed at present; "
            "serving goes on. Try again shortly."
        )


class DatabaseNotMigratedError(RegistryError):
    """The registry's tables are missing or of another version."""

    code = "database_not_migrated"
    http_status = 503
    grpc_status = "UNAVAILABLE"
    title = "Database not migrated"

    def __init__(self) -> None:
        super().__init__(
            "The registry's tables are missing or old; run `python -m inferbus_registry migrate`."
        )


class BusyError(RegistryError):
    """Another change holds the lock of all changes for too long."""

    code = "busy"
    http_status = 503
    grpc_status = "UNAVAILABLE"
    retryable = True
    title = "Busy"

    def __init__(self) -> None:
        super().__init__("Another change takes too long; nothing was changed. Try again.")


class ObjectStoreError(RegistryError):
    """The object store does not answer, or refuses."""

    code = "object_store_unavailable"
    http_status = 503
    grpc_status = "UNAVAILABLE"
    retryable = True
    title = "Object store unavailable"

    def __init__(self) -> None:
        super().__init__("The object store does not take or give the file. Try again shortly.")


class StorageFullError(RegistryError):
    """The object store has no space left."""

    code = "storage_full"
    http_status = 507
    grpc_status = "RESOURCE_EXHAUSTED"
    title = "Storage full"

    def __init__(self) -> None:
        super().__init__("The object store has no space left; free some and try again.")
