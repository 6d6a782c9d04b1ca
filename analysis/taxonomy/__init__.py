"""Types of events, their stability, and what stands for each."""
