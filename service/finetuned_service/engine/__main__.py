"""`python -m finetuned_service.engine FD`: the engine process; `launch.py` starts it."""

from __future__ import annotations

import sys

from finetuned_service.engine.process import main

if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
