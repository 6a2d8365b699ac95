"""What each command of the command line does: a function that takes the parsed arguments and returns the exit code."""

FINE, WRONG, INTERRUPTED = 0, 1, 130
