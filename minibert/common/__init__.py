"""Modules for use in all other folders of minibert/."""
