"""One file per version of the schema, in the order of their numbers. docs/house.md says how to add one."""
