"""The other side of a dialogue: user models, scripted populations, real humans."""
