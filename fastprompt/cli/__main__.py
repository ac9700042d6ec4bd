"""Entry point of ``python -m fastprompt.cli``, the same as the ``fastprompt`` command."""

import sys

from .main import main

if __name__ == "__main__":
    sys.exit(main())
