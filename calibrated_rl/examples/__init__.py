"""Complete examples, each in a folder: the task, its scripted human or none, and its log reader, as users would write
them."""
