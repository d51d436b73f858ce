"""Smaller bases from a base: formats, what they cost in quality, and the gate on it.

Runs as a job process (`python -m finetuned_service.quantization TASK.json`); knows no database and
no gRPC. `bases/load.py` loads the result, as it loads any base.
"""
