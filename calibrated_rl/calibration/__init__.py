"""How a simulator is aligned with human logs (one file a method), and when."""
