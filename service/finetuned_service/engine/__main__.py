"""`python -m finetuned_service.engine FD`: the engine process; `launch.py` starts it."""

from __future__ import annotations

import os
import sys
import traceback

from finetuned_service.engine.process import main

if __name__ == "__main__":
    status = 1
    try:
        status = main(int(sys.argv[1]))
    except Exception:  # noqa: BLE001 - whatever ends the engine is told before it ends
        traceback.print_exc()
    sys.stderr.flush()
    sys.stdout.flush()
    # At once, and not by the interpreter's own way: that frees a GPU's memory while this process still lives, and jobs
    # compute with that memory for as long as it lives (`bases/lender.py`).
    os._exit(status)
