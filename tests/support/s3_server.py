"""A small S3-compatible server for tests: what an S3 client needs for files below one prefix, in memory.

    with S3Server() as server:
        address = f"s3://bucket/prefix?scheme=http&endpoint_override=localhost:{server.port}&region=us-east-1"

It knows of no signatures, but refuses requests that carry none. ``server.down`` makes it answer 503 to everything, and
``server.puts`` counts the objects that were written.
"""

import hashlib
import io
import threading
import uuid
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.etree import ElementTree
from xml.sax.saxutils import escape


class S3Server:
    """Serves from a thread until the ``with`` ends."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        """By ``bucket/key``."""
        self.parts: dict[str, dict[int, bytes]] = {}
        self.puts: Counter[str] = Counter()
        self.down = False
        owner = self

        class Handler(_Handler):
            server_state = owner

        self._server = ThreadingHTTPServer(("localhost", 0), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    def __enter__(self) -> "S3Server":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(timeout=10)


def _unchunked(stream: Any) -> bytes:
    """``SIZE[;signature] CRLF bytes CRLF ... 0 CRLF trailers CRLF``, as HTTP and, inside of it, S3 cut a body."""
    found = b""
    while size := int(stream.readline().split(b";")[0], 16):
        found += stream.read(size)
        stream.readline()
    while stream.readline().strip():
        pass
    return found


class _Handler(BaseHTTPRequestHandler):
    server_state: S3Server
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # headers and body in one packet: else each answer waits for an acknowledgement

    def handle_expect_100(self) -> bool:
        going_on = super().handle_expect_100()
        self.wfile.flush()
        return going_on

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if "Content_Length" not in headers:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _error(self, status: int, code: str) -> None:
        self._answer(status, f"<Error><Code>{code}</Code><Message>{code}</Message></Error>".encode())

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "") == "chunked":
            body = _unchunked(self.rfile)
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        return _unchunked(io.BytesIO(body)) if "aws-chunked" in self.headers.get("Content-Encoding", "") else body

    def _do(self) -> None:
        body, state = self._body(), self.server_state
        if state.down:
            return self._error(503, "ServiceUnavailable")
        if "Authorization" not in self.headers:
            return self._error(403, "AccessDenied")
        url = urlsplit(self.path)
        key, query = unquote(url.path).strip("/"), parse_qs(url.query, keep_blank_values=True)
        getattr(self, f"_{self.command.lower()}")(key, query, body)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _do

    def _get(self, key: str, query: dict[str, list[str]], _: bytes) -> None:
        if "list-type" in query:
            return self._list(key, query)
        if "/" not in key:
            return self._answer(200)
        content = self.server_state.objects.get(key)
        if content is None:
            return self._error(404, "NoSuchKey")
        headers = {"ETag": f'"{hashlib.md5(content).hexdigest()}"', "Last_Modified": "Wed, 25 Nov 2026 08:00:00 GMT"}
        if self.command == "HEAD":
            return self._answer(200, b"", Content_Length=str(len(content)), **headers)
        if asked := self.headers.get("Range"):
            first, last = asked.removeprefix("bytes=").split("-")
            part = content[int(first) : int(last) + 1 if last else None]
            where = f"bytes {first}-{int(first) + len(part) - 1}/{len(content)}"
            return self._answer(206, part, Content_Range=where, **headers)
        self._answer(200, content, **headers)

    _head = _get

    def _list(self, bucket: str, query: dict[str, list[str]]) -> None:
        prefix, delimiter = query.get("prefix", [""])[0], query.get("delimiter", [""])[0]
        most = int(query.get("max-keys", ["1000"])[0])
        entries: dict[str, str] = {}
        for name, content in sorted(self.server_state.objects.items()):
            of, _, key = name.partition("/")
            if of != bucket or not key.startswith(prefix):
                continue
            rest = key[len(prefix) :]
            if delimiter and delimiter in rest:
                common = prefix + rest.split(delimiter)[0] + delimiter
                entries[common] = f"<CommonPrefixes><Prefix>{escape(common)}</Prefix></CommonPrefixes>"
            else:
                entries[key] = (
                    f"<Contents><Key>{escape(key)}</Key><Size>{len(content)}</Size>"
                    "<LastModified>2026-11-25T08:00:00.000Z</LastModified></Contents>"
                )
        after = query.get("continuation-token", [""])[0]
        chosen = [(key, text) for key, text in sorted(entries.items()) if key > after]
        more = len(chosen) > most
        token = f"<NextContinuationToken>{escape(chosen[most - 1][0])}</NextContinuationToken>" if more else ""
        text = "".join(text for _, text in chosen[:most])
        self._answer(200, (
            '<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
            f"<Name>{bucket}</Name><KeyCount>{min(most, len(chosen))}</KeyCount><MaxKeys>{most}</MaxKeys>"
            f"<IsTruncated>{str(more).lower()}</IsTruncated>{token}{text}</ListBucketResult>"
        ).encode())  # fmt: skip

    def _put(self, key: str, query: dict[str, list[str]], body: bytes) -> None:
        if "uploadId" in query:
            self.server_state.parts[query["uploadId"][0]][int(query["partNumber"][0])] = body
        else:
            self.server_state.objects[key] = body
            self.server_state.puts[key] += 1
        self._answer(200, ETag=f'"{hashlib.md5(body).hexdigest()}"')

    def _post(self, key: str, query: dict[str, list[str]], body: bytes) -> None:
        state = self.server_state
        if "uploads" in query:
            name = uuid.uuid4().hex
            state.parts[name] = {}
            return self._answer(200, (
                f"<InitiateMultipartUploadResult><UploadId>{name}</UploadId></InitiateMultipartUploadResult>"
            ).encode())  # fmt: skip
        if "uploadId" in query:
            parts = state.parts.pop(query["uploadId"][0])
            state.objects[key] = b"".join(parts[number] for number in sorted(parts))
            state.puts[key] += 1
            return self._answer(200, b"<CompleteMultipartUploadResult></CompleteMultipartUploadResult>")
        for element in ElementTree.fromstring(body).iter():
            if element.tag.endswith("Key"):
                state.objects.pop(f"{key}/{element.text}", None)
        self._answer(200, b"<DeleteResult></DeleteResult>")

    def _delete(self, key: str, query: dict[str, list[str]], _: bytes) -> None:
        if "uploadId" in query:
            self.server_state.parts.pop(query["uploadId"][0], None)
        else:
            self.server_state.objects.pop(key, None)
        self._answer(204)
