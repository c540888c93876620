"""The old place of `simenv.language_models.fake_server`."""

from simenv.language_models.fake_server import LLMServer, Reply, Seen, error, items_of, scores

__all__ = ["LLMServer", "Reply", "Seen", "error", "items_of", "scores"]
