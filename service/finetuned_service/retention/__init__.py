"""What the store lets go of (expiry, unreferenced files), and what it is copied to (backups).

Knows all tables and the whole layout of the data directory; knows no gRPC, no engine and no torch.
"""
