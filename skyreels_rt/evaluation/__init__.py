"""Measures of generated talking portraits, read from their pixels and sound alone."""
