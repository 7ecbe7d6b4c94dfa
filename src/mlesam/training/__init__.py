"""Loss, schedule, validation and the loop."""
