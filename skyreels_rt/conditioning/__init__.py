"""What steers a generation besides speech: portrait, source video, edit mask, their channels."""
