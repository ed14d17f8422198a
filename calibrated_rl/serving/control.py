"""How ``calibrated-rl serve RUN --roll-out`` reaches the server of RUN on this machine: by files.

A Ray that a job has started for itself lets nobody else in. On a cluster, Ray itself is the way (``cli/serve.py``).
"""

import hashlib
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from calibrated_rl.errors import UserError
from calibrated_rl.run.base_models import CACHE
from calibrated_rl.storage.files import read_json

_POLL_S = 0.2


class Mailbox:
    """Requests to the server of one run, and its answers. One request is under way at a time."""

    def __init__(self, run: Path) -> None:
        name = hashlib.sha256(str(run.resolve()).encode()).hexdigest()[:24]
        self._folder = CACHE / "serving" / name
        self._server, self._request, self._answer = (
            self._folder / file for file in ("server.json", "request.json", "answer.json")
        )
        self._run = run

    def open(self) -> None:
        """The server begins to take requests.

        Raises:
            UserError: another server of this run does so already.
        """
        if (pid := self._alive()) is not None:
            raise UserError(
                f"process {pid} serves {self._run} already: stop it, or use --roll-out to change the policy"
            )
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for file in (self._request, self._answer):
            file.unlink(missing_ok=True)
        self._write(self._server, {"pid": os.getpid()})

    def close(self) -> None:
        """The server takes no more requests."""
        self._server.unlink(missing_ok=True)

    def request(self) -> dict[str, Any] | None:
        """For the server: what is asked of it, once."""
        if not self._request.is_file():
            return None
        content = read_json(self._request)
        self._request.unlink()
        return dict(content)

    def answer(self, problem: str) -> None:
        """For the server: the request was carried out, or (``problem``) why it was not."""
        self._write(self._answer, {"problem": problem})

    def ask(self, content: Mapping[str, Any], timeout_s: float) -> None:
        """For everybody else: ask the server, and wait until it has carried that out.

        Raises:
            UserError: there is no server, it refuses, it ends, or it does not answer.
        """
        if self._alive() is None:
            raise UserError(f"no server of {self._run} runs on this machine; for one on a cluster, set RAY_ADDRESS")
        self._answer.unlink(missing_ok=True)
        self._write(self._request, content)
        end = time.monotonic() + timeout_s
        while not self._answer.is_file():
            if self._alive() is None:
                raise UserError(f"the server of {self._run} ended before it answered")
            if time.monotonic() > end:
                raise UserError(f"the server of {self._run} has not answered within {timeout_s:.0f} s")
            time.sleep(_POLL_S)
        if problem := read_json(self._answer)["problem"]:
            raise UserError(f"the server refuses: {problem}")

    def _alive(self) -> int | None:
        """The server's process, if it runs."""
        if not self._server.is_file():
            return None
        pid = int(read_json(self._server)["pid"])
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return None
        except PermissionError:
            pass
        return pid

    def _write(self, file: Path, content: Mapping[str, Any]) -> None:
        aside = file.with_name(f".{file.name}.{os.getpid()}")
        aside.write_text(json.dumps(dict(content)), encoding="utf-8")
        os.replace(aside, file)
