"""Does it help to choose whom to ask? Replies on chosen histories against as many on random ones."""
