"""What processes say to each other: the fixed header, the messages, their encoding. No sockets here."""
