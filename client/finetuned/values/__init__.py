"""The frozen values that calls take and give; all are importable from `finetuned` itself."""
