"""Gymnasium environments over simulated users: one session, many, or a whole platform."""
