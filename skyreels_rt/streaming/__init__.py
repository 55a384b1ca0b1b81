"""What drives and measures a live session: audio at its pace, when frames are due, latencies."""
