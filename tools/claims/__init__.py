"""What the claims of docs/results.md rest on beside studies of arms: one file a figure."""
