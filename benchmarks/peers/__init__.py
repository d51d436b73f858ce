"""The others: how each is built, started and asked. Workers run in environments of their own, so a
`*_worker.py` imports nothing of this project but `benchmarks.peers.worker`.
"""
