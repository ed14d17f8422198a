"""The other side of a dialogue: models, scripted populations, people."""
