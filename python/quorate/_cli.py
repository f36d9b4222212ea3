"""The ``quorate`` command. It runs the same code as the Rust binary."""

import signal
import sys

from quorate import _native


def main() -> None:
    """Run the command with the arguments of this process, and exit with its exit code."""
    # Python's own SIGINT handler only sets a flag. Native code would never check it, so Ctrl-C
    # would have no effect.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    sys.exit(_native.main(["quorate", *sys.argv[1:]]))
