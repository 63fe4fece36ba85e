"""Failures inside the shared suite show their values."""

import pytest

pytest.register_assert_rewrite("vault.testing.store_suite")
