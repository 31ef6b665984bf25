"""A remote model behind an OpenAI-compatible server, with hard limits."""
