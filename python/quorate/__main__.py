"""Entry point of ``python -m quorate``, which runs the ``quorate`` command."""

from quorate._cli import main

main()
