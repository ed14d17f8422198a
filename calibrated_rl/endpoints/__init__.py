"""Models behind an OpenAI-compatible API: asked at their pace, each answer paid for once and kept."""
