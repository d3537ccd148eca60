"""What is served and how: typed, frozen trees. No torch."""
