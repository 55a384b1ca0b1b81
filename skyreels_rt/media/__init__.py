"""Images, sound and video in and out of files: local files only, formats named, never guessed."""
