"""``python -m quorate`` is the ``quorate`` command."""

from quorate._cli import main

main()
