"""Claims as objects: what is measured, what it predicts, and the verdict."""
