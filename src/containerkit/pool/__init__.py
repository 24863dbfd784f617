"""Resources that are made in advance: networks, and containers that wait for their command."""
