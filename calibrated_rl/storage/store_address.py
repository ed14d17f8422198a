"""Addresses of stores: ``s3://BUCKET/PREFIX``, ``gs://BUCKET/PREFIX``, ``file:///PATH``, with options after ``?``.

Credentials come from the environment (``AWS_ACCESS_KEY_ID`` and others, or the machine's role); an
address with credentials in it is refused, since addresses are written to configs and logs.
"""

from datetime import timedelta
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from calibrated_rl.errors import UserError, printable

KEY = "training.checkpoint_store"
"""The setting with the address, for errors."""
REQUEST_TIMEOUT_S = 10.0
"""A store that does not send or take a byte for so long counts as unreachable; the run continues without it."""
ATTEMPTS = 3
"""Tries of one request to a store, before the copy is abandoned until the next checkpoint."""
_OPTIONS = {"s3": ("region", "scheme", "endpoint_override"), "gs": ("scheme", "endpoint_override"), "file": ()}


def check_address(address: str) -> None:
    """Refuse an invalid address, without a request to the store.

    Raises:
        UserError: says what is wrong, without repeating a credential.
    """
    url = urlsplit(address)
    options = dict(parse_qsl(url.query, keep_blank_values=True))
    secret = any(word in name for name in options for word in ("key", "token", "secret"))
    if secret or any("@" in text for text in (url.netloc, *options.values())):
        raise UserError(f"{KEY} has credentials in it: give them in the environment, such as AWS_ACCESS_KEY_ID")
    if url.scheme not in _OPTIONS:
        raise UserError(
            f"{KEY} is '{printable(address)}': write s3://BUCKET/PREFIX, gs://BUCKET/PREFIX or file:///PATH"
        )
    allowed = _OPTIONS[url.scheme]
    if unknown := [name for name in options if name not in allowed]:
        raise UserError(f"{KEY}: unknown option '{printable(unknown[0])}'; there are: {', '.join(allowed) or 'none'}")
    if (scheme := options.get("scheme", "https")) not in ("http", "https"):
        raise UserError(f"{KEY}: the option 'scheme' is '{printable(scheme)}'; there are: http, https")
    if url.scheme == "file" and url.netloc:
        raise UserError(f"{KEY} is '{printable(address)}': write file:///PATH, with three strokes")
    if not (url.path if url.scheme == "file" else url.netloc).strip("/"):
        missing = "folder" if url.scheme == "file" else "bucket"
        raise UserError(f"{KEY} is '{printable(address)}': it names no {missing}")


def open_store(address: str, *folders: str) -> Any:
    """The ``pyarrow.fs.SubTreeFileSystem`` of what lies at ``address``, in the folders ``below``.

    No request is sent yet.

    Raises:
        UserError: ``check_address`` refuses the address.
    """
    from pyarrow import fs

    check_address(address)
    url = urlsplit(address)
    options = dict(parse_qsl(url.query))
    # FileSystem.from_uri has no option for time-outs.
    store: Any
    if url.scheme == "s3":
        timeouts = {"connect_timeout": REQUEST_TIMEOUT_S, "request_timeout": REQUEST_TIMEOUT_S}
        retries = fs.AwsStandardS3RetryStrategy(max_attempts=ATTEMPTS)
        store = fs.S3FileSystem(**options, **timeouts, retry_strategy=retries)
    elif url.scheme == "gs":
        store = fs.GcsFileSystem(**options, retry_time_limit=timedelta(seconds=ATTEMPTS * REQUEST_TIMEOUT_S))
    else:
        store = fs.LocalFileSystem()
    return fs.SubTreeFileSystem("/".join(((url.netloc + url.path).rstrip("/"), *folders)), store)
