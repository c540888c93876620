"""The OpenAI chat protocol as servers really speak it: the client, the dialects, the reading of replies, the keys."""
