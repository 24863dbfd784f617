"""What is made beforehand: networks, and containers that wait for their command."""
