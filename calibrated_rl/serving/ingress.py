"""The application's HTTP side: OpenAI's endpoints, dialogues and the chat page, health and metrics.

Requests for chat become requests for completions of token ids: prompts are made here as rollouts make them
(``replies.py``), so that the served policy meets what it was trained with, and text from outside stays text.
"""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from ray import serve
from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle
from ray.serve.llm.openai_api_models import CompletionRequest
from starlette.exceptions import HTTPException

from calibrated_rl.chat.tokens import ChatTokens
from calibrated_rl.data.dialogue import Scenario, Split
from calibrated_rl.errors import UserError, printable
from calibrated_rl.inference.config import LEAST_TEMPERATURE
from calibrated_rl.models.tokenizer import read_tokenizer
from calibrated_rl.serving.answers import (
    Part,
    ReplicaUnavailable,
    engine_failed,
    finish_reason,
    forwarded,
    parts_of,
    raise_refusal,
    server_event,
    usage_of,
)
from calibrated_rl.serving.dialogues import DialogueKeeper, outcome_of, turns_from_page
from calibrated_rl.serving.http import handle_errors, read_json
from calibrated_rl.serving.metrics import ServingMetrics
from calibrated_rl.serving.model_handle import ModelHandle
from calibrated_rl.serving.replies import Prompt, ReplyText, SampledTurns, prompt_for
from calibrated_rl.serving.requests import BadRequest, ChatRequest, chat_request, find_scenario, turns_of
from calibrated_rl.serving.settings import ServedModel, chat_settings, digest, serve_config, served_models

TRIES = 4
"""For a reply of which nothing has been sent yet, when the replica that samples it dies."""
ANSWER_TIMEOUT_S = 600.0
HEALTH_TIMEOUT_S = 10.0
PAGE = Path(__file__).parent / "page"
SECURITY_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
app = FastAPI(title="calibrated_rl", docs_url=None, redoc_url=None, openapi_url=None)
"""Without FastAPI's own pages, which load scripts from elsewhere."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A served model as the ingress sees it."""

    model: ServedModel
    tokens: ChatTokens
    handle: ModelHandle


handle_errors(app)


@serve.ingress(app)
class DialogueIngress:
    """Answers requests; Serve may run several of it."""

    def __init__(self, handles: dict[str, DeploymentHandle], arguments: dict[str, Any], key_digests: list[str]) -> None:
        """
        Args:
            handles: of the model deployments, by model.
            arguments: of the application (``ServeConfig`` in plain values).
            key_digests: of the API keys; none: requests need no key.
        """
        self._config = serve_config(arguments)
        run, models = served_models(self._config)
        self._run, self._key_digests = run, key_digests
        self._task = run.task()
        self._scenarios = self._held_out(self._config.scenarios)
        self._endpoints = {
            model.name: Endpoint(
                model,
                ChatTokens(
                    read_tokenizer(model.folder, model.name), **chat_settings(run.config, model)
                ),
                ModelHandle(handles[model.name]),
            )
            for model in models
        }  # fmt: skip
        self._sampled = SampledTurns()
        self._metrics = ServingMetrics()
        self._keeper = DialogueKeeper(Path(self._config.keep_dialogues)) if self._config.keep_dialogues else None
        self._started = int(time.time())

    def _held_out(self, count: int) -> list[Scenario]:
        while count > 1:
            try:
                return self._task.scenarios(Split.HELD_OUT, count)
            except UserError:  # the task has fewer
                count //= 2
        return self._task.scenarios(Split.HELD_OUT, 1)

    # ---- OpenAI's endpoints --------------------------------------------------------------------------

    @app.get("/v1/models")
    async def models(self, request: Request) -> JSONResponse:
        """The served models."""
        self._check_key(request)
        return JSONResponse({"object": "list", "data": [self._card(name) for name in self._endpoints]})

    @app.get("/v1/models/{name:path}")
    async def model(self, name: str, request: Request) -> JSONResponse:
        """One served model."""
        self._check_key(request)
        self._endpoint(name)
        return JSONResponse(self._card(name))

    @app.post("/v1/chat/completions")
    async def chat(self, request: Request) -> Response:
        """The model's next turn in a dialogue."""
        self._check_key(request)
        asked = chat_request(await read_json(request))
        endpoint = self._endpoint(asked.model)
        scenario = find_scenario(self._scenarios, asked.scenario)
        scenario, turns = turns_of(asked, endpoint.model.side, scenario)
        prompt = prompt_for(endpoint.tokens, asked.model, scenario, endpoint.model.side, turns, self._sampled)
        completion = self._completion(endpoint, asked, prompt)
        replies = self._sample(endpoint, completion)
        head: dict[str, Any] = {
            "id": f"chatcmpl-{secrets.token_hex(12)}", "created": int(time.time()), "model": asked.model,
        }  # fmt: skip
        if asked.stream:
            first = await anext(replies)  # what fails before anything is sent, fails with a status of its own
            chunks = self._chunks(head, asked, endpoint, prompt, first, replies)
            return StreamingResponse(chunks, media_type="text/event-stream", headers={"Cache-Control": "no-store"})
        reply = ReplyText(endpoint.tokens)
        async for part in replies:
            reply.add(part.ids)
        self._finish(endpoint, prompt, reply)
        choice: dict[str, Any] = {
            "index": 0, "message": {"role": "assistant", "content": reply.text, "refusal": None}, "logprobs": None,
            "finish_reason": finish_reason(reply),
        }  # fmt: skip
        if asked.return_token_ids:
            choice |= {"token_ids": reply.ids, "prompt_token_ids": prompt.ids}
        return JSONResponse(head | {"object": "chat.completion", "choices": [choice], "usage": usage_of(prompt, reply)})

    @app.post("/v1/completions")
    async def completions(self, request: Request) -> Response:
        """The engine's own endpoint: text or token ids in, as they are."""
        self._check_key(request)
        body = await read_json(request)
        try:
            completion = CompletionRequest.model_validate(body)
        except ValueError as error:
            raise BadRequest(printable(str(error))) from error
        endpoint = self._endpoint(completion.model or "")
        calls = endpoint.handle.completions(completion)
        try:
            first = await asyncio.wait_for(anext(calls), ANSWER_TIMEOUT_S)
        except (RayError, RayServeException, TimeoutError) as error:
            if isinstance(error, RayTaskError) and not engine_failed(error):
                raise
            raise ReplicaUnavailable(f"{type(error).__name__} while {endpoint.model.name} replied") from error
        raise_refusal(first)
        if completion.stream:
            return StreamingResponse(forwarded(first, calls), media_type="text/event-stream")
        return JSONResponse(first.model_dump())

    # ---- dialogues, and the page ---------------------------------------------------------------------

    @app.get("/v1/dialogues/scenarios")
    async def scenarios(self, request: Request) -> JSONResponse:
        """What the other side may be: for the chat page and for clients that name a scenario."""
        self._check_key(request)
        listed = [
            {"id": each.id, "number": number, "greeting": each.greeting, "instructions": each.user_instructions,
             "policy_instructions": each.policy_instructions}
            for number, each in enumerate(self._scenarios)
        ]  # fmt: skip
        return JSONResponse({
            "task": self._task.name, "run": self._run.config.name, "models": list(self._endpoints),
            "keeps_dialogues": self._keeper is not None, "scenarios": listed,
        })  # fmt: skip

    @app.post("/v1/dialogues/outcome")
    async def outcome(self, request: Request) -> JSONResponse:
        """Whether a dialogue with the policy is over, and what the task scores it."""
        self._check_key(request)
        scenario, turns, stopped, _ = turns_from_page(await read_json(request), self._scenarios)
        return JSONResponse(await asyncio.to_thread(outcome_of, self._task, scenario, turns, stopped))

    @app.post("/v1/dialogues/keep")
    async def keep(self, request: Request) -> JSONResponse:
        """Keep a dialogue that the person agreed to have kept."""
        self._check_key(request)
        scenario, turns, stopped, consent = turns_from_page(await read_json(request), self._scenarios)
        if self._keeper is None:
            raise BadRequest("this server keeps no dialogues (keep_dialogues is not set)", code="not_kept", status=403)
        if not consent:
            raise BadRequest("a dialogue is kept only with consent: true", "consent", "consent_required")
        outcome = await asyncio.to_thread(outcome_of, self._task, scenario, turns, stopped)
        name = await asyncio.to_thread(self._keeper.keep, scenario, turns, outcome)
        return JSONResponse({"kept": name})

    @app.get("/")
    async def page(self) -> Response:
        """The chat page."""
        return self._file("index.html")

    @app.get("/page/{name}")
    async def page_file(self, name: str) -> Response:
        """Its script and style."""
        return self._file(name)

    def _file(self, name: str) -> Response:
        types = {"index.html": "text/html", "chat.js": "text/javascript", "chat.css": "text/css"}
        if name not in types or not self._config.chat_page:
            raise HTTPException(404)
        content = (PAGE / name).read_bytes()
        return Response(content, media_type=f"{types[name]}; charset=utf-8", headers=SECURITY_HEADERS)

    # ---- operation -----------------------------------------------------------------------------------

    @app.get("/health")
    async def health(self) -> JSONResponse:
        """200 when a replica of each model answers."""

        async def weights(endpoint: Endpoint) -> str | None:
            try:
                return await asyncio.wait_for(endpoint.handle.weights(), HEALTH_TIMEOUT_S)
            except (RayError, RayServeException, TimeoutError):
                return None

        answers = await asyncio.gather(*map(weights, self._endpoints.values()))
        by_model = dict(zip(self._endpoints, answers, strict=True))
        healthy = None not in answers
        return JSONResponse(
            {"status": "ok" if healthy else "unavailable", "weights": by_model}, 200 if healthy else 503
        )

    @app.get("/metrics")
    async def metrics(self, request: Request) -> Response:
        """This ingress's counters, for Prometheus; Ray's own are where Ray serves them."""
        self._check_key(request)
        return Response(self._metrics.exposition(), media_type=self._metrics.content_type)

    def _check_key(self, request: Request) -> None:
        """Every endpoint but health and the page's files asks for it; the page asks the person.

        Raises:
            BadRequest: there is no key, or another one.
        """
        if not self._key_digests:
            return
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        matches = [secrets.compare_digest(digest(key.strip()), each) for each in self._key_digests]
        if scheme.lower() != "bearer" or not any(matches):
            raise BadRequest("a valid API key is needed: Authorization: Bearer KEY", code="invalid_api_key", status=401)

    # ---- how replies come about ----------------------------------------------------------------------

    def _endpoint(self, name: str) -> Endpoint:
        if name not in self._endpoints:
            raise BadRequest(
                f"the model {name[:80]!r} does not exist; there are: {', '.join(self._endpoints)}", "model",
                "model_not_found", 404,
            )  # fmt: skip
        return self._endpoints[name]

    def _card(self, name: str) -> dict[str, Any]:
        model = self._endpoints[name].model
        return {
            "id": name, "object": "model", "created": self._started, "owned_by": "calibrated_rl",
            "max_model_len": model.config.engine.max_model_len,
        }  # fmt: skip

    def _completion(self, endpoint: Endpoint, asked: ChatRequest, prompt: Prompt) -> CompletionRequest:
        config = endpoint.model.config
        tokens_left = config.engine.max_model_len - len(prompt.ids)
        if tokens_left < 1:
            raise BadRequest(
                f"the dialogue has {len(prompt.ids)} tokens; the model's context is {config.engine.max_model_len}",
                "messages", "context_length_exceeded",
            )  # fmt: skip
        temperature = config.sampling.temperature if asked.temperature is None else asked.temperature
        if 0 < temperature < LEAST_TEMPERATURE:
            raise BadRequest(f"temperature must be 0 or at least {LEAST_TEMPERATURE:g}", "temperature")
        return CompletionRequest(
            model=endpoint.model.name,
            prompt=prompt.ids,
            max_tokens=min(asked.max_tokens or config.sampling.max_turn_tokens, tokens_left),
            temperature=temperature,
            top_p=config.sampling.top_p if asked.top_p is None else asked.top_p,
            top_k=config.sampling.top_k,
            min_p=config.sampling.min_p,
            repetition_penalty=config.sampling.repetition_penalty,
            stop_token_ids=sorted(endpoint.tokens.stop_ids),
            ignore_eos=True,
            skip_special_tokens=False,
            return_token_ids=True,
            add_special_tokens=False,
            stream=asked.stream,
        )

    async def _sample(self, endpoint: Endpoint, completion: CompletionRequest) -> AsyncIterator[Part]:
        """The sampled ids, as they come. A replica that dies before it has given any is replaced by another."""
        for attempt in range(TRIES):
            given = False
            try:
                answers = endpoint.handle.completions(completion)
                while True:
                    try:
                        # For each answer: a stream is begun by one task and read to its end by another.
                        answer = await asyncio.wait_for(anext(answers), ANSWER_TIMEOUT_S)
                    except StopAsyncIteration:
                        return
                    for part in parts_of(answer):
                        given = given or bool(part.ids)
                        yield part
            except (RayError, RayServeException, TimeoutError, ReplicaUnavailable) as error:
                if isinstance(error, RayTaskError) and not engine_failed(error):
                    raise
                self._metrics.retried(endpoint.model.name)
                if given or attempt == TRIES - 1:
                    raise ReplicaUnavailable(f"{type(error).__name__} while {endpoint.model.name} replied") from error
                await asyncio.sleep(0.2 * 2**attempt)

    async def _chunks(
        self, head: dict[str, Any], asked: ChatRequest, endpoint: Endpoint, prompt: Prompt, first: Part,
        rest: AsyncIterator[Part],
    ) -> AsyncIterator[str]:  # fmt: skip
        """Server-sent events."""
        reply = ReplyText(endpoint.tokens)

        def event(delta: dict[str, Any], finish: str | None, ids: list[int] | None = None) -> str:
            choice: dict[str, Any] = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
            if asked.return_token_ids and ids is not None:
                choice["token_ids"] = ids
            return server_event(head | {"object": "chat.completion.chunk", "choices": [choice]})

        yield event({"role": "assistant", "content": ""}, None)
        try:
            text = reply.add(first.ids)
            yield event({"content": text}, None, first.ids)
            async for part in rest:
                text = reply.add(part.ids)
                if text or asked.return_token_ids:
                    yield event({"content": text}, None, part.ids)
        except ReplicaUnavailable as error:
            # The status has been sent; OpenAI's clients raise when such an event arrives.
            yield server_event(
                {"error": {"message": str(error), "type": "server_error", "code": "replica_unavailable"}}
            )
            return
        if text := reply.finish():
            yield event({"content": text}, None)
        self._finish(endpoint, prompt, reply)
        yield event({}, finish_reason(reply))
        if asked.include_usage:
            yield server_event(
                head | {"object": "chat.completion.chunk", "choices": [], "usage": usage_of(prompt, reply)}
            )
        yield "data: [DONE]\n\n"

    def _finish(self, endpoint: Endpoint, prompt: Prompt, reply: ReplyText) -> None:
        self._sampled.remember(prompt.history.add(reply.text), reply.ids)
        self._metrics.replied(endpoint.model.name, len(prompt.ids), len(reply.ids))
