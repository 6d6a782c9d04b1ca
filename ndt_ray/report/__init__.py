"""One self-contained page about a sweep: what was found, in sentences that its tables support."""
