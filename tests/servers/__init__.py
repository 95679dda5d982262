"""Real servers, each started as its users start it, and what a client sees of them."""
