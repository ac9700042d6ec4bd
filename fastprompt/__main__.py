"""Entry point of ``python -m fastprompt``, the same as the ``fastprompt`` command."""

import sys

from .cli.main import main

if __name__ == "__main__":
    sys.exit(main())
