"""The server's doors: sockets, connections, keys, files."""
