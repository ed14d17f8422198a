"""The endpoints of a run by name; a client is made when the first answer is wanted."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from calibrated_rl.endpoints.answers import AnswerFile
from calibrated_rl.endpoints.config import EndpointConfig
from calibrated_rl.errors import UserError

if TYPE_CHECKING:
    from calibrated_rl.endpoints.client import EndpointClient

ANSWERS = "answers"
"""Folder in the run folder."""
LOGGED = ("answers", "cached", "retries", "prompt_tokens", "completion_tokens", "cost")
"""Counts that become metrics of an update."""


class Endpoints:
    """Clients, and what they cost."""

    def __init__(self, configs: Mapping[str, EndpointConfig], run: Path) -> None:
        """``run``: the run's folder."""
        self._configs, self._run = configs, run
        self._clients: dict[str, EndpointClient] = {}
        self._account = ""
        self._logged: dict[str, Counter[str]] = {}
        self._used: set[str] = set()
        """Endpoints that the account has used."""

    def client(self, name: str) -> "EndpointClient":
        """The client of the endpoint ``name``, the same for all that ask.

        Raises:
            UserError: there is no such endpoint.
        """
        if name not in self._configs:
            known = ", ".join(self._configs) or "none"
            raise UserError(f"there is no endpoint '{name}' in `endpoints`; there are: {known}")
        if name not in self._clients:
            from calibrated_rl.endpoints.client import EndpointClient  # loads a client library

            config = self._configs[name]
            folder = Path(config.cache).expanduser() if config.cache else self._run / ANSWERS
            client = EndpointClient(name, config, AnswerFile(folder / f"{name}.jsonl"))
            client.account = self._account
            self._clients[name] = client
        return self._clients[name]

    def check_keys(self, names: Iterable[str]) -> None:
        """Refuse endpoints whose key the environment lacks, before anything starts.

        Raises:
            UserError: names the first.
        """
        for name in names:
            self.client(name).check_key()

    def charge_to(self, account: str) -> None:
        """From now on ``account`` pays, such as ``interactive-0``; metrics begin at zero."""
        self._account = account
        for client in self._clients.values():
            client.account = account
        self.metrics()
        self._used = set()

    def metrics(self) -> dict[str, float]:
        """What each endpoint that the account has used did since the last call: ``endpoint/NAME/WHAT``."""
        found: dict[str, float] = {}
        for name, client in self._clients.items():
            counts = client.counts()
            since = counts - self._logged.get(name, Counter())
            if since or name in self._used:
                found |= {f"endpoint/{name}/{what}": float(since[what]) for what in LOGGED}
                self._used.add(name)
            self._logged[name] = counts
        return found

    def paid(self, account: str | None = None) -> dict[str, dict[str, Any]]:
        """By endpoint, what ``account`` (None: the whole run) has paid, also before a restart; nothing where that is
        nothing."""
        paid = {name: client.paid(account) for name, client in self._clients.items()}
        return {name: asdict(of) for name, of in paid.items() if of.answers}

    def close(self) -> None:
        """Wait for the answers that are on their way."""
        for client in self._clients.values():
            client.close()
