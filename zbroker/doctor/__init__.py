"""What may hurt a broker on this host, with the fix for each: rules that only read."""
