"""Counters of one ingress replica, in Prometheus's text format. Ray Serve has its own of requests and replicas."""

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, generate_latest


class ServingMetrics:
    """What was asked of the models and what they answered."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        self._registry = CollectorRegistry()

        def counter(name: str, text: str) -> Counter:
            return Counter(f"calibrated_rl_{name}", text, ["model"], registry=self._registry)

        self._replies = counter("replies", "Replies that were sent whole")
        self._prompt = counter("prompt_tokens", "Tokens of their prompts")
        self._sampled = counter("sampled_tokens", "Tokens that were sampled for them")
        self._retries = counter("replica_retries", "Tries that a lost replica cost")

    def replied(self, model: str, prompt_tokens: int, sampled_tokens: int) -> None:
        """Count a whole reply."""
        self._replies.labels(model).inc()
        self._prompt.labels(model).inc(prompt_tokens)
        self._sampled.labels(model).inc(sampled_tokens)

    def retried(self, model: str) -> None:
        """Count a try that failed because of its replica."""
        self._retries.labels(model).inc()

    def exposition(self) -> bytes:
        """All counters."""
        return generate_latest(self._registry)
