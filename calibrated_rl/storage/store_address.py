"""Addresses of stores: ``s3://BUCKET/PREFIX``, ``gs://BUCKET/PREFIX``, ``file:///PATH``, with options after ``?``.

Credentials come from the environment (``AWS_ACCESS_KEY_ID`` and others, or what the machine has been given); an
address with credentials in it is refused, since addresses are written to configs and logs.
"""

from datetime import timedelta
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from calibrated_rl.errors import UserError, printable

KEY = "training.checkpoint_store"
"""The setting with the address, for errors."""
REQUEST_TIMEOUT_S = 10.0
"""A store that does not send or take a byte for so long is out of reach; the run goes on without it."""
ATTEMPTS = 3
"""Tries of one request to a store, before the copy is given up until the next checkpoint."""
_OPTIONS = {"s3": ("region", "scheme", "endpoint_override"), "gs": ("scheme", "endpoint_override"), "file": ()}


def check_address(address: str) -> None:
    """Refuse an address that is no store's, without asking the store.

    Raises:
        UserError: says what is wrong, never what a credential is.
    """
    parts = urlsplit(address)
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    secret = any(word in name for name in options for word in ("key", "token", "secret"))
    if secret or any("@" in text for text in (parts.netloc, *options.values())):
        raise UserError(f"{KEY} has credentials in it: give them in the environment, such as AWS_ACCESS_KEY_ID")
    if parts.scheme not in _OPTIONS:
        raise UserError(f"{KEY} is '{printable(address)}': write s3://BUCKET/PREFIX, gs://BUCKET/PREFIX or file:///PATH")
    known = _OPTIONS[parts.scheme]
    if unknown := [name for name in options if name not in known]:
        raise UserError(f"{KEY}: unknown option '{printable(unknown[0])}'; there are: {', '.join(known) or 'none'}")
    if (scheme := options.get("scheme", "https")) not in ("http", "https"):
        raise UserError(f"{KEY}: the option 'scheme' is '{printable(scheme)}'; there are: http, https")
    if parts.scheme == "file" and parts.netloc:
        raise UserError(f"{KEY} is '{printable(address)}': write file:///PATH, with three strokes")
    if not (parts.path if parts.scheme == "file" else parts.netloc).strip("/"):
        what = "folder" if parts.scheme == "file" else "bucket"
        raise UserError(f"{KEY} is '{printable(address)}': it names no {what}")


def open_store(address: str, *below: str) -> Any:
    """The ``pyarrow.fs.SubTreeFileSystem`` of what lies at ``address``, in the folders ``below``.

    Nothing is asked of the store yet.

    Raises:
        UserError: ``check_address`` refuses the address.
    """
    from pyarrow import fs

    check_address(address)
    parts = urlsplit(address)
    options = dict(parse_qsl(parts.query))
    # FileSystem.from_uri has no way to say how long to wait.
    store: Any
    if parts.scheme == "s3":
        timeouts = {"connect_timeout": REQUEST_TIMEOUT_S, "request_timeout": REQUEST_TIMEOUT_S}
        retries = fs.AwsStandardS3RetryStrategy(max_attempts=ATTEMPTS)
        store = fs.S3FileSystem(**options, **timeouts, retry_strategy=retries)
    elif parts.scheme == "gs":
        store = fs.GcsFileSystem(**options, retry_time_limit=timedelta(seconds=ATTEMPTS * REQUEST_TIMEOUT_S))
    else:
        store = fs.LocalFileSystem()
    return fs.SubTreeFileSystem("/".join(((parts.netloc + parts.path).rstrip("/"), *below)), store)
