"""The package in the frameworks, with real databases and a real mail server."""
