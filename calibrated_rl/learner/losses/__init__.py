"""One file a loss; ``base`` says what goes in and what comes out."""
