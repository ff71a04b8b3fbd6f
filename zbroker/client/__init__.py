"""The Python clients: Producer, Consumer, AdminClient, and the connection they share."""
