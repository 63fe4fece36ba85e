"""Helpers for tests of vault and of third-party stores. Nothing but tests imports this."""
