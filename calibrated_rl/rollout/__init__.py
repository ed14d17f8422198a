"""Running rollouts: the conversation loop, groups of dialogues, what breaks one and whose fault it is."""
