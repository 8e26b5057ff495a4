"""The modules that all other folders use."""
