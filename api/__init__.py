"""HTTP and command line: validates, authenticates, sends, waits, answers."""
