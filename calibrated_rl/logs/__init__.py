"""Human logs: one file a data set, each read into the one dialogue schema."""
