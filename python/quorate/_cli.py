"""The ``quorate`` command: the same code as the Rust binary."""

import signal
import sys

from quorate import _native


def main() -> None:
    """Run the command with this process's arguments, and exit with its code."""
    # Python's own handler only sets a flag that nobody would look at.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    sys.exit(_native.main(["quorate", *sys.argv[1:]]))
