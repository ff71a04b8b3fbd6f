"""ZeroMQ sockets and the event loop: the only folder that imports zmq."""
