"""What is recorded beside the model itself: the machine, its memory and its clocks."""
