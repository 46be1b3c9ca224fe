"""HTTP: sockets, connections, who may ask, streams of events, the page's files."""
