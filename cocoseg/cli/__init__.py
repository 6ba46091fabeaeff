"""The command line: one file per subcommand. Only this folder prints."""
