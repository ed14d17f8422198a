"""An S3 store for tests: moto's server, in this process.

    with S3Server() as server:
        address = server.address("some/prefix")

What moto itself does not say or do is a small layer in front of it: ``server.down`` makes it answer 503 to everything,
``server.puts`` counts the objects that clients wrote, and requests without a signature are refused (moto checks
signatures only together with made-up users of IAM).
"""

import threading
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, MutableMapping
from typing import Any, Self
from urllib.parse import parse_qs

import boto3
from botocore.config import Config
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

REGION = "us-east-1"


class S3Server:
    """Has one empty bucket of its own; serves from a thread until the ``with`` ends."""

    def __init__(self) -> None:
        self.puts: Counter[str] = Counter()
        """How often each object was written by a client, by key."""
        self.down = False
        self.bucket = f"bucket-{uuid.uuid4().hex}"  # moto's stores are one for the process
        self._moto = DomainDispatcherApplication(create_backend_app)
        self._server = make_server("localhost", 0, self._answer, threaded=True, request_handler=_Quiet)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._client = boto3.client(
            "s3", region_name=REGION, endpoint_url=f"http://localhost:{self._server.port}",
            aws_access_key_id="the-test", aws_secret_access_key="the-test", config=Config(user_agent_extra=_OWN),
        )  # fmt: skip
        self.objects: MutableMapping[str, bytes] = _Objects(self._client, self.bucket)
        """What the bucket holds, by key; to be looked at and changed behind the clients' backs."""

    def address(self, prefix: str) -> str:
        """Of ``prefix`` in the bucket, as ``training.checkpoint_store`` takes it."""
        endpoint = f"localhost:{self._server.port}"
        return f"s3://{self.bucket}/{prefix}?scheme=http&endpoint_override={endpoint}&region={REGION}"

    def __enter__(self) -> Self:
        self._thread.start()
        self._client.create_bucket(Bucket=self.bucket)
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(timeout=10)

    def _answer(self, request: dict[str, Any], start: Any) -> Iterable[bytes]:
        """WSGI: before moto does."""
        if self.down:
            return _refuse("503 Service Unavailable", "ServiceUnavailable", start)
        if "HTTP_AUTHORIZATION" not in request:
            return _refuse("403 Forbidden", "AccessDenied", start)
        query, method = parse_qs(request["QUERY_STRING"], keep_blank_values=True), request["REQUEST_METHOD"]
        whole = method == "PUT" and "uploadId" not in query or method == "POST" and "uploadId" in query
        _, bucket, key = request["PATH_INFO"].split("/", 2) if request["PATH_INFO"].count("/") > 1 else ("", "", "")
        if whole and bucket == self.bucket and key and _OWN not in request.get("HTTP_USER_AGENT", ""):
            self.puts[key] += 1
        return self._moto(request, start)


_OWN = "behind-the-clients-backs"
"""In the user agent of what a test itself does."""


class _Quiet(WSGIRequestHandler):
    protocol_version = "HTTP/1.1"

    def log(self, *_: object) -> None:
        pass


def _refuse(status: str, code: str, start: Any) -> list[bytes]:
    body = f"<Error><Code>{code}</Code><Message>{code}</Message></Error>".encode()
    # The body of the request is not read, so the connection cannot be used again.
    start(status, [("Content-Type", "application/xml"), ("Content-Length", str(len(body))), ("Connection", "close")])
    return [body]


class _Objects(MutableMapping[str, bytes]):
    def __init__(self, client: Any, bucket: str) -> None:
        self._client, self._bucket = client, bucket

    def __getitem__(self, key: str) -> bytes:
        try:
            content: bytes = self._client.get_object(Bucket=self._bucket, Key=key)["Body"].read()
        except self._client.exceptions.NoSuchKey as error:
            raise KeyError(key) from error
        return content

    def __setitem__(self, key: str, content: bytes) -> None:
        self._client.put_object(Bucket=self._bucket, Key=key, Body=content)

    def __delitem__(self, key: str) -> None:
        self[key]
        self._client.delete_object(Bucket=self._bucket, Key=key)

    def __iter__(self) -> Iterator[str]:
        for page in self._client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket):
            yield from (entry["Key"] for entry in page.get("Contents", ()))

    def __len__(self) -> int:
        return sum(1 for _ in self)
