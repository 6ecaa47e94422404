"""One module a subcommand: `parser() -> Parser` and `run(args) -> int`."""
