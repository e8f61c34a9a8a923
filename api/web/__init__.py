"""How HTTP is read and answered: protocol, authentication, validation, log, limits."""
