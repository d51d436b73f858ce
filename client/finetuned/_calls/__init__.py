"""What each verb sends and how its answer is read, as plain values; here is no I/O.

Both clients run these: `Client` through `_transport.py`, `AsyncClient` through `_aio.py`.
"""
