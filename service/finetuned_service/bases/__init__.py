"""The store of base models: manifests, digests, the catalog, and how bases get in.

Only `bases.convert` imports torch; everything else here may be used by the RPC process.
"""
