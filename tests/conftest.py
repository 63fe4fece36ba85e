"""What holds for all tests."""

import signal


def pytest_configure() -> None:
    """Take Ctrl-C and a terminal's end, and let what tests start take them: in the background they are ignored."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
