"""What holds for all tests."""

import signal


def pytest_configure() -> None:
    """Take Ctrl-C, and let what tests start take it: a shell that runs the suite in the background has it ignored."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
