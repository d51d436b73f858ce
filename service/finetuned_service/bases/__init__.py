"""The store of base models: manifests, digests, the catalog, how bases get in and how they load.

`convert`, `load` and `int8` import torch; everything else here may be used by the RPC process.
"""
