"""What mkdocs.yml adds to mkdocs."""
