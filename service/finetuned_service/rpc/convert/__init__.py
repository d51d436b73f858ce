"""The border between protobuf and the house: one module a service, functions named for direction.

`*_to_proto` makes messages from our values, `*_from_proto` makes our values from messages and refuses
what they cannot hold. Nothing beyond this package and the servicers imports `finetuned.v1`.
"""
