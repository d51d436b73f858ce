"""The device that tests compute on: the CPU, or what FINETUNED_TEST_DEVICE names (`make gpu`)."""

from __future__ import annotations

import os

DEVICE = os.environ.get("FINETUNED_TEST_DEVICE", "cpu")
