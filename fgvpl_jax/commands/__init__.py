"""The command line: a table of modes and their flags; parses, calls and prints."""
