"""The commands of `edge`, a group a module; `edge_sdk.cli` has their table."""
