"""Image Gateway: a caching reverse proxy for OpenAI-compatible image generation."""

__version__ = "0.1.0"
