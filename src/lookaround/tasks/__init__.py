"""What experiments train."""
