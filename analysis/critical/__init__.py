"""Critical periods: when layers move fast, together, and with the loss."""
