"""Settings: read from the environment, checked, and the URLs of servers in them."""
