"""What a dialogue is: pure data, without Ray, engines or models."""
