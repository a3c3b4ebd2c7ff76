"""One run: begin, checkpoint, resume, stop, record, log."""
