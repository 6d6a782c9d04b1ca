"""How far a detector can be trusted: series without events and with planted ones, matching, and a scorecard."""
