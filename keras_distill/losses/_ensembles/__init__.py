"""One student from the members of an ensemble, and heads that say how much they know."""
