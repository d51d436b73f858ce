"""A server under random use for as long as you like: `python -m benchmarks.soak`, or `make soak`.

It ends well if every reply was the one that the same weights gave to the same request before, nothing failed
that should not, and what the server's processes hold at rest did not grow.
"""
