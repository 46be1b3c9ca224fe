"""The command `chat`: on a terminal, or over a pipe."""
