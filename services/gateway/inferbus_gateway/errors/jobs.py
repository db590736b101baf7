"""Why a job, or its input, is not taken or not there."""

from __future__ import annotations

from inferbus_kit.errors import InferbusError


class JobsNotConfiguredError(InferbusError):
    """This gateway has no object store, so it takes no jobs."""

    code = "jobs_not_configured"
    http_status = 501
    grpc_status = "UNIMPLEMENTED"


class TooManyJobsError(InferbusError):
    """The tenant has as many unfinished jobs as it may; this one was not taken."""

    code = "too_many_jobs"
    http_status = 429
    grpc_status = "RESOURCE_EXHAUSTED"
    retryable = True

    def __init__(self) -> None:
        super().__init__("your tenant has too many unfinished jobs; wait for some of them")


class TooManyJobRowsError(InferbusError):
    """The tenant's unfinished jobs have as many rows left as they may; this one was not taken."""

    code = "too_many_job_rows"
    http_status = 429
    grpc_status = "RESOURCE_EXHAUSTED"
    retryable = True

    def __init__(self) -> None:
        super().__init__(
            "the unfinished jobs of your tenant have too many rows; wait, or send less"
        )


class JobNotFoundError(InferbusError):
    """There is no such job, or it is another tenant's."""

    code = "job_not_found"
    http_status = 404
    grpc_status = "NOT_FOUND"


class JobNotFinishedError(InferbusError):
    """The job has not ended, so it has no results yet and cannot be tried again."""

    code = "job_not_finished"
    http_status = 409
    grpc_status = "FAILED_PRECONDITION"


class UriRefusedError(InferbusError):
    """The input may not be read from this URI."""

    code = "uri_refused"
    http_status = 422
    grpc_status = "INVALID_ARGUMENT"


class UriUnreadableError(InferbusError):
    """The input cannot be read from this URI."""

    code = "uri_unreadable"
    http_status = 422
    grpc_status = "INVALID_ARGUMENT"
