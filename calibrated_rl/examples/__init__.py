"""Complete examples, each in a folder: the task, its people and its log reader, as users would write them."""
